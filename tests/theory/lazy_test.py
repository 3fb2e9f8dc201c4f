"""Lazy kernels: the paper's closed forms, neural-tangents, and networks of growing width."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.errors import ConvergenceError, TheoryError
from bioprop.measure import entk
from bioprop.models import MLP
from bioprop.theory.activations import Quadrature, ReLU
from bioprop.theory.lazy import lazy_kernels

RNG = np.random.RandomState(0)
SAMPLES = RNG.randn(4, 10)
KEEPING = ReLU(scale=math.sqrt(2))


def on_a_circle(*angles):
  """Samples of norm sqrt(D), the first at angle 0."""
  return jnp.asarray([[math.sqrt(2) * math.cos(a), math.sqrt(2) * math.sin(a)] for a in angles])


# On the sphere, three layers of sqrt(2) ReLUs, at the angles 0, pi/4, pi/2, pi: from
# cos th_{l+1} = [sin th_l + (pi - th_l) cos th_l] / pi and K = SUM_l rho^{3-l} cos th_l
# PROD_{k >= l} (1 - th_k / pi), summed by hand.
GOLDEN = {
    0.0: (1, .820913, .604826, .493731), 0.25: (1.328125, 1.011493, .694802, .541725),
    0.5: (1.875, 1.290165, .800721, .589720), 1.0: (4, 2.233324, 1.060388, .685709),
    'gln': (4, 1.193243, 0, 0),
}


@pytest.mark.parametrize('x64', [False, True])
@pytest.mark.parametrize('case', GOLDEN)
def test_golden_values(case, x64):
  """Of rho-FA and GLN, in both precisions."""
  with jax.enable_x64(x64):
    x = on_a_circle(0, math.pi / 4, math.pi / 2, math.pi)
    options = {'rule': 'gln'} if case == 'gln' else {'rule': 'fa', 'rho': case}
    got = lazy_kernels(x, 3, KEEPING, **options).entk
    assert got.dtype == x.dtype == (jnp.float64 if x64 else jnp.float32)
    np.testing.assert_allclose(got[0], GOLDEN[case], rtol=1e-6, atol=1e-6)


# Printed by neural-tangents 0.6.5 (jax 0.4.30, numpy 1.26):
#   jax.config.update('jax_enable_x64', True)
#   x, x2 = np.random.RandomState(0).randn(3, 5), np.random.RandomState(1).randn(2, 5)
#   dense = lambda n: stax.Dense(n, W_std=1.3, b_std=0.4, parameterization='ntk')
#   kernel = stax.serial(dense(8), phi(), dense(8), phi(), dense(1))[2]
#   for other in (None, x2):
#     print(kernel(x, other, 'ntk'), kernel(x, other, 'nngp'))
# with phi = stax.Relu and stax.Erf.
PEER = {
    'relu': (
        [[9.9966642, 1.23500994, 2.50842782], [1.23500994, 2.26453947, 1.51041634],
         [2.50842782, 1.51041634, 2.89209472]],
        [[3.48395473, 0.95077616, 1.38157369], [0.95077616, 0.90657982, 0.8125622],
         [1.38157369, 0.8125622, 1.11576491]],
        [[2.29483414, 1.57559137], [0.77353545, 3.15260237], [1.0276647, 1.93382017]],
        [[1.4633036, 1.40390062], [0.66135747, 1.37621182], [0.78337658, 1.14588528]]),
    'erf': (
        [[4.0719278, 0.23795204, 1.22601143], [0.23795204, 2.69002034, 1.50428803],
         [1.22601143, 1.50428803, 2.90803407]],
        [[1.04298099, 0.22160897, 0.53637722], [0.22160897, 0.90945714, 0.62388072],
         [0.53637722, 0.62388072, 0.94170702]],
        [[0.71420528, -0.16822992], [-0.11150978, 2.40538195], [0.25567854, 0.9983146]],
        [[0.37581011, 0.08362342], [0.10831954, 0.83656604], [0.22857647, 0.46842342]]),
}


@pytest.mark.parametrize('phi', PEER)
@pytest.mark.parametrize('x64', [False, True])
def test_against_neural_tangents(phi, x64):
  """Backprop with biases, of one set of samples and of two: the NTK, and the output's kernel."""
  with jax.enable_x64(x64):
    x, x2 = (jnp.asarray(np.random.RandomState(seed).randn(n, 5)) for seed, n in ((0, 3), (1, 2)))
    options = {'weight_variance': 1.3**2, 'bias_variance': 0.4**2}
    for other, (ntk, nngp) in ((None, PEER[phi][:2]), (x2, PEER[phi][2:])):
      got = lazy_kernels(x, 2, phi, x2=other, **options)
      tolerance = 1e-7 if x64 else 1e-5
      np.testing.assert_allclose(got.entk, ntk, rtol=tolerance, atol=tolerance)
      np.testing.assert_allclose(got.layers[-1], nngp, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_rules_differ_in_pseudo_gradients():
  """By the factor of each layer that an error is sent through; other kernels are backprop's."""
  x, depth = jnp.asarray(SAMPLES), 3
  options = {'bias_variance': (0.3, 0.0, 0.2, 0.1), 'bias_rate': (1.0, 0.5, 0.0, 2.0),
             'weight_variance': (2.0, 1.5, 0.7, 1.2)}
  exact = lazy_kernels(x, depth, 'tanh', **options)
  factors = {
      **dict.fromkeys(('align_prop', 'align_ada', 'align_zero'), (1, 1, 1, 1)),
      **dict.fromkeys(('dfa', 'hebb', 'last_layer'), (0, 0, 0, 1)), 'fa': (0, 0, 0, 1)}
  cases = [(rule, {}, factor) for rule, factor in factors.items()]
  cases.append(('fa', {'rho': 0.5, 'scale': 1.2}, (0.6**3, 0.6**2, 0.6, 1)))
  cases.append(('fa', {'rho': 1.0}, (1, 1, 1, 1)))
  for rule, own, factor in cases:
    got = lazy_kernels(x, depth, 'tanh', rule, **own, **options)
    factor = np.asarray(factor, np.float64)[:, None, None]
    np.testing.assert_array_equal(got.phi, exact.phi)
    np.testing.assert_array_equal(got.g, exact.g)
    np.testing.assert_allclose(got.g_pseudo, factor * exact.g, rtol=1e-12)
    np.testing.assert_allclose(got.layers, factor * exact.layers, rtol=1e-12)
    np.testing.assert_allclose(got.entk, got.layers.sum(0), rtol=1e-12)


@pytest.mark.usefixtures('x64')
def test_a_linear_network_with_biases():
  """Each layer's kernels by hand, where a dual is its argument."""
  x = jnp.asarray(SAMPLES)
  w, b, r = (2.0, 1.5, 0.7), (0.3, 0.2, 9.0), (1.0, 0.0, 2.0)
  (s0, s1, s2), (b0, b1, _), (r0, r1, r2) = w, b, r
  inputs = SAMPLES @ SAMPLES.T / 10
  phi = [inputs, s0 * inputs + b0, s1 * (s0 * inputs + b0) + b1]
  got = lazy_kernels(x, 2, 'linear', 'fa', rho=0.5, weight_variance=w, bias_variance=b, bias_rate=r)
  np.testing.assert_allclose(got.phi, phi)
  np.testing.assert_allclose(got.g[:, 0, 1], (s1 * s2, s2, 1))
  want = [0.25 * s1 * s2 * (s0 * phi[0] + r0), 0.5 * s2 * (s1 * phi[1] + r1), s2 * phi[2] + r2]
  np.testing.assert_allclose(got.layers, want)


@pytest.mark.parametrize('options', [{}, {'rule': 'gln'}], ids=str)
def test_the_diagonal_is_exact(options):
  """In float32, where an angle of sqrt(eps) would be seen: a ReLU's moments are halved."""
  x = jnp.asarray(RNG.randn(200, 7), jnp.float32)
  got = lazy_kernels(x, 4, 'relu', **options)
  diagonal = lambda k: np.diagonal(k, axis1=-2, axis2=-1)
  half = 0.5 ** np.arange(5)[:, None]
  np.testing.assert_allclose(diagonal(got.phi), half * np.mean(np.square(x), 1), rtol=2e-6)
  np.testing.assert_allclose(diagonal(got.g), half[::-1] * np.ones(200), rtol=2e-6)


@pytest.mark.parametrize('rule', ['bp', 'gln'])
@pytest.mark.parametrize('phi', ['relu', pytest.param('tanh', marks=pytest.mark.slow)])
@pytest.mark.usefixtures('x64')
def test_two_sets_of_samples(rule, phi):
  """Are blocks of one; under jit too."""
  x = jnp.asarray(SAMPLES)
  make = jax.jit(lambda x, x2: lazy_kernels(x, 2, phi, rule, x2=x2, bias_variance=0.1))
  whole, part = make(x, None), make(x[:3], x[2:])
  for one, other in zip(whole, part):
    np.testing.assert_allclose(other, one[..., :3, 2:], rtol=1e-6)


GAMMA0 = 0.7
# Of each rule its options, and what the theory is told.
OPTIONS = {
    'bp': ({}, {}), 'align_prop': ({}, {}), 'align_ada': ({}, {}), 'align_zero': ({}, {}),
    'fa': ({'rho': 0.5, 'scale': 1.0}, {'rho': 0.5}), 'dfa': ({'scale': 1 / GAMMA0}, {}),
    'hebb': ({'scale': 1 / GAMMA0, 'reduction': 'sum'}, {}), 'last_layer': ({}, {}),
    'gln': ({}, {}),
}
# Rule, its options, hidden layers, nonlinearity, biases, and what the theory is told.
# Three hidden layers: a first, one between, and a last.
NETWORKS = {rule: (rule, own, 3, 'relu', False, told) for rule, (own, told) in OPTIONS.items()} | {
    'bp-tanh-biases': ('bp', {}, 2, 'tanh', True, {}),
    'fa-tanh': ('fa', {'rho': 0.8, 'scale': 0.9}, 2, 'tanh', False, {'rho': 0.8, 'scale': 0.9}),
    'gln-biases': ('gln', {}, 2, 'relu', True, {}),
}
WIDTHS, SEEDS = (64, 512), 48


def measured(rule, options, depth, phi, biases, width):
  """gamma^2 times the eNTKs of networks, by layer, [SEEDS, depth + 1, n, n]."""
  model = MLP(classes=1, hidden=(width,) * depth, activation=phi, parametrization='mup',
              gamma0=GAMMA0, use_bias=biases)
  if rule == 'hebb':  # So that its pseudo-gradient is Delta phi(h), as the paper's.
    options = {**options, 'scale': options['scale'] / width}
  x, error = jnp.asarray(SAMPLES, jnp.float32), jnp.asarray([[1.0], [-2.0], [0.5], [1.5]])
  plugged = bioprop.plug(model, bioprop.make(rule, **options))
  jacobians = bioprop.measure.jacobians(plugged, x)
  jacobians.true(plugged.init(jax.random.key(0), x))  # Checks numbers, which has to be outside jit.

  def kernels(key):
    variables = plugged.init(key, x)
    if rule == 'hebb':  # It is quadratic in the error: K e, and not K.
      pseudo, right = jacobians.update(variables), (x, error)
    else:
      pseudo, right = jacobians.pseudo(variables), x
    found = entk(jacobians.true(variables), pseudo, x, right, trace=True, per_layer=True)
    layers = [sum(k for path, k in found.items() if path.startswith(f'Dense_{i}/'))
              for i in range(depth + 1)]
    stacked = model.learning_rate_factor * jnp.stack(layers)
    return stacked / error.reshape(1, 1, 4) if rule == 'hebb' else stacked

  keys = jax.random.split(jax.random.key(1), SEEDS)
  of_all = lambda keys: jax.lax.map(kernels, keys, batch_size=8)
  # The suite optimises nothing, and this runs for longer than it is compiled.
  return jax.jit(of_all, compiler_options={'xla_backend_optimization_level': 1})(keys)


@pytest.mark.slow
@pytest.mark.parametrize('case', NETWORKS)
def test_networks_converge(case):
  """All layers' kernels do, as N^(-1/2), and their means over seeds to a few percent."""
  rule, options, depth, phi, biases, told = NETWORKS[case]
  want = lazy_kernels(jnp.asarray(SAMPLES, jnp.float32), depth, phi, rule,
                      bias_rate=float(biases), **told)
  size = jnp.linalg.norm(want.entk)
  errors = []
  for width in WIDTHS:
    away = measured(rule, options, depth, phi, biases, width) - want.layers[None]
    errors.append(jnp.linalg.norm(away.reshape(SEEDS, -1), axis=1) / size)
  # Means of logarithms: of narrow ReLU networks, the largest errors would decide other means.
  slope = np.diff([float(jnp.mean(jnp.log(e))) for e in errors]) / np.diff(np.log(WIDTHS))
  assert abs(slope[0] + 0.5) < 0.07
  means = jnp.linalg.norm(jnp.mean(away, 0), axis=(1, 2)) / size
  assert np.all(np.asarray(means) < 0.05)


def by_sums(f, slope, x):
  """K at depth 2 under backprop, from sums over grids so fine that nothing is left to doubt."""
  z = np.arange(-10, 10, 1 / 80)
  weights = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()

  def dual(f, s):
    root = lambda i, j: np.sqrt(max(0, s[j, j] - s[i, j]**2 / s[i, i]))
    return np.array([[weights @ (f(np.sqrt(s[i, i]) * z) * (f(
        s[i, j] / np.sqrt(s[i, i]) * z[:, None] + root(i, j) * z) @ weights))
        for j in range(len(s))] for i in range(len(s))])

  inputs = x @ x.T / x.shape[1]
  first = dual(f, inputs)
  second, slopes = dual(f, first), [dual(slope, s) for s in (inputs, first)]
  return inputs * slopes[0] * slopes[1] + first * slopes[1] + second


STEEP = lambda h: jnp.tanh(2 * h) / 2


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('squared', [0.5, 4.0])
def test_steep_functions(squared):
  """As many terms as they need: 320 leave 1e-4 where pre-activations are large."""
  x = RNG.randn(3, 5)
  x *= np.sqrt(squared * 5 / np.square(x).sum(1, keepdims=True))
  want = by_sums(lambda h: np.tanh(2 * h) / 2, lambda h: 1 / np.cosh(2 * h)**2, x)
  got = lazy_kernels(jnp.asarray(x), 2, STEEP).entk
  np.testing.assert_allclose(got, want, atol=1e-8 * np.abs(want).max(), rtol=0)
  inside = jax.jit(lambda x: lazy_kernels(x, 2, STEEP).entk)(jnp.asarray(x))
  if squared < 1:
    np.testing.assert_allclose(inside, want, atol=1e-8)
  else:  # There the terms are not chosen.
    assert np.isnan(inside).all()
    few = lazy_kernels(jnp.asarray(x), 2, Quadrature(STEEP)).entk
    assert 1e-5 < np.abs(few - want).max() / np.abs(want).max() < 1e-2


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_functions_that_are_too_steep():
  """What was reached is said; a quadrature is taken as it is."""
  x = jnp.asarray(10 * SAMPLES)
  with pytest.raises(ConvergenceError, match=r'at 1280 terms, is about 0\..* 1.5e-08 was to be'):
    lazy_kernels(x, 1, STEEP)
  assert jnp.isfinite(lazy_kernels(x, 1, Quadrature(STEEP)).entk).all()


@pytest.mark.parametrize('options, words', [
    ({'rule': 'target'}, 'the rules are bp, align_prop'),
    ({'depth': 0}, 'at least 1'),
    ({'depth': 2.0}, 'at least 1'),
    ({'rule': 'fa', 'rho': 1.5}, r'in \[0, 1\]'),
    ({'rule': 'fa', 'rho': math.nan}, r'in \[0, 1\]'),
    ({'rule': 'fa', 'scale': -1.0}, 'at least 0'),
    ({'rule': 'dfa', 'rho': 0.5}, 'of the feedback of rule=\'fa\''),
    ({'weight_variance': -1.0}, 'weight_variance=-1.0 is to be'),
    ({'weight_variance': (1.0, 1.0)}, 'sequence of 3'),
    ({'bias_rate': (0.0, math.inf, 1.0)}, 'bias_rate'),
    ({'x': jnp.ones(4)}, r'floating \[n, D\]'),
    ({'x': jnp.ones((4, 3), jnp.int32)}, 'jnp.float32'),
    ({'x': jnp.asarray([[1.0, jnp.nan]])}, 'x has entries that are infinite or NaN'),
    ({'x2': jnp.asarray([[1.0, jnp.inf, 1.0]])}, 'x2 has entries that are infinite'),
    ({'x2': jnp.ones((4, 2))}, 'x2 has 2 features and x has 3'),
    ({'x2': jnp.ones((4, 3, 1))}, 'x2 is float32'),
    ({'phi': 'swish'}, 'one of linear'),
])
def test_errors(options, words):
  """What is out of range is named, with what to type."""
  with pytest.raises(TheoryError, match=words):
    lazy_kernels(**{'x': jnp.ones((4, 3)), 'depth': 2, **options})
