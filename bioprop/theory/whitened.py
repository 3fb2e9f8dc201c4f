r"""Two-layer linear networks on whitened data: mean-field theory as differential equations.

With K^x = 1, one hidden layer and gradient flow on SUM (f - y)^2 / 2, all that a rule does happens
along y^ = y / |y| (Bordelon & Pehlevan 2023, arXiv 2210.02157, equations 7 and 8). With the norm y
of the targets, Delta = y - f along y^ and H_y = y^^T H y^:

  bp     dDelta/dt = -2 sqrt(1 + gamma_0^2 (y - Delta)^2) Delta ,  H_y = G~ = sqrt(1 + ...)
  fa     da/dt = gamma_0 y - a^3 / 2 - (1 + rho) a ,  gamma_0 f = (1 + rho) a + a^3 / 2 ,
         H_y = 1 + a^2 ,  G~ = rho + a^2 / 2                                      (dfa: rho = 0)
  hebb   dDelta_mu/dt = -[H_mu + gamma_0 Delta_mu (y_mu - Delta_mu)] Delta_mu ,
         dH_mu/dt = 2 gamma_0 Delta_mu^2 H_mu                          for each sample by itself

The equation of bp is printed without its factor 2 in the paper; with it, the early dynamics are
those of fa at rho = 1, as they must be, and those of trained networks.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory import checks

RULES = ('bp', 'fa', 'dfa', 'hebb')
_CLOSE = 1e-8
_HALVINGS = 15  # Of the time between two that are asked for, at most.


class TwoLayer(NamedTuple):
  """The solution at the times asked for, [T]; of hebb for each sample, [T, P].

  Attributes:
    f: the output along y^, or of each sample.
    h: H_y, or H_mu_mu: the kernel of the hidden layer along the targets.
    g_pseudo: G~, of the true signals with the rule's; under hebb gamma_0 Delta_mu f_mu.
  """
  f: np.ndarray
  h: np.ndarray
  g_pseudo: np.ndarray


def two_layer(rule: str, gamma0: float, y: float | Sequence[float], times: Sequence[float],
              rho: float = 0.0) -> TwoLayer:
  """Integrates the equations by the Runge-Kutta method of fourth order, to 1e-8.

  Args:
    rule: 'bp', 'fa', 'dfa' or 'hebb'.
    gamma0: richness, positive.
    y: norm of the targets; of hebb the targets [P].
    times: increasing, from 0 on.
    rho: correlation of fa's feedback with the initial weights.

  Raises:
    TheoryError: if an argument is out of range, or the solution does not stay finite.
  """
  rule, rho = checks.rule(rule, rho, RULES)
  gamma0 = checks.positive('gamma0', gamma0)
  times, y = np.asarray(times, np.float64), np.asarray(y, np.float64)
  if times.ndim != 1 or not times.size or not (
      times[0] >= 0 and (np.diff(times) > 0).all() and np.isfinite(times[-1])):
    raise TheoryError('times are to increase from 0 on: say for instance '
                      'times=numpy.linspace(0, 5, 100).')
  if y.ndim != (rule == 'hebb') or not y.size or not np.isfinite(y).all():
    raise TheoryError(
        f'y has the shape {y.shape}. Under hebb samples learn by themselves: give all targets, '
        f'[P]. Under the other rules give their norm, float(numpy.linalg.norm(y)).')
  found = None
  with np.errstate(over='ignore', invalid='ignore'):
    for halvings in range(4, _HALVINGS):  # Until a finer division changes nothing.
      before, found = found, _integrated(_EQUATIONS[rule](gamma0, y, rho), times, 2**halvings)
      if before is not None and all(
          (np.abs(one - old) <= _CLOSE * (1 + np.abs(one))).all()
          for one, old in zip(found, before)):
        return found
  raise TheoryError(f'the solution of {rule} at gamma0={gamma0:g} cannot be integrated over these '
                    f'times: it does not stay finite, or changes too fast. Say more and closer '
                    f'times, or gamma0={gamma0 / 4:g}.')


def feedback_limit(gamma0: float, y: float, rho: float = 0.0) -> float:
  """a at the end of training under fa: the positive root of a^3 / 2 + (1 + rho) a = gamma_0 y.

  H_y ends at 1 + a^2, and G~ at rho + a^2 / 2 (equation 7).

  Raises:
    TheoryError: if gamma0 or y is not positive, or rho is not in [0, 1].
  """
  checks.positive('gamma0', gamma0)
  checks.positive('y', y)
  checks.fraction('rho', rho)
  roots = np.roots([0.5, 0.0, 1 + rho, -gamma0 * y])
  return float(roots[np.abs(roots.imag).argmin()].real)


def _backprop(gamma0, y, rho):
  """Delta, from y on."""
  del rho
  h = lambda delta: np.sqrt(1 + (gamma0 * (y - delta))**2)
  return y, lambda delta: -2 * h(delta) * delta, lambda delta: (y - delta, h(delta), h(delta))


def _feedback(gamma0, y, rho):
  """a, from 0 on."""
  f = lambda a: ((1 + rho) * a + a**3 / 2) / gamma0
  return 0.0, lambda a: gamma0 * (y - f(a)), lambda a: (f(a), 1 + a**2, rho + a**2 / 2)


def _hebb(gamma0, y, rho):
  """Delta and H of each sample, [2, P]."""
  del rho

  def slope(state):
    delta, h = state
    return np.stack([-(h + gamma0 * delta * (y - delta)) * delta, 2 * gamma0 * delta**2 * h])

  def read(state):
    delta, h = state
    return y - delta, h, gamma0 * delta * (y - delta)

  return np.stack([y, np.ones_like(y)]), slope, read


_EQUATIONS = {'bp': _backprop, 'fa': _feedback, 'dfa': _feedback, 'hebb': _hebb}


def _integrated(equations, times, substeps) -> TwoLayer:
  """The solution, with so many steps between two times."""
  start, slope, read = equations
  found, state, now = [], np.asarray(start), 0.0
  for time in times:
    step = (time - now) / substeps
    for _ in range(substeps if step else 0):
      state = _runge_kutta(slope, state, step)
    now = time
    found.append(read(state))
  return TwoLayer(*map(np.stack, zip(*found)))


def _runge_kutta(slope, state, step):
  one = slope(state)
  two = slope(state + step / 2 * one)
  three = slope(state + step / 2 * two)
  four = slope(state + step * three)
  return state + step / 6 * (one + 2 * two + 2 * three + four)
