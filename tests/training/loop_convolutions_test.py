"""Convolutions rewritten for loops keep their values, and all have the fast layout."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bioprop.training.loop_convolutions import fast_in_loops

_LAYERS = {
    'strided': nn.Conv(4, (3, 3), strides=2),
    'dilated': nn.Conv(4, (3, 3), kernel_dilation=2),
    'input_dilated': nn.Conv(4, (3, 3), input_dilation=2, padding=((1, 1), (1, 1))),
    'grouped': nn.Conv(4, (3, 3), feature_group_count=2),
    'transposed': nn.ConvTranspose(3, (3, 2), strides=(2, 1)),
    'one_dimensional': nn.Conv(4, (3,), padding='CAUSAL'),
    'three_dimensional': nn.Conv(4, (2, 2, 2)),
}


def _gradient(layer, x):
  params = layer.init(jax.random.key(0), x)
  return jax.grad(lambda p, x: jnp.sum(jnp.sin(layer.apply(p, x))), argnums=(0, 1)), (params, x)


def _input(name):
  shape = {'one_dimensional': (2, 9, 4), 'three_dimensional': (2, 4, 5, 6, 4)}.get(
      name, (2, 9, 8, 4))
  return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.slow
@pytest.mark.parametrize('name', _LAYERS)
def test_values_are_those_of_the_function(name):
  function, args = _gradient(_LAYERS[name], _input(name))
  expected, got = function(*args), jax.jit(fast_in_loops(function))(*args)
  assert jax.tree.structure(expected) == jax.tree.structure(got)
  for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(got)):
    np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='rewrites on the CPU only')
def test_every_convolution_is_in_the_fast_layout():
  function, args = _gradient(_LAYERS['strided'], _input('strided'))

  def layouts(function):
    found = []

    def visit(jaxpr):
      for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
          found.append(tuple(eqn.params['dimension_numbers']))
        if eqn.primitive.name == 'jit':
          visit(eqn.params['jaxpr'].jaxpr)

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return found

  fast = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
  assert any(layout != fast for layout in layouts(function))
  assert all(layout == fast for layout in layouts(fast_in_loops(function)))
