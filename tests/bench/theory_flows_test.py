"""Conservation and minimum norm: short runs, expectations written out, and what is not so."""
import jax
import numpy as np
import pytest

from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory import flows
from bioprop.bench.theory.experiments import run
from bioprop.errors import ConfigError


def chain():
  """Two hidden layers, two rates."""
  config = config_lib.base('conservation')
  config.samples, config.features = 6, 8
  config.depth, config.widths, config.seeds = 2, (16,), 3
  config.learning_rate, config.steps = 0.01, 200
  config.cases = tuple({'activation': activation, 'learning_rate': rate}
                       for activation in ('relu', 'tanh') for rate in (0.01, 0.005))
  return config


def linear():
  """Fewer samples than inputs."""
  config = config_lib.base('minimum_norm')
  config.samples, config.features, config.widths, config.data_seed = 4, 9, (10,), 1
  config.learning_rate, config.steps, config.seeds = 0.05, 1200, 2
  config.cases = tuple({'start': start} for start in ('zero', 'in the span', 'generic'))
  return config


def by_name(claims):
  """The claims by name."""
  return {claim.name: claim for claim in claims}


@pytest.fixture(scope='module')
def conserved():
  """The claims of the chain."""
  return by_name(run(chain()))


@pytest.fixture(scope='module')
def fitted():
  """The claims of linear networks."""
  return by_name(run(linear()))


@pytest.mark.slow
def test_conservation(conserved):
  """All claims hold, in their order; half the rate, half the change."""
  assert list(conserved) == ['conserved', 'identity', 'tanh', 'bound', 'cosine']
  assert all(claim.agrees for claim in conserved.values()), conserved
  change, half = (one.measured for one in conserved['conserved'].series)
  np.testing.assert_allclose(change[1] / change[0], 2, rtol=0.1)
  assert half.min() > 10 * change.max() > 0


def test_identity_by_hand():
  """Two layers by NumPy from the library's weights: the same Q, the same drift."""
  config = chain()
  config.depth, config.cases = 1, ({'activation': 'relu', 'learning_rate': 0.01},)
  with jax.enable_x64(True):
    course = flows._courses(config, config.cases[0])[0]
    x, y = map(np.asarray, flows._data(config))
    variables = flows._double(flows._plugged(config, 'relu', 1)[1][0])
    w1, w2 = map(np.array, flows._layers(variables['params']))
    b = np.array(flows._layers(variables['feedback'])[1])
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
  assert x.dtype == w1.dtype == course.invariant.dtype == np.float64
  for step in range(200):
    np.testing.assert_allclose(course.invariant[step], [np.sum(w1**2) / 2 - np.sum(w2 * b)],
                               atol=1e-10)
    h = x @ w1
    error = np.maximum(h, 0) @ w2 - y
    first, second = x.T @ ((error @ b.T) * (h > 0)), np.maximum(h, 0).T @ error
    np.testing.assert_allclose(course.drift[step], [1e-4 * np.sum(first**2) / 2], atol=1e-12)
    w1, w2 = w1 - 0.01 * first, w2 - 0.01 * second


def test_steps_take_the_same_time():
  """The smaller the rate, the more of them."""
  config = chain()
  assert [flows._steps(config, case) for case in config.cases] == [200, 400, 200, 400]


def course(invariant, drift=0.0, half=1.0, cosine=1.0):
  """A course of two steps and one layer, made up."""
  column = lambda first, last: np.array([[first], [last]], float)
  return flows.Course(column(0, invariant), column(drift, 0), column(0, half), column(1, 1),
                      column(cosine, cosine))


