r"""Whole matrices of a linear recurrent network that learns from a teacher, in expectation.

h_{t+1} = W h_t + B x_t and y = A h_T after T steps from h = 0, on white noise; the loss is
E |y - y*|^2 / 2 (Williams, Payeur & Lajoie 2026, arXiv 2606.00243). The error responds to an input
k + 1 steps before by E_k = A W^k B - A* W*^k B*. With the rule's credit J_s [n, o],

  L = SUM_k |E_k|^2 / 2             DA = SUM_k E_k (W^k B)^T
  DB = SUM_s J_s E_s                DW = SUM_s J_s SUM_j E_{s+1+j} (W^j B)^T

  bptt   J_s = (W^s)^T A^T          tbptt  the same for s < tau, else 0
  rflo   J_s = leak^s R^T           eprop  J_s = diag(W)^s R^T ,   R = A if feedback is symmetric

These are exact, of T steps or of sequences without end: then, with A- = [A, -A*], W- = diag(W, W*),
B- = [B; B*], and M with J_s = M^s R^T,

  Y = W- Y W^T + B- B^T ,  Z = M Z W- + R^T A- :   DA = A- Y ,  DB = Z B- ,  DW = Z W- Y ,

and tbptt has Z - M^tau Z W-^tau in place of Z. Matrices are those of the text: a kernel of Flax is
the transpose.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory import checks
from bioprop.theory.recurrent import credit as credit_lib
from bioprop.theory.recurrent.modes import Mode, checked_modes
from bioprop.typing import Array

_DOUBLINGS = 40  # Of the terms of a series: what has not vanished by then, does not.


class Network(NamedTuple):
  """The matrices of a linear recurrent network.

  Attributes:
    a: readout [o, n].
    b: input [n, i].
    w: recurrence [n, n].
  """
  a: Array
  b: Array
  w: Array


class Learned(NamedTuple):
  """What a network did; see `learn`.

  Attributes:
    loss: [updates + 1].
    network: its matrices at the end.
    course: its matrices before the first update and after every so many, each [.., rows, columns].
  """
  loss: Array
  network: Network
  course: Network


def from_modes(modes: Mode, outputs: Array, units: Array, inputs: Array) -> Network:
  """The network A = U diag(a) P^T, B = P diag(b) V^T, W = P diag(w) P^T.

  Its feedback is made alike: R = U diag(a^) P^T, of Mode(feedback, 0, 0) the readout.

  Args:
    modes: m of them, arrays [m].
    outputs: U [o, m].
    units: P [n, m].
    inputs: V [i, m]; each with orthonormal columns.

  Raises:
    TheoryError: if shapes do not match, or columns are not orthonormal.
  """
  modes = Mode(*map(jnp.asarray, checked_modes(modes, modes)[0]))
  bases = [jnp.asarray(one) for one in (outputs, units, inputs)]
  for name, base in zip(('outputs', 'units', 'inputs'), bases):
    if base.ndim != 2 or any(jnp.shape(one) != base.shape[1:] for one in modes):
      raise TheoryError(f'{name} has the shape {base.shape}, and a, b and w of the modes have '
                        f'{[*map(jnp.shape, modes)]}: give [m] of each, and one column for each.')
    apart = float(jnp.abs(base.T @ base - jnp.eye(base.shape[1])).max())
    if not apart < 1e-4:
      raise TheoryError(f'the columns of {name} are not orthonormal, by {apart:.1g}: modes would '
                        f'not be independent. Take {name}=numpy.linalg.qr({name})[0].')
  u, p, v = bases
  product = lambda left, diagonal, right: jnp.einsum('am,m,bm->ab', left, diagonal, right)
  return Network(product(u, modes.a, p), product(p, modes.b, v), product(p, modes.w, p))


def to_modes(network: Network, outputs: Array, units: Array, inputs: Array) -> Mode:
  """The diagonals of U^T A P, P^T B V and P^T W P, [.., m]; of any network, aligned or not.

  Args:
    network: matrices, with further axes before theirs or without.
    outputs: U, as for `from_modes`.
    units: P.
    inputs: V.

  Raises:
    TheoryError: if shapes do not match.
  """
  shapes, bases = [*map(jnp.shape, network)], [*map(jnp.shape, (outputs, units, inputs))]
  rows = bases[0][:1] + bases[1][:1] + bases[2][:1]
  if any(len(one) != 2 or one[1] != bases[0][1] for one in bases) or [
      one[-2:] for one in shapes] != [(rows[0], rows[1]), (rows[1], rows[2]), (rows[1], rows[1])]:
    raise TheoryError(f'A, B and W have shapes {shapes}, and outputs, units and inputs {bases}: '
                      f'give [o, n], [n, i] and [n, n], and bases [o, m], [n, m] and [i, m].')
  diagonal = lambda left, of, right: jnp.einsum('am,...ab,bm->...m', left, of, right)
  return Mode(diagonal(outputs, network.a, units), diagonal(units, network.b, inputs),
              diagonal(units, network.w, units))


def network_loss(student: Network, teacher: Network, horizon: int | None = None) -> Array:
  """The loss E |y - y*|^2 / 2 of the last output, y = A h_T, from h = 0 and on white noise.

  Args:
    student: matrices A, B and W.
    teacher: of the same inputs and outputs; its n may differ.
    horizon: T, or None for sequences without end.

  Raises:
    TheoryError: if shapes do not match, or without end if a spectral radius is 1 or more.
  """
  student, teacher, horizon = _checked(student, teacher, horizon)
  return _loss(student, teacher, horizon)


def network_update(rule: str, student: Network, teacher: Network, *, steps: int | None = None,
                   feedback: Array | str | None = None, leak: float | None = None,
                   horizon: int | None = None) -> Network:
  """What a rule takes for the gradient of `network_loss`, of the last output: DA, DB and DW.

  Args:
    rule: as for `mode_flow`, and so are steps and leak.
    student: as for `network_loss`, and so are teacher and horizon.
    feedback: of rflo and eprop: R [o, n], or 'symmetric': the readout A.

  Raises:
    TheoryError: as `mode_flow` and `network_loss`.
  """
  student, teacher, horizon = _checked(student, teacher, horizon)
  how = _credit(rule, steps, feedback, leak, student)
  return _update(how, student, teacher, horizon)


def learn(rule: str, start: Network, teacher: Network, *, learning_rate: float, updates: int,
          every: int = 1, steps: int | None = None, feedback: Array | str | None = None,
          leak: float | None = None, horizon: int | None = None) -> Learned:
  """Follows a rule's updates from a start.

  Args:
    rule: as for `network_update`, and so are steps, feedback and leak.
    start: as student for `network_loss`, and so are teacher and horizon.
    learning_rate: eta.
    updates: how many.
    every: the course has the matrices after each so many of them.

  Raises:
    TheoryError: as `network_update`; if an argument is out of range; or if learning diverges.
  """
  start, teacher, horizon = _checked(start, teacher, horizon)
  how = _credit(rule, steps, feedback, leak, start)
  rate = checks.positive('learning_rate', learning_rate)
  updates, every = checks.whole('updates', updates, 1), checks.whole('every', every, 1)
  if updates % every:
    raise TheoryError(f'updates={updates} is not a multiple of every={every}, after which the '
                      f'course is kept. Say updates={updates // every * every or every}.')
  found = _learn(how.rule, how.steps, how.feedback, how.leak, start, teacher, rate, updates, every,
                 horizon)
  finite = np.isfinite(np.asarray(found.loss))
  if not finite.all():
    raise TheoryError(f'{rule} diverges at learning_rate={rate:g}: after {int(finite.argmin())} '
                      f'updates the loss is not finite. Either the rule itself does from this '
                      f'start, or the updates are too large: say learning_rate={rate / 4:g}.')
  return found


def rank_bound(rule: str, shape: tuple[int, int], outputs: int, fixed: bool = True) -> int:
  """The largest rank that the change of B or W can have over learning.

  All updates of rflo are R^T times something: with fixed feedback their sum has no more rows than R
  has (proposition 3.1 of the paper). Other rules' updates have columns that learning itself turns,
  and eprop's diag(W)^s R^T already spans more.

  Args:
    rule: as for `mode_flow`.
    shape: of the matrix, (n, n) or (n, i).
    outputs: o.
    fixed: whether the feedback is, and not symmetric.

  Raises:
    TheoryError: if there is no such rule, or a number is no whole one.
  """
  checks.choice('rule', rule, credit_lib.RULES)
  least = min(checks.whole('shape', one, 1) for one in shape)
  return min(least, checks.whole('outputs', outputs, 1)) if rule == 'rflo' and fixed else least


@functools.partial(jax.jit, static_argnames=('rule', 'steps', 'updates', 'every', 'horizon'))
@jax.default_matmul_precision('highest')  # Accelerators would multiply float32 with 10 bits.
def _learn(rule, steps, feedback, leak, start, teacher, rate, updates, every, horizon) -> Learned:
  how = credit_lib.Credit(rule, steps, feedback, leak)

  def step(network, _):
    change = _update(how, network, teacher, horizon)
    return (jax.tree.map(lambda one, d: one - (rate * d).astype(one.dtype), network, change),
            _loss(network, teacher, horizon))

  def several(network, _):
    after, losses = jax.lax.scan(step, network, length=every)
    return after, (losses, network)

  end, (losses, course) = jax.lax.scan(several, start, length=updates // every)
  course = jax.tree.map(lambda before, last: jnp.concatenate([before, last[None]]), course, end)
  return Learned(jnp.append(losses, _loss(end, teacher, horizon)), end, course)


def _joint(student: Network, teacher: Network) -> tuple[Array, Array, Array]:
  """A-, B- and W-: one network whose output is the error."""
  return (jnp.concatenate([student.a, -teacher.a], 1), jnp.concatenate([student.b, teacher.b]),
          jax.scipy.linalg.block_diag(student.w, teacher.w))


def _loss(student: Network, teacher: Network, horizon: int | None) -> Array:
  a, b, w = _joint(student, teacher)
  if horizon is None:
    return jnp.sum((a @ _series(w, b @ b.T, w.T)) * a) / 2
  return jnp.sum(jnp.square(a @ _driven(w, b, horizon))) / 2


def _update(how: credit_lib.Credit, student: Network, teacher: Network,
            horizon: int | None) -> Network:
  a, b, w = _joint(student, teacher)
  size = len(student.w)
  back = {'rflo': lambda: how.leak * jnp.eye(size, dtype=w.dtype),
          'eprop': lambda: jnp.diag(jnp.diag(student.w))}.get(how.rule, lambda: student.w.T)()
  sent = (student.a if how.feedback is None else how.feedback).T
  truncated = how.rule == 'tbptt'
  if horizon is None:
    y, z = _series(w, b @ student.b.T, student.w.T), _series(back, sent @ a, w)
    if truncated:
      power = lambda of: jnp.linalg.matrix_power(of, how.steps)
      z = z - power(back) @ z @ power(w)
    return Network(a @ y, z @ b, z @ (w @ y))
  states = _driven(w, b, horizon)
  error, own = a @ states, states[:, :size]
  credit = _driven(back, sent, horizon)
  lags = np.arange(horizon)
  if truncated:
    credit = credit * (lags < how.steps)[:, None, None].astype(w.dtype)
  # Of all pairs (s, j) the error s + 1 + j steps before, zero beyond the first input.
  padded = jnp.concatenate([error[1:], jnp.zeros((horizon, *error.shape[1:]), w.dtype)])
  later = padded[lags[:, None] + lags]
  return Network(jnp.einsum('koi,kni->on', error, own), jnp.einsum('sno,soi->ni', credit, error),
                 jnp.einsum('jni,jmi->nm', jnp.einsum('sno,sjoi->jni', credit, later), own))


def _driven(w: Array, b: Array, horizon: int) -> Array:
  """W^k B for k < horizon."""
  return jax.lax.scan(lambda state, _: (w @ state, state), b, length=horizon)[1]


def _series(left: Array, middle: Array, right: Array) -> Array:
  """SUM_k left^k middle right^k, by doubling the number of its terms until more add nothing."""
  least = jnp.finfo(middle.dtype).eps / 8

  def going(state):
    count, _, left, right = state
    return (count < _DOUBLINGS) & (jnp.linalg.norm(left) * jnp.linalg.norm(right) > least)

  def double(state):
    count, total, left, right = state
    return count + 1, total + left @ total @ right, left @ left, right @ right

  return jax.lax.while_loop(going, double, (0, middle, left, right))[1]


def _credit(rule, steps, feedback, leak, student: Network) -> credit_lib.Credit:
  """The options of a rule, of matrices."""
  how = credit_lib.checked(rule, steps, feedback, leak)
  if how.feedback is None:
    return how
  if jnp.shape(how.feedback) != student.a.shape:
    raise TheoryError(f'feedback has the shape {jnp.shape(how.feedback)}, and the readout '
                      f'{student.a.shape}: R is shaped like A, [outputs, units]. Give its '
                      f'transpose if it is a kernel of Flax.')
  return how._replace(feedback=jnp.asarray(how.feedback, student.a.dtype))


def _checked(student, teacher, horizon) -> tuple[Network, Network, int | None]:
  """Both as arrays of one type, and the horizon."""
  found = []
  for name, one in (('student', student), ('teacher', teacher)):
    parts = one if isinstance(one, (tuple, list)) else ()
    arrays = [jnp.asarray(credit_lib.numbers(f'a matrix of the {name}', part)) for part in parts]
    shapes = [part.shape for part in arrays]
    if len(arrays) != 3 or any(len(shape) != 2 for shape in shapes) or not (
        shapes[0][1] == shapes[1][0] == shapes[2][0] == shapes[2][1]):
      raise TheoryError(f'the {name} has matrices of shapes {shapes}, and is to have A [o, n], '
                        f'B [n, i] and W [n, n]: recurrent.Network(a, b, w). Kernels of Flax are '
                        f'their transposes.')
    found.append(arrays)
  if found[0][0].shape[0] != found[1][0].shape[0] or found[0][1].shape[1] != found[1][1].shape[1]:
    raise TheoryError(f'the student has A {found[0][0].shape} and B {found[0][1].shape}, the '
                      f'teacher A {found[1][0].shape} and B {found[1][1].shape}: they are to have '
                      f'the same outputs and inputs. Give a teacher of the student\'s task.')
  if horizon is not None:
    horizon = checks.whole('horizon', horizon, 1)
  else:
    for name, (_, _, w) in zip(('student', 'teacher'), found):
      radius = np.abs(np.linalg.eigvals(np.asarray(w))).max()
      if not radius < 1:
        raise TheoryError(f'W of the {name} has the spectral radius {radius:.4g}, and over '
                          f'sequences without end its activity grows without bound. Make it '
                          f'smaller than 1, or say horizon=20 for sequences of 20 steps.')
  dtype = jnp.result_type(*found[0], *found[1])
  student, teacher = (Network(*(part.astype(dtype) for part in one)) for one in found)
  return student, teacher, horizon
