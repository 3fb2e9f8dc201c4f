"""Kolen-Pollack: with decay lambda and rate eta, W - B shrinks by 1 - eta lambda at each step."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bioprop

F = jnp.float64
RATE, DECAY = 0.1, 0.3


class Convolutional(nn.Module):
  """A convolution and a readout."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(3, (2, 2), strides=2, param_dtype=F)(x))
    return nn.Dense(2, param_dtype=F)(x.reshape((x.shape[0], -1)))


class Tied(nn.Module):
  """One matrix that embeds and reads out."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(7, 5, param_dtype=F)
    h = nn.tanh(nn.Dense(5, param_dtype=F)(embed(tokens)))
    return embed.attend(h)


class Mlp(nn.Module):
  """Three layers."""

  @nn.compact
  def __call__(self, x):
    for width in (6, 5):
      x = nn.tanh(nn.Dense(width, param_dtype=F)(x))
    return nn.Dense(2, param_dtype=F)(x)


CASES = {
    'mlp': (Mlp, lambda key: jax.random.normal(key, (5, 4), F)),
    'conv': (Convolutional, lambda key: jax.random.normal(key, (5, 4, 4, 2), F)),
    'tied': (Tied, lambda key: jax.random.randint(key, (5, 3), 0, 7)),
}


def pairs(params):
  """(W, B) of every layer."""
  for _, leaves in sorted(params.items()):
    for name, b in leaves.items():
      if name.startswith('feedback_'):
        yield leaves[name.removeprefix('feedback_')], b


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('decay', [DECAY, 0.0])
def test_weights_and_feedback_converge_at_the_decays_rate(x64, case, decay):
  """The norm of W - B, step by step."""
  cls, draw = CASES[case]
  model, x = bioprop.plug(cls(), 'kp'), draw(jax.random.key(1))
  params = model.init(jax.random.key(0), x)['params']
  tx = optax.chain(optax.add_decayed_weights(decay), optax.sgd(RATE))
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda p: jnp.mean(model.apply({'params': p}, x)**2))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, grads

  for _ in range(4):
    before = [(np.asarray(w), np.asarray(b)) for w, b in pairs(params)]
    assert len(before) == (3 if case == 'mlp' else 2)
    params, state, grads = step(params, state)
    for (w0, b0), (w, b) in zip(before, pairs(params)):
      ratio = np.linalg.norm(w - b) / np.linalg.norm(w0 - b0)
      np.testing.assert_allclose(ratio, 1 - RATE * decay, rtol=1e-12)
      assert np.abs(w - w0).max() > 1e-6
    for dw, db in pairs(grads):
      np.testing.assert_array_equal(dw, db)
