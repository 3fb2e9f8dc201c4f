"""Sign-symmetric rules: the magnitudes, and the keys that they are drawn from."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors


def sent(model, variables, key=None):
  """B of `last`, read off what an error of one-hot rows sends to the layer's input."""
  rngs = None if key is None else {'feedback': key}
  x = jnp.zeros((3, 4))
  run = lambda x: model.apply(variables, x, rngs=rngs)
  return np.asarray(jax.vjp(run, x)[1](jnp.eye(3))[0]).T


@pytest.fixture
def dense(x64):
  """One layer whose 12 weights are known."""
  kernel = jnp.asarray(np.random.RandomState(0).randn(4, 3))
  return nn.Dense(3, param_dtype=jnp.float64), {'params': {'kernel': kernel, 'bias': jnp.zeros(3)}}


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_uniform_has_the_norm_and_the_signs_of_w(dense, scale):
  """||B||_F = scale ||W||_F, one magnitude."""
  model, variables = dense
  b = sent(bioprop.plug(model, bioprop.make('usf', scale=scale)), variables)
  w = np.asarray(variables['params']['kernel'])
  np.testing.assert_allclose(np.linalg.norm(b), scale * np.linalg.norm(w), rtol=1e-12)
  np.testing.assert_array_equal(np.sign(b), np.sign(w))
  np.testing.assert_allclose(np.abs(b), np.abs(b).max(), rtol=1e-12)


def test_batchwise_follows_the_key(dense):
  """Equal for the same key, different for another, always the signs of W."""
  model, variables = dense
  plugged = bioprop.plug(model, 'brsf')
  one, again, two = (sent(plugged, variables, jax.random.key(i)) for i in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - two).min() > 1e-6
  for b in (one, two):
    np.testing.assert_array_equal(np.sign(b), np.sign(variables['params']['kernel']))


def test_batchwise_has_the_norm_of_w_in_expectation(dense):
  """Mean of ||B||^2 over 400 keys; its standard error is ||W||^2 sqrt(2 / 12 / 400)."""
  model, variables = dense
  plugged = bioprop.plug(model, 'brsf')
  x = jnp.zeros((3, 4))
  one = lambda key: jnp.sum(jax.vjp(
      lambda x: plugged.apply(variables, x, rngs={'feedback': key}), x)[1](jnp.eye(3))[0]**2)
  squares = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 400))
  w = np.asarray(variables['params']['kernel'])
  assert abs(float(squares.mean()) / (w**2).sum() - 1) < 5 * np.sqrt(2 / 12 / 400)


def test_batchwise_without_a_stream(dense):
  """The message names what to type."""
  model, variables = dense
  with pytest.raises(errors.FeedbackMissingError, match=r"rngs=\{'feedback': jax\.random\.fold_in"):
    bioprop.plug(model, 'brsf').apply(variables, jnp.zeros((2, 4)))


def test_fixed_keeps_its_magnitudes_and_follows_the_signs(dense):
  """W changes sign: so does B, with the same magnitudes."""
  model, variables = dense
  plugged = bioprop.plug(model, 'frsf')
  feedback = plugged.init(jax.random.key(0), jnp.zeros((2, 4)))['feedback']
  b = sent(plugged, {**variables, 'feedback': feedback})
  flipped = {'params': jax.tree.map(jnp.negative, variables['params']), 'feedback': feedback}
  np.testing.assert_array_equal(sent(plugged, flipped), -b)
  np.testing.assert_allclose(np.abs(b), np.abs(feedback['kernel']), rtol=1e-12)
  np.testing.assert_array_equal(np.sign(b), np.sign(variables['params']['kernel']))
