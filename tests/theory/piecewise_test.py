"""Functions with kinks and jumps: expectations against integrals in two dimensions, split there."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from bioprop.errors import TheoryError
from bioprop.theory import jumps
from bioprop.theory.activations import Cos, Erf, Linear, Quadrature, ReLU, Sin
from bioprop.theory.lazy import lazy_kernels
from bioprop.theory.piecewise import Affine, Piecewise
from bioprop.theory.recognise import activation_of

SIGMOID, SECH2 = scipy.special.expit, lambda h: 1 / np.cosh(h)**2
ON = lambda h: np.where(h > 0, 1.0, 0.0)
CLAMPED = lambda h: np.minimum(h, 0)
DENSITY = lambda h: np.exp(-h * h / 2) / math.sqrt(2 * math.pi)
CUMULATIVE = scipy.special.ndtr
BOX = lambda low, high: lambda h: ON(h - low) - ON(h - high)
GELU = math.sqrt(2 / math.pi)


def gelu_slope(h):
  inner, slope = GELU * (h + 0.044715 * h**3), GELU * (1 + 3 * 0.044715 * h**2)
  return (1 + np.tanh(inner)) / 2 + h * SECH2(np.clip(inner, -300, 300)) * slope / 2


def mish_slope(h):
  t = np.tanh(np.logaddexp(0, h))
  return t + h * (1 - t * t) * SIGMOID(h)


A, L = 1.6732632423543772, 1.0507009873554805
# Each as a user writes it; phi, phi' by hand; and the places of both.
KINKED = {
    'relu6': (jax.nn.relu6, lambda h: np.clip(h, 0, 6), BOX(0, 6), (0, 6)),
    'hard_tanh': (jax.nn.hard_tanh, lambda h: np.clip(h, -1, 1), BOX(-1, 1), (-1, 1)),
    'elu': (jax.nn.elu, lambda h: np.where(h > 0, h, np.expm1(CLAMPED(h))),
            lambda h: np.where(h > 0, 1, np.exp(CLAMPED(h))), (0,)),
    'selu': (jax.nn.selu, lambda h: L * np.where(h > 0, h, A * np.expm1(CLAMPED(h))),
             lambda h: L * np.where(h > 0, 1, A * np.exp(CLAMPED(h))), (0,)),
    'celu': (lambda h: jax.nn.celu(h, 0.5),
             lambda h: np.where(h > 0, h, np.expm1(2 * CLAMPED(h)) / 2),
             lambda h: np.where(h > 0, 1, np.exp(2 * CLAMPED(h))), (0,)),
    'hard_swish': (jax.nn.hard_swish, lambda h: h * np.clip(h + 3, 0, 6) / 6,
                   lambda h: np.clip(h + 3, 0, 6) / 6 + h * BOX(-3, 3)(h) / 6, (-3, 3)),
    'threshold': (lambda h: jnp.maximum(h - 1, 0), lambda h: np.maximum(h - 1, 0),
                  lambda h: ON(h - 1), (1,)),
    'early': (lambda h: jax.nn.relu(h + 0.1), lambda h: np.maximum(h + 0.1, 0),
              lambda h: ON(h + 0.1), (-0.1,)),
    'sum': (lambda h: jnp.tanh(h) + jax.nn.relu(h), lambda h: np.tanh(h) + h * ON(h),
            lambda h: SECH2(h) + ON(h), (0,)),
    'square': (lambda h: jnp.square(jax.nn.relu(h)), lambda h: h * h * ON(h),
               lambda h: 2 * h * ON(h), (0,)),
    'sign': (jnp.sign, np.sign, lambda h: 0 * h, (0,)),
    'step': (lambda h: jnp.where(h > 0.5, 1.0, 0.0).astype(h.dtype), lambda h: ON(h - 0.5),
             lambda h: 0 * h, (0.5,)),
    'gate': (lambda h: jnp.where(h > 0.3, jnp.tanh(h), 0), lambda h: np.tanh(h) * ON(h - 0.3),
             lambda h: SECH2(h) * ON(h - 0.3), (0.3,)),
    'soft_sign': (jax.nn.soft_sign, lambda h: h / (1 + np.abs(h)),
                  lambda h: 1 / (1 + np.abs(h))**2, (0,)),
    'backwards': (lambda h: jax.nn.relu(-h), lambda h: np.maximum(-h, 0), lambda h: -ON(-h), (0,)),
}
SMOOTH = {
    'gelu': (jax.nn.gelu, lambda h: h * (1 + np.tanh(GELU * (h + 0.044715 * h**3))) / 2,
             gelu_slope, ()),
    'exact gelu': (lambda h: jax.nn.gelu(h, approximate=False), lambda h: h * CUMULATIVE(h),
                   lambda h: CUMULATIVE(h) + h * DENSITY(h), ()),
    'silu': (jax.nn.silu, lambda h: h * SIGMOID(h),
             lambda h: SIGMOID(h) * (1 + h * SIGMOID(-h)), ()),
    'mish': (jax.nn.mish, lambda h: h * np.tanh(np.logaddexp(0, h)), mish_slope, ()),
    'softplus': (jax.nn.softplus, lambda h: np.logaddexp(0, h), SIGMOID, ()),
    'tanh': (jnp.tanh, np.tanh, SECH2, ()),
    'gauss': (lambda h: jnp.exp(-h**2), lambda h: np.exp(-h * h), lambda h: -2 * h * np.exp(-h * h),
              ()),
    'cube': (lambda h: h**3, lambda h: h**3, lambda h: 3 * h**2, ()),
    'parabola': (lambda h: h**2, np.square, lambda h: 2 * h, ()),
}
CLOSED = {
    'line': (lambda h: 2 * h + 1, lambda h: 2 * h + 1, lambda h: 0 * h + 2, ()),
    'relu': (lambda h: jnp.where(h > 0, h, 0.01 * h), lambda h: h * (0.01 + 0.99 * ON(h)),
             lambda h: 0.01 + 0.99 * ON(h), (0,)),
    'moved': (lambda h: 3 - 2 * jnp.abs(h), lambda h: 3 - 2 * np.abs(h), lambda h: -2 * np.sign(h),
              (0,)),
    'erf': (lambda h: 1 + 2 * jax.lax.erf(0.7 * h), lambda h: 1 + 2 * scipy.special.erf(0.7 * h),
            lambda h: 2.8 / math.sqrt(math.pi) * np.exp(-0.49 * h * h), ()),
    'wave': (lambda h: 2 * jnp.cos(1.5 * h) - 1, lambda h: 2 * np.cos(1.5 * h) - 1,
             lambda h: -3 * np.sin(1.5 * h), ()),
}
ALL = {**KINKED, **SMOOTH, **CLOSED}
# Of every unit interval, and standard deviations: right to 5e-10.
NODES, REACH = np.polynomial.legendre.leggauss(14), 9


def rule(edges):
  """Gauss and Legendre's nodes between edges [..., E], and weights of a normal density."""
  nodes, weights = NODES
  edges = np.sort(np.clip(edges, -REACH, REACH), -1)
  low, high = edges[..., :-1, None], edges[..., 1:, None]
  z = ((low + high) / 2 + (high - low) / 2 * nodes).reshape(*edges.shape[:-1], -1)
  w = ((high - low) / 2 * weights).reshape(z.shape)
  return z, w * DENSITY(z)