def test_wrong_claims_are_found():
  """A change that does not fall with the rate, a drift that is not Q's, conserving tanh units."""
  config = chain()
  good = {('relu', rate): course(rate / 10, rate / 10) for rate in (0.01, 0.1)}
  good |= {('tanh', rate): course(0.5) for rate in (0.01, 0.1)}
  assert flows._conserved(config, good).agrees
  assert flows._identity(good).agrees
  assert flows._not_conserved(config, good).agrees
  assert not flows._conserved(config, good | {('relu', 0.1): course(0.002, 0.002)}).agrees
  assert not flows._conserved(config, {
      at: one._replace(half=one.half / 1e3) for at, one in good.items()}).agrees
  assert not flows._identity(good | {('relu', 0.1): course(0.01, 0.0099)}).agrees
  assert not flows._not_conserved(config, good | {('tanh', 0.01): course(0.05)}).agrees
  assert not flows._not_conserved(config, good | {('relu', 0.1): course(0.1)}).agrees


@pytest.mark.slow
def test_alignment_that_is_lost_is_found(conserved):
  """Independent feedback satisfies neither claim of aligned feedback."""
  config = chain()
  case = {'activation': 'relu', 'learning_rate': 0.01}
  with jax.enable_x64(True):
    free = flows._courses(config, case)
  times = 0.01 * np.arange(200)
  assert not flows._bounded(config, times, free).agrees
  assert not flows._cosines(times, {'aligned': free, 'independent': free}).agrees
  start = [one.measured[0] for one in conserved['bound'].series[:-1]]
  np.testing.assert_allclose(start, 1, rtol=1e-12)
  assert conserved['bound'].series[-1].predicted[0] >= 0.5 - 1e-6


@pytest.mark.slow
def test_minimum_norm(fitted):
  """Both claims hold, and bounds are <B, W_2> times the smallest eigenvalue."""
  assert list(fitted) == ['distance', 'rate']
  assert all(claim.agrees for claim in fitted.values()), fitted
  zero, inside, generic = (one.measured for one in fitted['distance'].series)
  assert max(zero[-1], inside[-1]) < 1e-8 and generic[-1] > 0.05
  np.testing.assert_allclose(zero[0], 1, rtol=1e-12)  # W_1 = 0: all of the norm is missing.
  with jax.enable_x64(True):
    x = np.asarray(flows._data(linear())[0])
  lowest = np.linalg.eigvalsh(x @ x.T)[0]
  for one in fitted['rate'].series:
    rate = -np.diff(np.log(one.predicted)) / np.diff(one.x)
    np.testing.assert_allclose(rate, rate[0], rtol=1e-6)
    np.testing.assert_allclose(one.measured[0], one.predicted[0])
    assert 0 < rate[0] / lowest < 2  # <B, W_2> begins near |W_2|^2, which is about 1.


def fit(times, rate=2.0, inner=1.0, distance=0.0, outside=0.0):
  """A training that was made up."""
  full = lambda value: np.full(len(times), float(value))
  return flows.Fit(np.exp(-rate * times), full(inner), full(distance), full(outside))


def test_wrong_solutions_are_found():
  """Slower than the bound, not at the minimum, elsewhere than theory says."""
  times, x = np.linspace(0, 1, 11), np.eye(2, 3)
  starts = lambda **zero: {'zero': [fit(times, **zero)],
                           'generic': [fit(times, distance=0.3, outside=0.3)]}
  assert flows._distance(times, starts()).agrees
  assert not flows._distance(times, starts(distance=1e-3)).agrees
  assert not flows._distance(times, starts() | {'generic': [fit(times, distance=0.3)]}).agrees
  assert flows._rate(times, x, starts()).agrees
  assert not flows._rate(times, x, starts(rate=0.5)).agrees
  assert not flows._rate(times, x, starts(inner=3.0)).agrees


@pytest.mark.parametrize('config, told', [(chain(), 'relu is compared'), (linear(), 'in the span')])
def test_cases_of_something_else_are_refused(config, told):
  """The first case alone leaves nothing to compare."""
  config.cases = config.cases[:1]
  with pytest.raises(ConfigError, match=told):
    run(config)
