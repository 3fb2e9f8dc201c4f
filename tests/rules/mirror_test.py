"""Weight mirror: from any start B becomes W, in layers of every kind."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors


class Convolutional(nn.Module):
  """A padded, strided convolution and a readout."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(3, (2, 3), strides=2)(x))
    return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class Tied(nn.Module):
  """One matrix that embeds and reads out."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(7, 5)
    return embed.attend(nn.tanh(nn.Dense(5)(embed(tokens))))


CASES = {
    'conv': (Convolutional, np.random.RandomState(0).randn(8, 5, 5, 2).astype(np.float32)),
    'tied': (Tied, np.random.RandomState(0).randint(0, 7, (6, 4))),
}


def settle(gradient, params, rate=0.05, steps=4000):
  """Descent, and the mean over its last half."""

  def step(params, key):
    params = jax.tree.map(lambda w, g: w - rate * g, params, gradient(params, key))
    return params, params

  every = jax.jit(lambda p: jax.lax.scan(step, p, jax.random.split(jax.random.key(5), steps))[1])
  return jax.tree.map(lambda w: np.asarray(w[steps // 2:].mean(0)), every(params))


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_it_becomes_the_weight(case):
  """Without any error at the output, the weights stay and the feedback finds them."""
  cls, x = CASES[case]
  model = bioprop.plug(cls(), 'mirror')
  params = model.init(jax.random.key(0), x)['params']
  gradient = lambda p, key: jax.grad(
      lambda p: 0.0 * model.apply({'params': p}, x, rngs={'feedback': key}).sum())(p)
  after, found = settle(gradient, params), 0
  for layer, leaves in after.items():
    for name in [n for n in leaves if n.startswith('feedback_')]:
      w, b, before = leaves[name[9:]], leaves[name], params[layer][name]
      np.testing.assert_allclose(w, params[layer][name[9:]], rtol=1e-6)
      assert np.linalg.norm(b - w) < 0.1 * np.linalg.norm(w) < 0.2 * np.linalg.norm(before - w)
      found += 1
  assert found == 2


@pytest.mark.slow
def test_in_nnx():
  """Its stream gives new noise at every call."""
  x = jnp.ones((8, 4), jnp.float32)
  model = bioprop.plug(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), 'mirror', nnx.Rngs(1))
  gradient = nnx.jit(nnx.grad(lambda m: 0.0 * m(x).sum()))
  one, other = (gradient(model)['feedback_kernel'][...] for _ in range(2))
  assert np.abs(one - other).max() > 1e-3
  mean = sum(gradient(model)['feedback_kernel'][...] for _ in range(200)) / 200
  away = model.feedback_kernel[...] - model.kernel[...]
  np.testing.assert_allclose(mean, away, atol=0.2 * float(jnp.abs(away).max()))


def test_noise_needs_a_stream():
  """As the error says."""
  model, x = bioprop.plug(nn.Dense(3), 'mirror'), jnp.ones((2, 4))
  variables = model.init(jax.random.key(0), x)
  with pytest.raises(errors.FeedbackMissingError, match="rngs={'feedback': jax.random.fold_in"):
    model.apply(variables, x)
