"""The layers that `measure.layers` cuts out of a model: what they are called, and what they do."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

RNG = np.random.RandomState(0)
F = jnp.float64
pytestmark = pytest.mark.usefixtures('x64')


class Written(nn.Module):
  """A layer of two weights, one of one, and a stack; each adds what the weights are not."""

  @nn.compact
  def __call__(self, x):
    weight = lambda name, *shape: self.param(name, nn.initializers.ones, shape, F)
    x = jnp.einsum('nd,hdk->nhk', x, weight('in', 2, 4, 3)) + weight('shift', 1, 2, 1)
    x = jnp.tanh(jnp.einsum('nhk,hkd->nd', x, weight('out', 2, 3, 5).astype(F)))
    x = nn.Dense(4, param_dtype=F, name='dense')(x)
    scan = nn.scan(lambda layer, carry, _: (jnp.tanh(layer(carry)), None), length=3,
                   variable_axes={'params': 0}, split_rngs={'params': True})
    return scan(nn.Dense(4, param_dtype=F, name='stack'), x, None)[0]


@pytest.mark.parametrize('plug', [lambda model: model, lambda model: bioprop.plug(model, 'dfa')],
                         ids=['plain', 'plugged'])
def test_layers_are_named_and_linear(plug):
  """By their paths; of a layer with several weights by these; of a stack as one layer sees it."""
  layers = bioprop.measure.layers(plug(Written()), jax.ShapeDtypeStruct((7, 4), F))
  want = {'in': ('in', (2, 4, 3), (7, 4)), 'out': ('out', (2, 3, 5), (7, 2, 3)),
          'dense': ('dense/kernel', (5, 4), (7, 5)), 'stack': ('stack/kernel', (4, 4), (7, 4))}
  assert {label: layer.label for label, layer in layers.items()} == dict(zip(want, want))
  equations = {'in': 'nd,hdk->nhk', 'out': 'nhk,hkd->nd'}
  for label, (path, shape, x_shape) in want.items():
    layer = layers[label]
    assert {name: w.shape for name, w in layer.weights.items()} == {path: shape}
    assert layer.x.shape == x_shape
    w, x = RNG.randn(*shape), RNG.randn(*x_shape)
    y = layer.linear({path: jnp.asarray(w)}, jnp.asarray(x))
    assert y.shape == layer.y.shape
    np.testing.assert_allclose(y, np.einsum(equations.get(label, 'nd,dk->nk'), x, w), rtol=1e-12)


def test_weights_of_several_parameters():
  """A layer that puts two together has both."""

  class Joined(nn.Module):

    @nn.compact
    def __call__(self, x):
      weight = lambda name: self.param(name, nn.initializers.ones, (4, 3), F)
      return x @ jnp.concatenate([weight('a'), weight('b')], 1)

  (layer,) = bioprop.measure.layers(Joined(), jax.ShapeDtypeStruct((2, 4), F)).values()
  a, b, x = RNG.randn(4, 3), RNG.randn(4, 3), RNG.randn(2, 4)
  assert set(layer.weights) == {'a', 'b'}
  y = layer.linear({'a': jnp.asarray(a), 'b': jnp.asarray(b)}, jnp.asarray(x))
  np.testing.assert_allclose(y, x @ np.concatenate([a, b], 1), rtol=1e-12)