def expectation(f, g, at, aa, ab, bb):
  """E f(u) g(v) of functions that are smooth between the places `at`."""
  c = ab / math.sqrt(aa * bb)
  at = np.asarray(at, float)
  inner = np.arange(-REACH, REACH + 1.0)
  if abs(c) == 1:
    z, w = rule(np.concatenate([inner, at / math.sqrt(aa), c * at / math.sqrt(bb)]))
    return w @ (f(math.sqrt(aa) * z) * g(c * math.sqrt(bb) * z))
  rest = math.sqrt((1 - c) * (1 + c))
  steps = min(rest, 1) * 2.0**np.arange(-1, 12)
  around = np.concatenate([[0], steps, -steps])
  turns = np.concatenate([at / math.sqrt(aa), at / (c * math.sqrt(bb)) if c else at])
  z, w = rule(np.concatenate([inner, np.add.outer(turns, around).ravel()]))
  total = 0.0
  for some in np.array_split(np.arange(z.size), 20):
    breaks = (at / math.sqrt(bb) - c * z[some, None]) / rest
    there = np.broadcast_to(inner, (some.size, inner.size))
    y, inside = rule(np.concatenate([there, breaks], 1))
    given = np.sum(inside * g(math.sqrt(bb) * (c * z[some, None] + rest * y)), 1)
    total += w[some] @ (f(math.sqrt(aa) * z[some]) * given)
  return total


