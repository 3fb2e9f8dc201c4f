r"""One mode (a, b, w) of a linear recurrent network that learns from a teacher (a*, b*, w*).

Where student, teacher and feedback are diagonal in the same bases, each mode learns by itself
(Williams, Payeur & Lajoie 2026, arXiv 2606.00243): h_{t+1} = w h_t + b x_t and y = a h on white
noise. With c = a b, c* = a* b*, sequences without end and small steps,

  L  = [c^2 / (1 - w^2) - 2 c c* / (1 - w w*) + c*^2 / (1 - w*^2)] / 2
  a' = b [c* / (1 - w w*) - c / (1 - w^2)]
  b' = f [c* g(v w*) - c g(v w)]
  w' = f b [c* w* g(v w*) / (1 - w w*) - c w g(v w) / (1 - w^2)]

where the credit s steps back is f v^s, and g(q) = SUM_s q^s = (1 - q^tau) / (1 - q):

  bptt   f = a, v = w         tbptt  the same, and tau terms
  rflo   f = the mode's feedback weight (a^), v = leak (w^)
  eprop  f = the mode's feedback weight or a, v = w

The paper gives those of rflo. e-prop keeps diag(W), so that in a mode of its own it depends on what
the modes are: those above are of modes that are units, W = diag(w). There it forgets nothing of W,
and with symmetric feedback it is bptt. Of modes that are spread over many units diag(W) is about
tr(W) / n for all of them, and each is as under rflo with a leak that is the mean of w.

bptt keeps a^2 - b^2, and eprop with fixed feedback a^ a - b^2 / 2.
"""
import warnings
from typing import NamedTuple

import jax
import numpy as np
import scipy  # Its parts load when they are first used; scipy.stats takes half a second.

from bioprop.errors import TheoryError
from bioprop.theory.recurrent import credit as credit_lib
from bioprop.typing import Array

# Of |w|: at 1 no sum over the past is finite. 1 - |w| gets there as a root of time, so that closer
# to it steps are too small to be told from none.
_EDGE = 1 - 1e-6
_ACCURACY = 1e-10


class Mode(NamedTuple):
  """One mode or several, as numbers or arrays of one shape.

  Attributes:
    a: readout.
    b: input.
    w: recurrence, within (-1, 1).
  """
  a: Array
  b: Array
  w: Array


class Trajectory(NamedTuple):
  """Modes over time; see `trajectory`.

  Attributes:
    times: [T].
    modes: a, b and w, each [T, ...]; NaN after a mode has escaped.
    loss: [T, ...].
    escaped: [...], the time at which |w| reached 1, infinite if it never did.
  """
  times: np.ndarray
  modes: Mode
  loss: np.ndarray
  escaped: np.ndarray


def mode_loss(student: Mode, teacher: Mode) -> Array:
  """The loss E (y - y*)^2 / 2 of each mode.

  Args:
    student: modes, |w| < 1.
    teacher: modes of a shape that broadcasts to it; |w| < 1.

  Raises:
    TheoryError: if they are no such modes.
  """
  (a, b, w), (a_, b_, w_) = checked_modes(student, teacher)
  c, c_ = a * b, a_ * b_
  # As squares: the sum above would lose all of its digits close to the teacher.
  own, both = 1 - w**2, 1 - w * w_
  return ((c - c_ * own / both)**2 / own + (c_ * (w - w_) / both)**2 / (1 - w_**2)) / 2


def mode_flow(rule: str, student: Mode, teacher: Mode, *, steps: int | None = None,
              feedback: Array | str | None = None, leak: float | None = None) -> Mode:
  """The time derivatives of a, b and w under a rule; see above.

  Args:
    rule: 'bptt', 'tbptt', 'rflo' or 'eprop'.
    student: modes, |w| < 1; JAX may trace and differentiate them, and the teacher.
    teacher: modes of a shape that broadcasts to it; |w| < 1.
    steps: of tbptt: how many terms it keeps, 1 or more.
    feedback: of rflo and eprop: each mode's feedback weight, or 'symmetric': the readout a.
    leak: of rflo: w^, what replaces w, within (-1, 1); 0 if left out.

  Raises:
    TheoryError: if an argument is out of range, missing, or of another rule.
  """
  how = credit_lib.checked(rule, steps, feedback, leak)
  return _flow(how, *checked_modes(student, teacher, how.feedback))


