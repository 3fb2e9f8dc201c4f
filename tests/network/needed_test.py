"""Runs of what a result needs: the result is the same, nothing else runs, shapes compile once."""
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.network.needed import only_what_is_needed


class Stack(nn.Module):
  """Layers in a scan, one that is rematerialised, and one alone."""

  @nn.compact
  def __call__(self, x):
    layers = nn.scan(Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
    x, _ = layers(name='layers')(x, None)
    return nn.Dense(2)(nn.remat(nn.Dense)(5)(x))


class Layer(nn.Module):

  @nn.compact
  def __call__(self, x, _):
    return nn.relu(nn.Dense(4)(x)), None


@pytest.mark.parametrize('way', [
    lambda f: f, jax.jit, pytest.param(jax.vmap, marks=pytest.mark.slow)])
def test_it_is_the_functions_own_result(way):
  keys = jax.random.split(jax.random.key(0), 2)
  init = lambda key: Stack().init(key, jnp.ones((1, 4)))
  key = keys if way is jax.vmap else keys[0]
  found, expected = way(lambda key: only_what_is_needed(init, key))(key), way(init)(key)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  jax.tree.map(close, found, expected)


def test_arguments_are_trees():
  add = lambda a, b: {'sum': a['x'] + b[0]}
  found = only_what_is_needed(add, {'x': jnp.ones(3)}, [jnp.arange(3.)])
  np.testing.assert_array_equal(found['sum'], [1., 2., 3.])


@pytest.mark.parametrize('inside', [lambda f: f, jax.jit, jax.checkpoint])
def test_nothing_else_is_run(inside):
  ran = []
  seen = lambda x: ran.append('ran') or x

  @inside
  def both(x):
    return x + 1, jax.pure_callback(seen, jax.ShapeDtypeStruct((), jnp.float32), x)

  assert only_what_is_needed(lambda x: both(x)[0], jnp.float32(1)) == 2
  assert not ran
  assert only_what_is_needed(both, jnp.float32(1))[1] == 1
  assert ran == ['ran']


def test_each_shape_is_compiled_once(caplog):
  draw = lambda key: [jax.random.normal(own, shape) for own, shape in
                      zip(jax.random.split(key, 4), [(3, 7), (3, 7), (2, 7), (3, 7)])]
  with caplog.at_level(logging.WARNING), jax.log_compiles():
    only_what_is_needed(draw, jax.random.key(0))
  compiled = [row for row in caplog.messages if row.startswith('Compiling jit(_normal)')]
  assert len(compiled) == 2