def moments(pairs, dtype):
  """aa, ab, bb [N] of pairs of variances and their correlation."""
  aa, c, bb = (np.asarray(column) for column in zip(*pairs))
  return tuple(jnp.asarray(a, dtype) for a in (aa, c * np.sqrt(aa * bb), bb))


def worst(name, pairs, dtype=jnp.float64):
  """The largest error of phi's and phi''s duals, relative to their largest values."""
  phi, (_, f, slope, at) = activation_of(ALL[name][0]), ALL[name]
  errors = []
  for dual, want in ((phi.dual, f), (phi.dual_derivative, slope)):
    got = np.asarray(jax.jit(dual)(*moments(pairs, dtype)))
    for value, (aa, c, bb) in zip(got, pairs):
      size = math.sqrt(expectation(want, want, at, aa, aa, aa)
                       * expectation(want, want, at, bb, bb, bb))
      right = expectation(want, want, at, aa, c * math.sqrt(aa * bb), bb)
      errors.append(abs(value - right) / (size if size > 1e-20 else 1))
  return float(np.max(errors))


FEW = ((1.0, 0.6, 1.0), (4.0, -0.9, 1.2), (10.0, 1.0, 10.0), (0.9, -1.0, 3.6))
# Correlations that are no rounding's are of the numbers that are tried: 1 - 1e-6 is.
MANY = tuple((aa, c, bb) for aa, bb in ((0.01, 0.01), (0.1, 0.3), (1.0, 1.0), (1.0, 1.01),
                                        (4.0, 1.0), (10.0, 10.0), (0.01, 10.0))
             for c in (-1.0, 1e-6 - 1, -0.95, -0.4, 0.0, 0.3, 0.8, 0.99, 1 - 1e-6, 1.0))


@pytest.mark.parametrize('name', [
    'moved', *(pytest.param(name, marks=pytest.mark.slow) for name in ('relu6', 'selu'))])
@pytest.mark.usefixtures('x64')
def test_duals(name):
  """Between variances up to 10, of both signs, and where u is v or -v."""
  assert worst(name, FEW) < 1e-8


# Whose pieces bend so fast that ramps are large where variances are.
BENDING = {'celu': 1e-7, 'gate': 1e-6, 'soft_sign': 2e-4}


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
@pytest.mark.usefixtures('x64')
def test_all_duals(name):
  """At variances from 0.01 to 10 and all correlations; where a few bend fast, to 1e-8 up to 1."""
  error = worst(name, MANY)
  # NaN says that it is not known to a part in a million.
  assert error < BENDING.get(name, 1e-8) or name == 'soft_sign' and np.isnan(error)
  if name in BENDING:
    assert worst(name, [pair for pair in MANY if max(pair[0], pair[2]) < 1.1]) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize('name', ['relu6', 'elu'])
def test_float32(name):
  """Likewise, at variances up to 4."""
  pairs = [pair for pair in FEW if pair[0] < 5]
  with jax.enable_x64(True):
    assert worst(name, pairs, jnp.float32) < 3e-6


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_a_quadrant_is_an_angle_at_any_correlation():
  """The probability of (u > 0, v > 0), by Sheppard (1899); and of places apart, SciPy's."""
  step = activation_of(lambda h: jnp.where(h > 0, 1.0, 0.0).astype(h.dtype))
  c = jnp.asarray([-1, 1e-9 - 1, -0.7, 0, 0.2, 0.999, 1 - 1e-12, 1])
  one = jnp.ones_like(c)
  want = 0.25 + np.arcsin(c) / 2 / math.pi
  np.testing.assert_allclose(jax.jit(step.dual)(one, c, one), want, atol=1e-15)
  np.testing.assert_allclose(jax.jit(step.dual)(4 * one, 2 * c, one), want, atol=1e-15)
  both = activation_of(lambda h: jnp.where(h > 0.5, 1.0, 0.0) - jnp.where(h > -1, 0.0, 1.0))
  orthant = lambda k, q, c: scipy.stats.multivariate_normal.cdf(
      [k, q], cov=[[1, c], [c, 1]], abseps=1e-13, maxpts=10**6)
  cs = np.array([-0.9, 0.3, 0.999])
  want = [orthant(-0.5, -0.5, c) + orthant(-1, -1, c)
          - 2 * (CUMULATIVE(-1) - orthant(0.5, -1, c)) for c in cs]
  one = jnp.ones(3)
  np.testing.assert_allclose(jax.jit(both.dual)(one, jnp.asarray(cs), one), want, atol=1e-12)


def arrays(*values):
  return [jnp.asarray(v)[None] for v in values]


