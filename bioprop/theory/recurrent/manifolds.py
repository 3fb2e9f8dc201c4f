r"""Where modes of a linear recurrent network can come to rest, and how fast they do.

At s on the optimal manifold, (a, b, w) = (s, c* / s, w*), the student is the teacher, whatever the
rule. One eigenvalue of the flow's Jacobian is zero, along the manifold; two are the roots of
lambda^2 - tr lambda + det. With p = w*^2, b = c* / s, and the credit f v^s of modes.py at s,
q = v w*, U = f SUM_s q^s and K = f SUM_s (s + 1) q^s over the rule's steps,

  tr  = -[b^2 / (1 - p) + s U + b c* (K / (1 - p) + p U / (1 - p)^2)]
  det = c* b (b^2 K + s U^2) / (1 - p)^2 .

Of rflo, U = a^ / (1 - q) and K = a^ / (1 - q)^2, these are what Williams, Payeur & Lajoie have
(2026, arXiv 2606.00243). E_k = c w^k - c* w*^k is zero here, so that derivatives of the credit do
not matter.

At a = b = 0 and any w the flow is zero if the feedback is a itself, f = a: bptt, tbptt and
symmetric rflo and eprop have this saddle, fixed feedback f = a^ does not, as b' = a^ c* g(v w*)
there. Its eigenvalues are 0 and +- |c*| sqrt(g(v w*) / (1 - w w*)).
"""
from typing import NamedTuple

import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory.recurrent import credit as credit_lib
from bioprop.theory.recurrent.modes import Mode, checked_modes, geometric
from bioprop.typing import Array


class Linearised(NamedTuple):
  """The flow's Jacobian across the optimal manifold; see `linearised`. All have the shape of s.

  Attributes:
    trace: of the Jacobian.
    determinant: the product of its two eigenvalues that are not along the manifold.
    eigenvalues: these two, complex, [..., 2], the one of larger real part first.
    rate: at which the slower of them decays, minus its real part; negative if it grows.
    stable: whether both decay.
  """
  trace: np.ndarray
  determinant: np.ndarray
  eigenvalues: np.ndarray
  rate: np.ndarray
  stable: np.ndarray


def manifold(teacher: Mode, s: Array) -> Mode:
  """The optimal modes (s, c* / s, w*), which all rules share.

  Args:
    teacher: (a*, b*, w*), with c* = a* b* not zero.
    s: the readout, not zero; of a shape that broadcasts with the teacher's.

  Raises:
    TheoryError: if c* or s is zero, or the teacher is no mode.
  """
  (a_, b_, w_), s = _teacher(teacher), credit_lib.numbers('s', s)
  credit_lib.require_alike(teacher=teacher, s=s)
  if (np.asarray(s) == 0).any():
    raise TheoryError('s=0 is not on the manifold a b = a* b*: no b makes the product right. Give '
                      's on one side of zero, for instance numpy.geomspace(0.1, 10, 50).')
  return Mode(s, a_ * b_ / s, w_ + 0 * s)


def linearised(rule: str, teacher: Mode, s: Array, *, steps: int | None = None,
               feedback: Array | str | None = None, leak: float | None = None) -> Linearised:
  """Trace and determinant on the optimal manifold in closed form, and what follows from them.

  Args:
    rule: as for `mode_flow`, and so are steps, feedback and leak.
    teacher: as for `manifold`, and so is s.

  Raises:
    TheoryError: as `mode_flow` and `manifold`.
  """
  how = credit_lib.checked(rule, steps, feedback, leak)
  credit_lib.require_alike(teacher=_teacher(teacher), s=s, feedback=how.feedback)
  s, b, w_ = (np.asarray(one, np.float64) for one in manifold(teacher, s))
  p, c_ = w_**2, s * b
  f = s if how.feedback is None else how.feedback
  q = w_ * (how.leak if how.rule == 'rflo' else w_)
  u, k = f * geometric(q, how.steps), f * _weighted(q, how.steps)
  trace = -(b**2 / (1 - p) + s * u + b * c_ * (k / (1 - p) + p * u / (1 - p)**2))
  determinant = c_ * b * (b**2 * k + s * u**2) / (1 - p)**2
  root = np.sqrt((trace**2 / 4 - determinant).astype(complex))
  larger = trace / 2 + np.where(trace > 0, root, -root)  # That without cancellation.
  safe = np.where(larger == 0, 1, larger)
  both = np.stack([larger, np.where(larger == 0, 0, determinant / safe)], -1)
  both = np.take_along_axis(both, np.argsort(-both.real, -1, kind='stable'), -1)
  rate = -both[..., 0].real
  return Linearised(trace, determinant, both, rate, (trace < 0) & (determinant > 0))


def saddle(rule: str, teacher: Mode, w: Array, *, steps: int | None = None,
           feedback: Array | str | None = None, leak: float | None = None) -> np.ndarray:
  """The eigenvalues [..., 3], ascending, of the flow at a = b = 0, where nothing is learned.

  Args:
    rule: as for `mode_flow`, and so are steps, feedback and leak.
    teacher: as for `manifold`.
    w: of the student, within (-1, 1).

  Raises:
    TheoryError: as `mode_flow`; if feedback is fixed and the rule has no such point.
  """
  how = credit_lib.checked(rule, steps, feedback, leak)
  if how.feedback is not None:
    raise TheoryError(f'{rule} with fixed feedback is at rest nowhere at a = b = 0: there b\' = a^ '
                      f'c* SUM_s (v w*)^s. Ask for bptt or tbptt, or say feedback=\'symmetric\'.')
  (_, _, w), (a_, b_, w_) = checked_modes(Mode(0.0, 0.0, w), _teacher(teacher))
  v = how.leak if how.rule == 'rflo' else w
  size = np.abs(a_ * b_) * np.sqrt(geometric(v * w_, how.steps) / (1 - w * w_))
  return np.stack([-size, 0 * size, size], -1)


def _weighted(q: Array, steps: float) -> Array:
  """SUM_{s < steps} (s + 1) q^s, |q| < 1."""
  if steps == np.inf:
    return 1 / (1 - q)**2
  return (1 - (steps + 1) * q**steps + steps * q**(steps + 1)) / (1 - q)**2


def _teacher(teacher: Mode) -> Mode:
  teacher = checked_modes(Mode(0.0, 0.0, 0.0), teacher)[1]
  if (np.asarray(teacher.a * teacher.b) == 0).any():
    raise TheoryError(f'the teacher has a* = {teacher.a} and b* = {teacher.b}, whose product is '
                      f'zero: a mode that is never seen has no manifold a b = a* b*. Leave it out.')
  return teacher
