"""Nonlinearities: expectations against sums over fine grids, derivatives against JAX's."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from bioprop.errors import TheoryError
from bioprop.theory.activations import Cos, Erf, Linear, Quadrature, ReLU, Sin
from bioprop.theory.elementwise import as_activation, check_smooth
from bioprop.theory.piecewise import Piecewise

# Each with phi and phi' written out.
STEP = lambda h: np.where(h > 0, 1.0, 0.0)
SECH2 = lambda h: 1 / np.cosh(h)**2
SIGMOID = scipy.special.expit
SMOOTH = {
    'tanh': (as_activation('tanh'), np.tanh, SECH2),
    'sigmoid': (as_activation('sigmoid'), SIGMOID, lambda h: SIGMOID(h) * SIGMOID(-h)),
    'softplus': (as_activation('softplus'), lambda h: np.logaddexp(0, h), SIGMOID),
    'silu': (as_activation('silu'), lambda h: h * SIGMOID(h),
             lambda h: SIGMOID(h) * (1 + h * SIGMOID(-h))),
    'cubic': (as_activation(lambda h: h**3 - h), lambda h: h**3 - h, lambda h: 3 * h**2 - 1),
}
EXACT = {
    'linear': (Linear(), lambda h: h, np.ones_like),
    'relu': (ReLU(scale=math.sqrt(2)), lambda h: math.sqrt(2) * h * STEP(h),
             lambda h: math.sqrt(2) * STEP(h)),
    'leaky': (ReLU(slope=0.2, scale=1.5), lambda h: 1.5 * h * (0.2 + 0.8 * STEP(h)),
              lambda h: 1.5 * (0.2 + 0.8 * STEP(h))),
    'erf': (Erf(), scipy.special.erf, lambda h: 2 / math.sqrt(math.pi) * np.exp(-h * h)),
    'sin': (Sin(1.3), lambda h: np.sin(1.3 * h), lambda h: 1.3 * np.cos(1.3 * h)),
    'cos': (Cos(0.7), lambda h: np.cos(0.7 * h), lambda h: -0.7 * np.sin(0.7 * h)),
}
ALL = {**EXACT, **SMOOTH}


def halves(at):
  """Gauss-Legendre nodes on both sides of `at`, from -11 to 11, and weights of a normal density."""
  nodes, weights = np.polynomial.legendre.leggauss(150)
  at = np.clip(np.asarray(at)[..., None], -11, 11)
  pieces = [(low + (high - low) * (nodes + 1) / 2, (high - low) / 2 * weights)
            for low, high in ((-11, at), (at, 11))]
  z, w = (np.concatenate(parts, -1) for parts in zip(*pieces))
  return z, w * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def expectation(f, aa, ab, bb):
  """E f(u) f(v), by sums over grids that are broken where u or v is 0."""
  c = ab / math.sqrt(aa * bb)
  slope, rest = c * math.sqrt(bb), math.sqrt(bb * (1 - c * c))
  z, weights = halves(0)
  if rest == 0:
    given = f(slope * z)
  else:
    inner, inside = halves(-slope * z / rest)
    given = np.sum(inside * f(slope * z[:, None] + rest * inner), -1)
  return weights @ (f(math.sqrt(aa) * z) * given)


def arrays(*values):
  return [jnp.asarray(v)[None] for v in values]


@pytest.mark.parametrize('name', ALL)
@pytest.mark.usefixtures('x64')
@pytest.mark.some(3)
def test_duals(name):
  """Between two variances up to 4, of both signs, and where u is v or -v, to 1e-8."""
  phi, f, slope = ALL[name]
  dual, derivative = jax.jit(phi.dual), jax.jit(phi.dual_derivative)
  for aa, ab, bb in ((1.0, 0.6, 1.0), (4.0, -1.9, 1.2), (4.0, 4.0, 4.0), (0.9, -1.8, 3.6)):
    for got, want in ((dual, f), (derivative, slope)):
      want = expectation(want, aa, ab, bb)
      np.testing.assert_allclose(got(*arrays(aa, ab, bb))[0], want, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('x64', [False, True])
def test_duals_at_the_edge(name, x64):
  """Finite where a variance is 0, and where rounding takes a correlation beyond 1; of one rank."""
  phi, f, slope = ALL[name]
  dual, derivative = jax.jit(phi.dual), jax.jit(phi.dual_derivative)
  with jax.enable_x64(x64):
    dtype = jnp.float64 if x64 else jnp.float32
    eps = float(jnp.finfo(dtype).eps)
    tolerance = 10 * math.sqrt(eps)  # Of a ReLU's derivative; others are at eps.
    rows = jnp.asarray([[0.0], [1.0], [3.0]], dtype)
    columns = jnp.asarray([[0.0, 1.0, 3.0]], dtype)
    full = jnp.sqrt(rows * columns) * (1 + 4 * eps)
    for sign in (1, -1):
      for got, values in ((dual, f), (derivative, slope)):
        matrix = got(rows, sign * full, columns)
        assert matrix.shape == (3, 3) and matrix.dtype == dtype
        if name in ('relu', 'leaky') and values is slope:
          assert np.all(np.isfinite(matrix))  # At 0 it is the mean of both sides.
          continue
        at_zero = values(np.zeros(1))[0]
        np.testing.assert_allclose(matrix[0, 0], at_zero**2, rtol=tolerance, atol=tolerance)
        one = expectation(values, 1.0, sign * 1.0, 1.0)
        np.testing.assert_allclose(matrix[1, 1], one, rtol=tolerance, atol=tolerance)
        points, weights = np.polynomial.hermite_e.hermegauss(60)
        mean = values(points) @ weights / math.sqrt(2 * math.pi)
        near = max(tolerance, 1e-6)  # Sixty points are so accurate; of a ReLU phi(0) is 0.
        np.testing.assert_allclose(matrix[0, 1], at_zero * mean, rtol=near, atol=near)


@pytest.mark.parametrize('name', EXACT)
def test_large_variances(name):
  """Bounded functions do not overflow, and the sine of an angle stays at most 1, in float32."""
  phi, s = EXACT[name][0], jnp.geomspace(1e2, 1e8, 200, dtype=jnp.float32)
  for sign in (1, -1):
    for dual in (phi.dual, phi.dual_derivative):
      assert np.all(np.isfinite(dual(s, sign * s, s)))


@pytest.mark.usefixtures('x64')
def test_a_relus_diagonal_is_exact():
  """Not off by the square root of rounding: half of the variance, half."""
  s = jnp.asarray(np.random.RandomState(0).rand(1000) * 5)
  np.testing.assert_allclose(ReLU().dual(s, s, s), s / 2, rtol=1e-15)
  np.testing.assert_array_equal(ReLU().dual_derivative(s, s, s), 0.5 * jnp.ones(1000))
  np.testing.assert_allclose(ReLU().dual(s, -s, s), 0, atol=1e-15)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.usefixtures('x64')
@pytest.mark.some(2)
def test_derivatives(name):
  """Values as written out; derivatives as JAX takes them, away from kinks."""
  phi, f, slope = ALL[name]
  h = jnp.linspace(-3, 3, 12)
  np.testing.assert_allclose(phi(h), f(np.asarray(h)), rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(phi.derivative(h), slope(np.asarray(h)), rtol=1e-12, atol=1e-12)
  second = jax.vmap(jax.grad(lambda h: phi.derivative(h[None])[0]))(h)
  np.testing.assert_allclose(phi.second(h), second, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures('x64')
def test_kinks():
  """Where derivatives jump, and by how much."""
  for phi in (ReLU(), ReLU(slope=0.2, scale=1.5), ReLU(slope=-1.0)):
    (place, jump), = phi.kinks
    below, above = phi.derivative(jnp.asarray([place - 1e-9, place + 1e-9]))
    np.testing.assert_allclose(above - below, jump, rtol=1e-12)
  assert all(not phi.kinks for phi in (Linear(), Erf(), Sin(), Cos(), as_activation('tanh')))


@pytest.mark.slow
def test_names_and_functions():
  """Names mean what they do in Flax; functions with closed forms get these."""
  h = jnp.linspace(-3, 3, 7)
  for name in ('relu', 'leaky_relu', 'tanh', 'sigmoid', 'softplus', 'silu', 'gelu'):
    np.testing.assert_allclose(as_activation(name)(h), getattr(jax.nn, name)(h), rtol=1e-6,
                               atol=1e-6)
  assert as_activation('relu') == as_activation(jax.nn.relu) == ReLU()
  assert as_activation(jax.lax.erf) == Erf() and as_activation(jnp.sin) == Sin()
  assert as_activation(jnp.tanh) == as_activation('tanh') == Quadrature(jnp.tanh)
  phi = ReLU(slope=0.3)
  assert as_activation(phi) is phi
  inside = jax.jit(lambda h: as_activation(lambda h: jnp.sin(h) + h)(h))
  np.testing.assert_allclose(inside(h), jnp.sin(h) + h, rtol=1e-6)


@pytest.mark.slow
def test_functions_with_kinks():
  """What has no closed form is one function between some places."""
  assert as_activation(lambda h: jnp.maximum(h, 0)) == ReLU()
  for phi, place, sizes in ((lambda h: jnp.abs(h - 1.25), 1.25, (0, 2, 0)),
                            (jax.nn.elu, 0.0, (0, 0, -1)), (jnp.sign, 0.0, (2, 0, 0))):
    found = as_activation(phi)
    (at, jumps), = found.jumps
    assert at == place and type(found) is Piecewise
    np.testing.assert_allclose(jumps[:3], sizes, atol=1e-9)


@pytest.mark.parametrize('order, phi', [(0, jnp.sign), (1, jax.nn.relu), (2, jax.nn.elu)])
def test_what_is_not_smooth(order, phi):
  """Is told by the order of the first jump."""
  with pytest.raises(TheoryError, match=f'order {order} that jumps by .* at h=0'):
    check_smooth(Quadrature(phi))
  check_smooth(Quadrature(jnp.tanh))


@pytest.mark.parametrize('phi, words', [
    ('swish2', 'one of linear, relu'),
    (3, 'one of linear, relu'),
    (jax.nn.softmax, 'mixes units'),
    (lambda h: h / jnp.linalg.norm(h), 'mixes units'),
    (lambda h: h.sum(), 'keep shape'),
    (lambda h: h > 0, 'keep shape'),
    (np.tanh, 'cannot be called'),
    (lambda h, slope: h, 'cannot be called'),
    (lambda h: jnp.floor(h), 'jumps at more than 16 places'),
    (lambda h: jnp.exp(h**2), 'infinite or NaN'),
])
def test_what_is_no_activation(phi, words):
  """Errors say what it is, and what to type."""
  with pytest.raises(TheoryError, match=words) as error:
    as_activation(phi)
  assert 'phi=' in str(error.value)


def test_what_a_function_closes_over():
  """Constants of float32 are constants; what is traced is refused."""
  two = jnp.asarray(2.0, jnp.float32)
  assert as_activation(lambda h: two[None] * h if h.ndim == 1 else 2 * h).rate == 1.0
  with pytest.raises(TheoryError, match='being traced'):
    jax.jit(lambda c: as_activation(lambda h: jnp.tanh(c * h))(c[None]))(1.0)


@pytest.mark.slow
def test_what_no_activation_takes():
  """Numbers are finite; polynomials do not overflow."""
  for make in (lambda: ReLU(slope=math.nan), lambda: Sin(math.inf), lambda: Cos('1'),
               lambda: Quadrature(jnp.tanh, nodes=1281), lambda: Quadrature(jnp.tanh, nodes=1)):
    with pytest.raises(TheoryError, match='Type'):
      make()
  with jax.enable_x64(True):
    one = jnp.ones(1)
    for nodes in (350, 1280):
      np.testing.assert_allclose(Quadrature(jnp.exp, nodes=nodes).dual(one, one, one), math.e**2)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_quadrature_of_what_is_not_smooth():
  """The errors that the documentation tells of."""
  elu, s = Quadrature(jax.nn.elu), jnp.asarray([[4.0]])
  f = lambda h: np.where(h > 0, h, np.expm1(np.minimum(h, 0)))
  slope = lambda h: np.where(h > 0, 1, np.exp(np.minimum(h, 0)))
  for got, want, least, most in ((elu.dual, f, 1e-6, 3e-5),
                                 (elu.dual_derivative, slope, 1e-4, 3e-3)):
    error = abs(float(got(s, s, s)[0, 0]) - expectation(want, 4.0, 4.0, 4.0))
    assert least < error < most
