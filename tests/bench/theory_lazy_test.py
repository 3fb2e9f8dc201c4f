"""Figure 2: kernels of small networks, golden values of the theory, and theories that are wrong."""
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop import theory
from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory import lazy
from bioprop.bench.theory.experiments import run

# K at 0, pi/4, pi/2 and pi of three hidden layers, by rho (equations.md A2, by another program).
GOLDEN = {0.0: (1, 0.820913, 0.604826, 0.493731), 0.5: (1.875, 1.290165, 0.800721, 0.589720),
          1.0: (4, 2.233324, 1.060388, 0.685709)}


def small():
  """One depth, two widths, angles 0, pi/4, ..., pi."""
  config = config_lib.base('lazy')
  config.samples, config.features = 5, 4
  config.depth, config.activation = 1, 'scaled_relu'
  config.widths, config.seeds = (64, 256), 48
  config.slope = 0.2
  config.cases = ({'rule': 'fa', 'rho': (0.0, 1.0), 'depth': 1},)
  return config


def by_name(claims):
  """The claims by name."""
  return {claim.name: claim for claim in claims}


@pytest.fixture(scope='module')
def found():
  """The claims of the small configuration."""
  return by_name(run(small()))


@pytest.mark.slow
def test_all_hold(found):
  """Kernels agree, errors fall as they are to, and rho 1 is closer than rho 0."""
  assert list(found) == ['angle', 'width', 'rho']
  assert all(claim.agrees for claim in found.values()), found


@pytest.mark.slow
def test_kernels_over_the_angle(found):
  """One hidden layer by hand: cos th_1 + rho (1 - th / pi) cos th, and networks near it."""
  angles = np.linspace(0, np.pi, 5)
  phi = (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / np.pi
  for one, rho in zip(found['angle'].series, (0.0, 1.0)):
    assert one.label == f'fa rho={rho:g}, L=1'
    want = phi + rho * (1 - angles / np.pi) * np.cos(angles)
    np.testing.assert_allclose(one.x, angles)
    np.testing.assert_allclose(one.predicted, want, atol=1e-6)
    # 48 networks of 256 units: four standard errors.
    assert (np.abs(one.measured - want) <= 4 * one.spread / np.sqrt(48) + 1e-6).all()


@pytest.mark.slow
def test_errors_are_those_of_independent_neurons(found):
  """A network of one hidden layer is a mean over neurons, whose variance is drawn here."""
  rng = np.random.RandomState(0)
  x = np.asarray(lazy.circle(small()))
  u = rng.randn(40000, 4) @ x.T / 2  # sqrt(D) = 2
  phi, slope = np.sqrt(2) * np.maximum(u, 0), np.sqrt(2) * (u > 0)
  for one, rho in zip(found['width'].series, (0.0, 1.0)):
    w = rng.randn(len(u))
    signal = w * (rho * w + np.sqrt(1 - rho**2) * rng.randn(len(u)))
    outer = lambda a: a[:, :, None] * a[:, None, :]
    neurons = outer(phi) + signal[:, None, None] * outer(slope) * (x @ x.T / 4)
    want = neurons.var(0).sum() / np.square(neurons.mean(0)).sum()
    np.testing.assert_allclose(one.measured * one.x, want, rtol=0.35)


@pytest.mark.parametrize('rho', GOLDEN)
def test_golden_values(rho):
  """What the figure's lines are at three hidden layers."""
  config = small()
  kernel = theory.lazy_kernels(lazy.circle(config), 3, theory.ReLU(scale=2**0.5), 'fa', rho=rho)
  np.testing.assert_allclose(kernel.entk[0, jnp.asarray([0, 1, 2, 4])], GOLDEN[rho], atol=2e-5)


@pytest.mark.slow
def test_wrong_exponent_is_found(monkeypatch):
  """Section 3.3 of the paper prints rho^(L-l): the last hidden layer's signals would be exact."""
  right = theory.lazy_kernels

  def printed(*args, rho=0.0, **kwargs):
    kernels = right(*args, rho=rho, **kwargs)
    layers, depth = kernels.g * kernels.phi, len(kernels.g) - 1
    factors = [rho**max(depth - 1 - at, 0) for at in range(depth + 1)]
    return kernels._replace(entk=sum(f * one for f, one in zip(factors, layers)))

  config = small()
  config.widths, config.seeds = (64,), 24
  config.close = 0.1
  config.cases = ({'rule': 'fa', 'rho': (0.0,), 'depth': 1},)
  kernels = lambda: lazy._kernels(config, config.cases[0])
  assert lazy._over_angle(config, kernels()).agrees
  monkeypatch.setattr(theory, 'lazy_kernels', printed)
  assert not lazy._over_angle(config, kernels()).agrees


def made(depth, rho, constant, slope=-1.0):
  """Networks of widths 10, 100 and 1000 whose squared error is constant N^slope."""
  predicted = np.ones((1, 1))
  apart = lambda width: np.sqrt(constant * width**slope) * np.array([1, -1]).reshape(2, 1, 1)
  return lazy.Kernels(f'{depth} {rho}', depth, rho, predicted,
                      {width: predicted + apart(width) for width in (10, 100, 1000)})


def test_wrong_slopes_and_orders_are_found():
  """What each claim says of kernels that were made up."""
  config = config_lib.base('lazy')
  assert lazy._over_width(config, [made(1, 0.0, 2.0)]).agrees
  assert not lazy._over_width(config, [made(1, 0.0, 2.0), made(1, 1.0, 1.0, -0.7)]).agrees
  grid = lambda *constants: lazy._over_rho([
      made(depth, rho, constant) for (depth, rho), constant in
      zip(((1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)), constants)])
  assert grid(3, 2, 5, 4).agrees
  np.testing.assert_allclose(grid(3, 2, 5, 4).series[1].measured, np.sqrt([5, 4]))
  assert not grid(2, 3, 5, 4).agrees
  assert not grid(5, 4, 3, 2).agrees
