"""What is drawn in place of constant weights, and that nothing is where they are not constant."""
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

X = jnp.ones((2, 400))


def feedback(way, initializer, width=300):
  dense = nn.Dense(width, kernel_init=initializer, use_bias=False)
  model = bioprop.plug(dense, bioprop.make('fa', scale=1.0))
  init = lambda key: model.init(key, X)['feedback']['kernel']
  return np.asarray(way(init)(jax.random.key(0)))


@pytest.mark.parametrize('way', [lambda f: f, jax.jit])
def test_in_place_of_a_constant_weight_it_is_lecun_normal(way):
  made = feedback(way, nn.initializers.ones)
  assert abs(made.mean()) < 5 * 400**-.5 * made.size**-.5
  np.testing.assert_allclose(made.std(), 400**-.5, rtol=.02)


@pytest.mark.parametrize('way', [lambda f: f, jax.jit])
def test_other_weights_are_drawn_by_their_own_initialiser(way):
  made = feedback(way, nn.initializers.uniform(.5))
  assert .499 < made.max() < .5 and 0 <= made.min() < .001


def test_no_normal_is_drawn_for_those(caplog):
  with caplog.at_level(logging.WARNING), jax.log_compiles():
    feedback(lambda f: f, nn.initializers.uniform(.5), width=301)  # A shape not seen before.
  compiled = [row for row in caplog.messages if row.startswith('Compiling jit(')]
  assert any('_uniform' in row for row in compiled)
  assert not any('constant' in row for row in compiled)