@pytest.mark.parametrize('name', [
    pytest.param('elu', marks=pytest.mark.slow), 'step', 'tanh', *CLOSED])
@pytest.mark.usefixtures('x64')
@pytest.mark.some(2)
def test_means(name):
  """E phi(u) and E phi'(u), which at variance 0 are phi(0) and phi'(0)."""
  phi, (_, f, slope, at) = activation_of(ALL[name][0]), ALL[name]
  variances = (0.3, 4.0)
  for mean, want in ((phi.mean, f), (phi.mean_derivative, slope)):
    one = lambda h: 0 * h + 1
    right = [expectation(want, one, at, s, 0.0, s) for s in variances]
    np.testing.assert_allclose(mean(jnp.asarray(variances)), right, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(phi.mean(jnp.zeros(1)), f(np.zeros(1)), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('pair', [
    ('relu6', 'tanh'), ('erf', 'silu'), ('moved', 'wave'), ('elu', 'relu'), ('line', 'gate'),
    ('hard_tanh', 'elu')])
@pytest.mark.usefixtures('x64')
def test_cross(pair):
  """E phi(u) psi(v) and E phi'(u) psi'(v) of two functions, in both orders."""
  (_, f, df, here), (_, g, dg, there) = (ALL[name] for name in pair)
  phi, psi = (activation_of(ALL[name][0]) for name in pair)
  at = (*here, *there)
  one, other = jax.jit(lambda *a: phi.cross(psi, *a)), jax.jit(lambda *a: psi.cross(phi, *a))
  for aa, c, bb in ((1.0, 0.6, 2.0), (2.0, -1.0, 2.0), (1.0, 1.0, 3.0)):
    ab = c * math.sqrt(aa * bb)
    got = one(*arrays(aa, ab, bb))[0], other(*arrays(bb, ab, aa))[0]
    np.testing.assert_allclose(got, expectation(f, g, at, aa, ab, bb), rtol=1e-8, atol=1e-8)
  got = jax.jit(lambda *a: phi.cross_derivative(psi, *a))(*arrays(1.0, 0.5, 2.0))[0]
  np.testing.assert_allclose(got, expectation(df, dg, at, 1.0, 0.5, 2.0), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_what_is_at_zero():
  """Where a variance is 0 the function's own value counts: a gate that is shut sends nothing."""
  step = activation_of(lambda h: jnp.where(h > 0, 1.0, 0.0).astype(h.dtype))
  rows, columns = jnp.asarray([[0.0], [2.0]]), jnp.asarray([[0.0, 3.0]])
  got = jax.jit(step.dual)(rows, jnp.zeros((2, 2)), columns)
  np.testing.assert_allclose(got, [[0, 0], [0, 0.25]], atol=1e-15)
  early = activation_of(lambda h: jax.nn.relu(h + 0.5))
  mean = early.mean(jnp.asarray([3.0]))[0]
  got = jax.jit(early.dual)(rows, jnp.zeros((2, 2)), columns)
  np.testing.assert_allclose(got[0], [0.25, mean / 2])


@pytest.mark.slow
def test_many_covariances(monkeypatch):
  """Rows that are taken in turn give what they give together."""
  phi, s = activation_of(lambda h: jnp.maximum(h - 1, 0)), jnp.linspace(0.5, 2, 7)
  moments = s[:, None], 0.7 * jnp.sqrt(s[:, None] * s[None]), s[None]
  want = jax.jit(phi.dual)(*moments)
  seen = []
  monkeypatch.setattr(jumps, '_AT_ONCE', 15)
  inner = jumps._product
  monkeypatch.setattr(jumps, '_product', lambda *a: seen.append(a[3].shape) or inner(*a))
  got = jax.jit(lambda *a: phi.dual(*a))(*moments)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
  assert set(seen) == {(1, 7)}


@pytest.mark.parametrize('function, want', [
    (lambda h: h, Linear()), (lambda h: 2 * h + 1, Affine(Linear(), scale=2.0, shift=1.0)),
    (lambda h: 0 * h + 3, Affine(Linear(), scale=0.0, shift=3.0)),
    (lambda h: jnp.maximum(h, 0), ReLU()), (lambda h: 3 * jax.nn.leaky_relu(h), ReLU(0.01, 3.0)),
    (jnp.abs, ReLU(slope=-1.0)),
    (lambda h: 1 - 2 * jnp.abs(h), Affine(ReLU(-1.0, -2.0), shift=1.0)),
    (jnp.sin, Sin()), (lambda h: 2 * jnp.sin(h / 4), Affine(Sin(0.25), scale=2.0)),
    (lambda h: jnp.cos(3 * h) - 1, Affine(Cos(3.0), shift=-1.0)),
    (lambda h: 2 * jax.lax.erf(h / 2) + 1, Affine(Erf(), 0.5, 2.0, 1.0)),
])
def test_what_is_recognised(function, want):
  """By values and not by names; equal ones are equal, and hash so."""
  found = activation_of(function)
  assert found == want and hash(found) == hash(want)
  assert activation_of(function) is found


@pytest.mark.slow
def test_places():
  """Where what jumps, by how much; smooth functions have none, and those of one piece two terms."""
  names = ('relu6', 'hard_swish', 'elu', 'sign', 'square', 'early', 'selu')
  kinks = {name: activation_of(KINKED[name][0]).kinks for name in names}
  assert kinks['relu6'] == ((0.0, 1.0), (6.0, -1.0))
  assert kinks['hard_swish'] == ((-3.0, -0.5), (3.0, -0.5))
  assert kinks['elu'] == kinks['sign'] == kinks['square'] == ()
  assert kinks['early'] == ((-0.1, 1.0),)
  assert activation_of(jnp.sign).steps == ((0.0, 2.0),)
  np.testing.assert_allclose(kinks['selu'][0][1], L * (1 - A), rtol=1e-9)
  relu6 = activation_of(jax.nn.relu6)
  np.testing.assert_allclose(relu6.derivative(jnp.asarray([-1.0, 0, 3, 6, 7])), [0, 0.5, 1, 0.5, 0])
  elu = activation_of(jax.nn.elu)
  np.testing.assert_allclose(elu.second(jnp.asarray([-1.0, 1.0])), [math.exp(-1), 0], rtol=1e-6)
  for name in ('gelu', 'cube'):
    assert type(activation_of(SMOOTH[name][0])) is Quadrature


@pytest.mark.parametrize('phi, words', [
    (jnp.floor, 'jumps at more than 16 places'), (lambda h: jnp.exp(h**2), 'infinite or NaN'),
    (lambda h: jnp.exp(0.1 * h**2), 'grows by e'), (jnp.sqrt, 'infinite or NaN'),
    (lambda h: 1 / h, 'singular at h=0'), (lambda h: jnp.abs(h)**1.5, 'singular at h=0|infinite'),
    (lambda h: jnp.tanh(50 * h), 'bends too fast'), (lambda h: jnp.sin(300 * h**2), 'phi=<lambda>'),
])
def test_what_is_refused(phi, words):
  """With the reason, and what to take instead."""
  with pytest.raises(TheoryError, match=words) as error:
    activation_of(phi)
  assert 'Take' in str(error.value) or 'type' in str(error.value)


def test_what_no_activation_takes():
  """Numbers are finite, a rate positive, and jumps of three orders at least."""
  for make in (lambda: Affine(ReLU(), rate=-1.0), lambda: Affine(ReLU(), scale=math.nan),
               lambda: Piecewise(jax.nn.relu, ((0.0, (0.0, 1.0)),))):
    with pytest.raises(TheoryError, match='Type|as_activation'):
      make()


@pytest.mark.slow
def test_what_rounding_leaves_nothing_of_is_nan():
  """In float32 ELU's ramps are lost at variances of 1e4; a ReLU6's are not."""
  s = jnp.asarray([1.0, 1e4])
  assert np.isnan(jax.jit(activation_of(jax.nn.elu).dual)(s, s / 2, s)).tolist() == [False, True]
  assert np.isfinite(jax.jit(activation_of(jax.nn.relu6).dual)(s, s / 2, s)).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hard_tanh', 'elu'])
@pytest.mark.usefixtures('x64')
def test_lazy_kernels_of_what_has_kinks(name):
  """One layer's, by its integrals: K = E phi phi + x . x' / D E phi' phi'."""
  phi, f, slope, at = KINKED[name]
  x = np.array([[1.0, 2.0], [-1.5, 0.5]])
  inputs = x @ x.T / 2
  pairs = lambda g: np.array([[expectation(g, g, at, inputs[i, i], inputs[i, j], inputs[j, j])
                               for j in range(2)] for i in range(2)])
  got = lazy_kernels(jnp.asarray(x), 1, phi).entk
  np.testing.assert_allclose(got, pairs(f) + inputs * pairs(slope), rtol=1e-8, atol=1e-8)
