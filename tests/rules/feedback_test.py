"""Frozen feedback: its correlation with the initial weights, its size, that it is never zero."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop


class Wide(nn.Module):
  """Two layers of width 4096: 4096 * 64 and 4096 * 16 weights."""
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4096, kernel_init=self.kernel_init, name='hidden')(x))
    return nn.Dense(16, kernel_init=self.kernel_init, name='readout')(x)


def feedback_and_weights(rule, model=None, key=None, layer='readout', width=64):
  """Flat feedback and kernel of a layer at initialisation."""
  key = jax.random.key(0) if key is None else key
  variables = bioprop.plug(model or Wide(), rule).init(key, jnp.ones((1, width)))
  stored = variables['feedback'][layer]
  return (np.asarray(next(iter(stored.values())), np.float64).ravel(),
          np.asarray(variables['params'][layer]['kernel'], np.float64).ravel())


@pytest.mark.parametrize('layer', ['hidden', 'readout'])
@pytest.mark.parametrize('rho', [0.0, 0.3, 0.7, 1.0])
@pytest.mark.some(2)
def test_rho_is_the_correlation_with_the_initial_weights(rho, layer):
  """Within 5 standard errors (1 - rho^2) / sqrt(size), and with the variance of W."""
  b, w = feedback_and_weights(bioprop.make('fa', rho=rho, scale=1.0), layer=layer)
  tolerance = 5 / math.sqrt(w.size)
  assert abs(np.corrcoef(b, w)[0, 1] - rho) <= tolerance * (1 - rho**2) + 1e-6
  assert abs(b.var() / w.var() - 1) <= 2 * tolerance  # sqrt(2 (1 - rho^4) / size) at most.
  assert abs(w.var() * (64 if layer == 'hidden' else 4096) - 1) <= 2 * tolerance


def test_rho_mixes_the_same_draw():
  """B(rho) = rho W(0) + sqrt(1 - rho^2) B(0) for one key."""
  fresh, w = feedback_and_weights(bioprop.make('fa', scale=1.0))
  mixed, _ = feedback_and_weights(bioprop.make('fa', rho=0.6, scale=2.0))
  np.testing.assert_allclose(mixed, 2 * (0.6 * w + 0.8 * fresh), atol=1e-6)


@pytest.mark.parametrize('name', ['fa', 'frsf', 'kp', 'dfa'])
def test_zero_kernels_get_feedback(name):
  """A readout that starts at zero still sends errors down; LeCun's variance takes its place."""
  model = Wide(kernel_init=nn.initializers.zeros)
  variables = bioprop.plug(model, bioprop.make(name, scale=1.0)).init(
      jax.random.key(0), jnp.ones((1, 64)))
  stored = variables['params' if name == 'kp' else 'feedback']['readout']
  b = np.asarray(stored[{'kp': 'feedback_kernel', 'dfa': 'error'}.get(name, 'kernel')])
  assert not variables['params']['readout']['kernel'].any()
  assert abs((b**2).mean() * 4096 - 1) < 5 * math.sqrt(2 / b.size)


@pytest.mark.parametrize('name', ['fa', 'frsf', 'dfa'])
def test_layers_and_keys_have_feedback_of_their_own(name):
  """Two equal layers differ, two keys differ, one key repeats."""
  draw = lambda seed, layer: bioprop.plug(
      nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(32), nn.tanh, nn.Dense(32)]), name).init(
          jax.random.key(seed), jnp.ones((1, 32)))['feedback'][layer]
  flat = lambda seed, layer: np.asarray(next(iter(draw(seed, layer).values()))).ravel()
  first = flat(0, 'layers_0')
  np.testing.assert_array_equal(first, flat(0, 'layers_0'))
  for other in (flat(0, 'layers_2'), flat(1, 'layers_0')):
    assert abs(np.corrcoef(np.abs(first) if name == 'frsf' else first, other)[0, 1]) < 5 / 32


@pytest.mark.parametrize('name', ['fa', 'dfa'])
def test_independent_of_the_weights_even_under_one_key(name):
  """rngs={'params': key, 'feedback': key} is a common habit, and no reason to correlate."""
  key = jax.random.key(0)
  variables = bioprop.plug(nn.Dense(64), name).init(
      {'params': key, 'feedback': key}, jnp.ones((2, 64)))
  b = np.asarray(next(iter(variables['feedback'].values()))).ravel()
  w = np.asarray(variables['params']['kernel']).ravel()
  assert abs(np.corrcoef(b, w)[0, 1]) < 5 / 64


@pytest.mark.slow
@pytest.mark.parametrize('shape, features', [((8, 64), 64), ((8, 4, 4, 16), 256)])
def test_direct_feedback_keeps_the_errors_norm(shape, features):
  """Entries of variance 1 / d: |B e| is |e| in expectation."""

  class Model(nn.Module):

    @nn.compact
    def __call__(self, x):
      return nn.Dense(10)(nn.Dense(6)(x).reshape((x.shape[0], -1)))

  stored = bioprop.plug(Model(), bioprop.make('dfa', scale=1.0)).init(
      jax.random.key(0), jnp.ones(shape))['feedback']
  b = np.asarray(stored['Dense_1']['error'])  # The inner one is made first, the outer first named.
  b = b if b.shape == (10, features) else np.asarray(stored['Dense_0']['error'])
  assert b.shape == (10, features)
  assert abs((b**2).mean() * features - 1) < 5 * math.sqrt(2 / b.size)


@pytest.mark.parametrize('rho, size', [(0.0, 0.3), (0.5, 0.65), (1.0, 1.0)])
def test_default_size_of_feedback_rises_with_what_it_knows(rho, size):
  """0.3 + 0.7 rho of the size of the initial weights, LeCun's 1 / 256 per entry."""
  variables = bioprop.plug(nn.Dense(256), bioprop.make('fa', rho=rho)).init(
      jax.random.key(0), jnp.ones((2, 256)))
  b = np.asarray(variables['feedback']['kernel'])
  assert abs((b**2).mean() * 256 / size**2 - 1) < 5 * math.sqrt(2 / b.size)
  if rho == 1:
    np.testing.assert_array_equal(b, variables['params']['kernel'])


@pytest.mark.parametrize('shape, size', [((8, 64), 0.1), ((8, 8, 8, 4), 0.05)])
def test_default_size_of_direct_feedback(shape, size):
  """0.1 of the error's norm, and 0.05 where the input has spatial axes."""
  layer = nn.Dense(32) if len(shape) == 2 else nn.Conv(32, (8, 8), padding='VALID')
  stored = bioprop.plug(layer, 'dfa').init(jax.random.key(0), jnp.ones(shape))['feedback']
  b = np.asarray(stored['error'])
  assert abs((b**2).mean() * math.prod(shape[1:]) / size**2 - 1) < 5 * math.sqrt(2 / b.size)
