"""Two-layer linear networks on whitened data, beside the equations of `theory.two_layer`.

Figure 5 of Bordelon & Pehlevan 2023 (arXiv 2210.02157). All is seen along y^ = y / |y|: the output,
H_y = y^^T Phi^1 y^, and G~, which is the same for all pairs of samples, but for Hebb's, whose mean
over samples is taken.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from bioprop import theory
from bioprop.bench import wide
from bioprop.bench.theory import dynamics
from bioprop.bench.theory.claim import Claim, Series, listed
from bioprop.errors import ConfigError

_TIME = 'time (learning rate x steps)'
_FAR = 1e4  # gamma_0 |y| and its inverse, at which only the leading term is left.


class Case(NamedTuple):
  """A rule, what theory says of it, and networks.

  Attributes:
    label: as `dynamics.label` has it.
    rule: its name.
    gamma0: richness.
    rho: of fa.
    times: [T].
    predicted: f, H_y and G~, [3, T].
    measured: of each network, [seeds, 3, T].
  """
  label: str
  rule: str
  gamma0: float
  rho: float
  times: np.ndarray
  predicted: np.ndarray
  measured: np.ndarray

  def series(self, which: int) -> Series:
    """One of the three, over time."""
    return Series(self.label, self.times, self.predicted[which], self.measured.mean(0)[which],
                  self.measured.std(0, ddof=1)[which])


def two_layer(config) -> list[Claim]:
  """Claims of figure 5.

  Raises:
    ConfigError: if inputs are not whitened, or there is nothing to compare.
  """
  rules = [case['rule'] for case in config.cases]
  if not config.whitened or 'bp' not in rules or rules.count('fa') < 2:
    raise ConfigError('the equations of two layers are of whitened inputs, and their claims are '
                      'of bp, and of fa at several rho: set config.whitened = True, and among '
                      'config.cases {\'rule\': \'bp\'} and {\'rule\': \'fa\', \'rho\': ...} twice.')
  cases = [_case(config, dict(case)) for case in config.cases]
  fa = [one for one in cases if one.rule == 'fa']
  backprop = next(one for one in cases if one.rule == 'bp')
  return [_courses(config, cases), _kernel_falls(config, fa), _signals_rise(config, fa),
          _factor(config, backprop), _scaling(config)]


def _case(config, case: Mapping) -> Case:
  """Trains networks, and integrates the equations at the same times."""
  logging.info('%s: %d networks', dynamics.label(case), config.seeds)
  x, y = dynamics.data(config)
  rule, rho = case['rule'], case.get('rho', 0.0)
  gamma0, rate = (case.get(name, config[name]) for name in ('gamma0', 'learning_rate'))
  found = [wide.train(rule, x, y, width=max(config.widths), depth=1, gamma0=gamma0,
                      learning_rate=rate, steps=config.steps, seed=seed, rho=rho,
                      phi=dynamics.ACTIVATIONS['linear'][1]) for seed in range(config.seeds)]
  y = np.asarray(y, np.float64)
  size, times = np.linalg.norm(y), rate * np.arange(config.steps)
  along = y / size
  measured = np.stack([
      [one.f @ along, np.einsum('tpq,p,q->t', one.phi[0], along, along),
       np.einsum('tpp->t', one.g_pseudo[0]) / len(y)] for one in found])
  solved = theory.two_layer(rule, gamma0, y if rule == 'hebb' else size, times, rho=rho)
  predicted = (solved.f @ along, solved.h @ along**2, solved.g_pseudo.mean(1)) if (
      rule == 'hebb') else solved
  return Case(dynamics.label(case), rule, gamma0, rho, times, np.stack(predicted), measured)


def _courses(config, cases: Sequence[Case]) -> Claim:
  # Errors of f in units of its largest value, and of both kernels in those of H_y.
  apart = np.stack([np.abs(one.measured.mean(0) - one.predicted).max(1)
                    / np.abs(one.predicted[[0, 1, 1]]).max(1) for one in cases], 1)
  return Claim(
      'courses', 'Ordinary differential equations predict f, H_y and G~ of two-layer linear '
      'networks on whitened data.',
      '; '.join(f'max rel. error of {name} {listed(one)}' for name, one in
                zip(('f', 'H_y', 'G~'), apart)),
      '0', bool(apart.max() <= config.close), [one.series(0) for one in cases],
      (_TIME, 'output along the targets'))


def _kernel_falls(config, fa: Sequence[Case]) -> Claim:
  predicted, measured = _ends(fa, 1)
  holds = all((np.diff(values) < 0).all() for values in (predicted, measured))
  return Claim(
      'kernel', 'The larger rho, the less the kernel of the hidden layer grows along the targets.',
      listed(measured), listed(predicted), holds and _near(measured, predicted, config.close),
      [one.series(1) for one in fa], (_TIME, 'H_y'))


def _signals_rise(config, fa: Sequence[Case]) -> Claim:
  """Equation 7: dG~ / drho = 1 - a^2 / (3 a^2 / 2 + 1 + rho)."""
  predicted, measured = _ends(fa, 2)
  slopes = [np.diff(values) / np.diff([one.rho for one in fa]) for values in (predicted, measured)]
  return Claim(
      'signals', 'The larger rho, the larger G~: it rises by more than a third of rho.',
      f'{listed(measured)}; slopes {listed(slopes[1])}',
      f'{listed(predicted)}; slopes {listed(slopes[0])}',
      bool(np.min(slopes) > 1 / 3) and _near(measured, predicted, config.close),
      [one.series(2) for one in fa], (_TIME, 'G~'))


def _factor(config, backprop: Case) -> Claim:
  """Without its factor the equation is that of half the time."""
  f = backprop.series(0)
  y = np.linalg.norm(dynamics.data(config)[1])
  half = theory.two_layer('bp', backprop.gamma0, y, backprop.times / 2).f
  apart = [np.abs(f.measured - values).max() for values in (f.predicted, half)]
  return Claim(
      'factor', 'Backprop\'s error obeys d Delta/dt = -2 sqrt(1 + gamma_0^2 (y - Delta)^2) Delta, '
      'with a factor 2 that is missing in print.',
      f'max error of f {apart[0]:.3f} with it, {apart[1]:.3f} without', '0 with it',
      bool(apart[0] <= config.close * y < apart[1]),
      [f._replace(label='bp, with 2'),
       Series('bp, as printed', backprop.times, half, None)], (_TIME, 'output along the targets'))


def _scaling(config) -> Claim:
  """What H_y has grown by at the end, over gamma_0 |y|."""
  y = float(np.linalg.norm(dynamics.data(config)[1]))
  strengths = np.asarray(config.gammas) * y
  grid = np.geomspace(strengths.min() / 4, strengths.max() * 4, 50)
  series, apart, ratios, numbers = [], [], [], []
  for label, (case, limit, small, large) in _SCALINGS.items():
    measured = []
    for strength in strengths:
      # The richer, the faster: this is ten times what learning takes.
      rate = 10 / (config.steps * (1 + strength))
      found = _case(config, {**case, 'gamma0': strength / y, 'learning_rate': rate})
      grown = found.measured[:, 1, -1] - found.measured[:, 1, 0]
      measured.append((grown.mean(), grown.std(ddof=1)))
    means, spread = np.transpose(measured)
    expected = np.asarray([limit(strength) for strength in strengths])
    apart.append(np.abs(means / expected - 1).max())
    ratios += [limit(1 / _FAR) / small(1 / _FAR), limit(_FAR) / large(_FAR)]
    numbers.append(f'{label}: {listed(means)} ({listed(expected)})')
    series += [
        Series(label, grid, np.asarray([limit(one) for one in grid]), means, spread, strengths),
        Series(f'{label}, leading terms', grid,
               np.minimum(small(grid), large(grid)), None)]
  return Claim(
      'scaling', 'H_y grows as (gamma_0 y)^2/2 (bp) or (gamma_0 y)^2/(1+rho)^2 (fa) if this is '
      'small, as gamma_0 y (bp) or (2 gamma_0 y)^(2/3) (fa) if it is large.',
      f'networks (theory) {"; ".join(numbers)}',
      f'theory over leading terms, small and large: {listed(ratios)}',
      bool(max(apart) <= 2 * config.close and np.abs(np.subtract(ratios, 1)).max() < 0.02),
      series, ('gamma_0 |y|', 'H_y(end) - H_y(0)'), ('log', 'log'))


def _ends(cases: Sequence[Case], which: int) -> list[np.ndarray]:
  """Predicted and measured values at the end."""
  return [np.asarray(values) for values in zip(*(
      (one.predicted[which, -1], one.measured.mean(0)[which, -1]) for one in cases))]


def _near(measured, predicted, tolerance: float) -> bool:
  return bool((np.abs(measured - predicted) <= tolerance * np.abs(predicted)).all())


# A case, its limit as a function of gamma_0 |y|, and the limit's leading terms.
_SCALINGS = {
    'bp': ({'rule': 'bp'}, lambda s: np.sqrt(1 + s**2) - 1, lambda s: s**2 / 2, lambda s: s),
    **{f'fa rho={rho:g}': (
        {'rule': 'fa', 'rho': rho}, lambda s, rho=rho: theory.feedback_limit(s, 1.0, rho)**2,
        lambda s, rho=rho: s**2 / (1 + rho)**2, lambda s: (2 * s)**(2 / 3)) for rho in (0.0, 1.0)},
}
