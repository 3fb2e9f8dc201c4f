"""Figure 5: narrower networks, closed forms written out, and theories that are wrong."""
import numpy as np
import pytest

from bioprop import theory
from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory import two_layer
from bioprop.bench.theory.experiments import run
from bioprop.errors import ConfigError

GAMMA0, Y = 1.5, 2**0.5
CASES = ({'rule': 'bp'}, {'rule': 'fa', 'rho': 0.0}, {'rule': 'fa', 'rho': 1.0},
         {'rule': 'hebb', 'gamma0': 0.3})


def small():
  """Two samples, and steps four times those of the configuration."""
  config = config_lib.base('two_layer')
  config.samples, config.features, config.whitened = 2, 2, True
  config.gamma0, config.learning_rate, config.steps = GAMMA0, 0.04, 120
  config.cases, config.gammas = CASES, (1.0,)
  config.widths, config.seeds = (4000,), 3
  config.close = 0.08
  return config


@pytest.fixture(scope='module')
def cases():
  """All cases, trained."""
  return [two_layer._case(small(), case) for case in CASES]


def limit(rho):
  """a at the end, by bisection of a^3 / 2 + (1 + rho) a = gamma_0 y."""
  low, high = 0.0, 10.0
  for _ in range(60):
    a = (low + high) / 2
    low, high = (a, high) if a**3 / 2 + (1 + rho) * a < GAMMA0 * Y else (low, a)
  return low


@pytest.mark.slow
def test_courses(cases):
  """Ends are the closed forms; networks follow."""
  claim = two_layer._courses(small(), cases)
  assert claim.agrees and [one.label for one in claim.series] == [
      'bp', 'fa rho=0', 'fa rho=1', 'hebb gamma0=0.3']
  for one in cases:
    np.testing.assert_allclose(one.times, 0.04 * np.arange(120))
    np.testing.assert_allclose(one.predicted[0, -1], Y, rtol=0.02)
  grown = np.sqrt(1 + (GAMMA0 * Y)**2)
  np.testing.assert_allclose(cases[0].predicted[1:, -1], grown, rtol=1e-3)
  np.testing.assert_allclose(cases[0].measured[:, 1:, -1].mean(0), grown, rtol=0.05)
  for one, rho in zip(cases[1:3], (0, 1)):
    want = 1 + limit(rho)**2, rho + limit(rho)**2 / 2
    np.testing.assert_allclose(one.predicted[1:, -1], want, rtol=2e-3)
    np.testing.assert_allclose(one.measured[:, 1:, -1].mean(0), want, rtol=0.06)
  # Hebb: each sample by itself, in small steps of Euler.
  delta, h, step = 1.0, 1.0, 1e-3
  for _ in range(round(cases[3].times[-1] / step)):
    delta, h = (delta - step * (h + 0.3 * delta * (1 - delta)) * delta,
                h + step * 2 * 0.3 * delta**2 * h)
  np.testing.assert_allclose(cases[3].predicted[:, -1], (Y * (1 - delta), h,
                                                         0.3 * delta * (1 - delta)), rtol=0.01)


@pytest.mark.slow
def test_correlated_feedback(cases):
  """H_y falls with rho and G~ rises; in the order of the other end neither does."""
  config, fa = small(), cases[1:3]
  assert two_layer._kernel_falls(config, fa).agrees
  assert two_layer._signals_rise(config, fa).agrees
  assert not two_layer._kernel_falls(config, fa[::-1]).agrees
  flat = [one._replace(predicted=one.predicted * np.array([1, 1, 1 - 0.4 * one.rho])[:, None],
                       measured=one.measured * np.array([1, 1, 1 - 0.4 * one.rho])[:, None])
          for one in fa]
  assert not two_layer._signals_rise(config, flat).agrees


@pytest.mark.slow
def test_factor_of_backprop(cases):
  """The solution with the factor is that of a finite difference; without it networks are not."""
  claim = two_layer._factor(small(), cases[0])
  assert claim.agrees
  right, printed = claim.series
  for one, factor in ((right, 2), (printed, 1)):
    delta = Y - one.predicted
    slope = np.gradient(delta, one.x, edge_order=2)
    want = -factor * np.sqrt(1 + (GAMMA0 * (Y - delta))**2) * delta
    np.testing.assert_allclose(slope[1:-1], want[1:-1], atol=0.05)


@pytest.mark.slow
def test_theory_without_the_factor_is_found(cases, monkeypatch):
  """As printed in the paper."""
  right = theory.two_layer

  def printed(rule, gamma0, y, times, **kwargs):
    return right(rule, gamma0, y, np.asarray(times) / (2 if rule == 'bp' else 1), **kwargs)

  monkeypatch.setattr(theory, 'two_layer', printed)
  case = two_layer._case(small(), CASES[0])
  assert not two_layer._courses(small(), [case, *cases[1:]]).agrees
  assert not two_layer._factor(small(), case).agrees


@pytest.mark.slow
def test_scaling(monkeypatch):
  """Networks at one richness; limits and leading terms; another exponent is found."""
  config = small()
  only = {name: two_layer._SCALINGS[name] for name in ('fa rho=0',)}
  monkeypatch.setattr(two_layer, '_SCALINGS', only)
  claim = two_layer._scaling(config)
  assert claim.agrees
  exact, leading = claim.series
  a = np.sqrt(exact.predicted)
  np.testing.assert_allclose(a**3 / 2 + a, exact.x, rtol=1e-6)
  np.testing.assert_allclose(leading.predicted, np.minimum(exact.x**2, (2 * exact.x)**(2 / 3)))
  case, end, weak, _ = only['fa rho=0']
  monkeypatch.setitem(only, 'fa rho=0', (case, end, weak, lambda s: 2 * s**(2 / 3)))
  assert not two_layer._scaling(config).agrees
  monkeypatch.setitem(only, 'fa rho=0', (case, lambda s: end(s) * 1.3, weak, leading_terms))
  assert not two_layer._scaling(config).agrees


def leading_terms(s):
  """Of fa, if gamma_0 y is large."""
  return (2 * s)**(2 / 3)


def test_what_cannot_be_compared_is_refused():
  """Feedback alignment at one rho alone; inputs that are not whitened."""
  for name, value in (('cases', CASES[:2]), ('whitened', False)):
    config = small()
    config[name] = value
    with pytest.raises(ConfigError, match='whitened'):
      run(config)


@pytest.mark.slow
def test_experiment():
  """All claims, in their order."""
  claims = run(small())
  assert [claim.name for claim in claims] == ['courses', 'kernel', 'signals', 'factor', 'scaling']
  assert all(claim.agrees for claim in claims), claims