def trajectory(rule: str, start: Mode, teacher: Mode, times: Array, *, steps: int | None = None,
               feedback: Array | str | None = None, leak: float | None = None) -> Trajectory:
  """Integrates the equations of modes in float64 by SciPy's LSODA, each by itself.

  Args:
    rule: as for `mode_flow`, and so are steps, feedback and leak.
    start: modes at times[0].
    teacher: theirs.
    times: [T], increasing.

  Returns:
    The modes at these times. |w| reaches 1 where learning diverges, in finite time, and the
    equations end there.

  Raises:
    TheoryError: as `mode_flow`; if times do not increase; or if the integration fails.
  """
  how = credit_lib.checked(rule, steps, feedback, leak)
  times = credit_lib.numbers('times', times)
  if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0).all():
    raise TheoryError('times are to increase, and there must be two or more: say for instance '
                      'times=numpy.linspace(0, 20, 200).')
  start, teacher = checked_modes(start, teacher, how.feedback)
  arrays = np.broadcast_arrays(*start, *teacher, 0.0 if how.feedback is None else how.feedback)
  shape, flat = arrays[0].shape, [np.ravel(one) for one in arrays]
  courses, escaped = [], []
  for *mode, feedback_of_mode in zip(*flat):
    one = how if how.feedback is None else how._replace(feedback=feedback_of_mode)
    course, at = _integrated(one, np.array(mode[:3]), Mode(*mode[3:]), times)
    courses.append(course)
    escaped.append(at)
  modes = Mode(*np.stack(courses, -1).reshape(3, len(times), *shape))
  inside = np.where(np.isfinite(modes.w), modes.w, 0.0)
  loss = np.where(np.isfinite(modes.w), mode_loss(
      Mode(*np.nan_to_num(modes[:2]), inside), teacher), np.nan)
  return Trajectory(times, modes, loss, np.reshape(escaped, shape))


def geometric(q: Array, steps: float) -> Array:
  """SUM_{s < steps} q^s, |q| < 1."""
  return 1 / (1 - q) if steps == np.inf else (1 - q**steps) / (1 - q)


def checked_modes(student: Mode, teacher: Mode,
                  feedback: Array | None = None) -> tuple[Mode, Mode]:
  """Both as floating arrays.

  Raises:
    TheoryError: if one is no mode, |w| >= 1, or shapes do not match, with the feedback's neither.
  """
  found = []
  for name, mode in (('student', student), ('teacher', teacher)):
    if not isinstance(mode, (tuple, list)) or len(mode) != 3:
      raise TheoryError(f'the {name} is {mode!r}, and a mode is three numbers or three arrays: say '
                        f'for instance recurrent.Mode(a=1.0, b=1.0, w=0.6).')
    mode = Mode(*(credit_lib.numbers(f'{part} of the {name}', one)
                  for part, one in zip(Mode._fields, mode)))
    if not isinstance(mode.w, jax.core.Tracer) and not (np.abs(mode.w) < 1).all():
      raise TheoryError(f'w of the {name} is {float(np.ravel(mode.w)[np.abs(mode.w).argmax()]):g}, '
                        f'and a mode forgets its past only if |w| < 1: its loss over sequences '
                        f'without end would be infinite. Say for instance w=0.6.')
    found.append(mode)
  credit_lib.require_alike(student=found[0], teacher=found[1], feedback=feedback)
  return tuple(found)


def _flow(how: credit_lib.Credit, student: Mode, teacher: Mode) -> Mode:
  (a, b, w), (a_, b_, w_) = student, teacher
  c, c_ = a * b, a_ * b_
  f = a if how.feedback is None else how.feedback
  v = how.leak if how.rule == 'rflo' else w
  wanted, had = c_ * geometric(v * w_, how.steps), c * geometric(v * w, how.steps)
  both, own = 1 - w * w_, 1 - w**2
  return Mode(b * (c_ / both - c / own), f * (wanted - had),
              f * b * (wanted * w_ / both - had * w / own))


def _integrated(how: credit_lib.Credit, start: np.ndarray, teacher: Mode, times: np.ndarray):
  """a, b and w [3, T], and when |w| reached 1."""
  # A trial step may go beyond the edge, from where it is taken back: the flow there is finite.
  held = lambda state: Mode(state[0], state[1], np.clip(state[2], -_EDGE, _EDGE))
  course = np.full((3, len(times)), np.nan)
  course[:, 0], known = start, 1
  with np.errstate(over='ignore', invalid='ignore'), warnings.catch_warnings():
    warnings.simplefilter('ignore')  # The solver's status says what it warns of.
    solver = scipy.integrate.LSODA(
        lambda _, state: np.array(_flow(how, held(state), teacher)), times[0], start, times[-1],
        rtol=_ACCURACY, atol=_ACCURACY)
    while solver.status == 'running':
      inside = abs(solver.y[2])
      why = solver.step()
      if solver.status == 'failed' or not np.isfinite(solver.y).all():
        raise TheoryError(
            f'{how.rule} from a, b, w = {", ".join(f"{one:g}" for one in start)} cannot be '
            f'integrated beyond time {solver.t:g} ({why}). Ask for times before it.')
      if abs(solver.y[2]) >= max(_EDGE, inside):
        return course, solver.t
      reached = int(np.searchsorted(times, solver.t, side='right'))
      if reached > known:
        course[:, known:reached] = solver.dense_output()(times[known:reached])
        known = reached
  return course, np.inf
