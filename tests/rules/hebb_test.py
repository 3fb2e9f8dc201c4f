"""Error-modulated Hebb: its scales, and which nonlinearity it takes for the activity."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

F = jnp.float64


class Net(nn.Module):
  """Dense, a nonlinearity, a readout."""
  phi: object
  outputs: int = 1
  squeeze: bool = False

  @nn.compact
  def __call__(self, x):
    h = self.phi(nn.Dense(5, param_dtype=F, name='hidden')(x))
    y = nn.Dense(self.outputs, param_dtype=F, name='readout')(h)
    return y[..., 0] if self.squeeze else y


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


def hidden(model, x, rule='hebb', reduce=jnp.mean, params=None):
  """(pseudogradients of the hidden layer, its parameters) under the loss of half squares."""
  plugged = bioprop.plug(model, rule)
  params = params or plugged.init(jax.random.key(0), x)['params']
  loss = lambda p: reduce(0.5 * jnp.sum(plugged.apply({'params': p}, x)**2, -1)
                          if not getattr(model, 'squeeze', False)
                          else 0.5 * plugged.apply({'params': p}, x)**2)
  return jax.grad(loss)(params)['hidden'], params


def by_hand(x, params, phi, outputs):
  """-(1 / n) sum |f|^2 phi(h) x^T, with Delta = -f for half squares."""
  x, p = np.asarray(x), jax.tree.map(np.asarray, params)
  h = x @ p['hidden']['kernel'] + p['hidden']['bias']
  f = phi(h) @ p['readout']['kernel'] + p['readout']['bias']
  return -np.einsum('n,nh,nx->xh', (f**2).sum(1), phi(h), x) / len(x)


PHIS = {
    'tanh': (nn.tanh, np.tanh),
    'relu': (nn.relu, lambda h: np.maximum(h, 0)),
    'relu_where': (lambda h: jnp.where(h > 0, h, 0.0), lambda h: np.maximum(h, 0)),
    'relu_maximum': (lambda h: jnp.maximum(h, jnp.zeros_like(h)), lambda h: np.maximum(h, 0)),
    'leaky_relu': (lambda h: nn.leaky_relu(h, 0.2), lambda h: np.where(h > 0, h, 0.2 * h)),
    'silu': (nn.silu, lambda h: h / (1 + np.exp(-h))),
    'gelu': (nn.gelu, lambda h: 0.5 * h * (1 + np.tanh(
        np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))),
    'gelu_exact': (lambda h: nn.gelu(h, approximate=False),
                   lambda h: h * np.vectorize(math.erf)(h / 2**0.5) / 2 + h / 2),
    'softplus_like': (lambda h: jnp.log(1 + jnp.exp(2 * h)) / 2,
                      lambda h: np.log(1 + np.exp(2 * h)) / 2),
    'identity': (lambda h: h, lambda h: h),
    'jitted': (jax.jit(lambda h: jnp.sin(h) * h), lambda h: np.sin(h) * h),
}


@pytest.mark.parametrize('outputs', [1, 3])
@pytest.mark.parametrize('name', PHIS)
@pytest.mark.some(3)
def test_the_nonlinearity_is_found(x64, name, outputs):
  """The update is the formula's, whichever way the function is written."""
  phi, in_numpy = PHIS[name]
  x = draw(6, 4)
  got, params = hidden(Net(phi, outputs), x)
  np.testing.assert_allclose(
      got['kernel'], by_hand(x, params, in_numpy, outputs), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize('squeeze', [False, True])
def test_batch_made_of_a_batch_twice(x64, squeeze):
  """Under a mean, the update does not depend on the number of samples."""
  x = draw(6, 4)
  once, params = hidden(Net(nn.tanh, squeeze=squeeze), x)
  twice, _ = hidden(Net(nn.tanh, squeeze=squeeze), jnp.concatenate([x, x]), params=params)
  np.testing.assert_allclose(once['kernel'], twice['kernel'], rtol=1e-12)
  np.testing.assert_allclose(
      once['kernel'], by_hand(x, params, np.tanh, 1), rtol=1e-12)


def test_sum_is_n_times_mean(x64):
  """reduction='sum' under a sum loss, n times reduction='mean' under a mean loss."""
  x = draw(6, 4)
  mean, params = hidden(Net(nn.tanh, 3), x)
  total, _ = hidden(Net(nn.tanh, 3), x, bioprop.make('hebb', reduction='sum'), jnp.sum, params)
  np.testing.assert_allclose(total['kernel'], 6 * mean['kernel'], rtol=1e-12)
  np.testing.assert_allclose(total['bias'], 6 * mean['bias'], rtol=1e-12)


def test_positions_have_errors_of_their_own(x64):
  """An error [n, T, C] modulates position by position; the mean is over n and T."""
  x = draw(3, 4, 4)
  got, params = hidden(Net(nn.tanh, 3), x)
  want = by_hand(x.reshape(12, 4), params, np.tanh, 3)
  np.testing.assert_allclose(got['kernel'], want, rtol=1e-12)


@pytest.mark.parametrize('name', ['relu', 'tanh', 'identity', 'silu', 'gelu', 'leaky_relu'])
def test_named_activation_overrides_the_models(x64, name):
  """activation='relu' on a sine network."""
  x = draw(6, 4)
  got, params = hidden(Net(jnp.sin, 3), x, bioprop.make('hebb', activation=name))
  phi = {'leaky_relu': lambda h: np.where(h > 0, h, 0.01 * h)}.get(name) or PHIS[name][1]
  a = np.asarray(x) @ np.asarray(params['hidden']['kernel']) + np.asarray(params['hidden']['bias'])
  f = np.sin(a) @ np.asarray(params['readout']['kernel']) + np.asarray(params['readout']['bias'])
  want = -np.einsum('n,nh,nx->xh', (f**2).sum(1), phi(a), np.asarray(x)) / len(x)
  np.testing.assert_allclose(got['kernel'], want, rtol=1e-10)
