"""Gradients of plain and plugged models, side by side."""
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

RNGS = {name: jax.random.key(i) for i, name in enumerate(('dropout', 'feedback'), start=5)}


class Net(nn.Module):
  """Two layers."""
  width: int = 6

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='readout')(nn.tanh(nn.Dense(self.width, name='hidden')(x)))


def gradient(model, variables, x, **kwargs):
  """Of a loss whose error is no multiple of the output; batch_stats may change."""

  def loss(params):
    out, _ = model.apply({**variables, 'params': params}, x, rngs=RNGS,
                         mutable=['batch_stats'], **kwargs)
    return jnp.mean(jnp.sin(out))

  return jax.grad(loss)(variables['params'])


def forward_as_feedback(feedback, params):
  """B := W, wherever there is a B."""
  return {name: forward_as_feedback(value, params[name]) if isinstance(value, dict)
          else params[name] for name, value in feedback.items()}


def fill(shapes, seed=0):
  """Normals as large as LeCun's in place of shapes; no initialiser has to be compiled."""
  random = np.random.RandomState(seed)
  fan_in = lambda s: max(1, s.size // s.shape[-1]) if len(s.shape) > 1 else 4
  return jax.tree.map(lambda s: jnp.asarray(random.randn(*s.shape) / fan_in(s)**0.5, s.dtype),
                      shapes)


def check_exact(model, x, rtol=1e-12, **kwargs):
  """fa with B = W is backprop, and with its own B it is not; returns shapes of the variables."""
  plugged = bioprop.plug(model, 'fa')
  keys = {'params': jax.random.key(0), **RNGS}
  plain, shapes = (jax.eval_shape(lambda keys, m=m: m.init(keys, x, **kwargs), keys)
                   for m in (model, plugged))
  assert plain['params'] == shapes['params']
  rest = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype),
                      {k: v for k, v in plain.items() if k != 'params'})
  params, feedback = fill(shapes['params']), fill(shapes['feedback'], seed=1)
  want = jax.jit(lambda v: gradient(model, v, x, **kwargs))({**rest, 'params': params})
  run = jax.jit(lambda v: gradient(plugged, v, x, **kwargs))
  got, other = (run({**rest, 'params': params, 'feedback': b})
                for b in (forward_as_feedback(feedback, params), feedback))
  want, got, other = jax.tree.map(np.asarray, (want, got, other))
  scale = max(np.abs(w).max() for w in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)
  away = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (other, want))))
  assert away > 1e-3 * scale, 'its own feedback gives backprop: no layer was plugged'
  return shapes


@pytest.fixture
def tools():
  """Functions and a model that the tests of the plug share."""
  x = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)
  return types.SimpleNamespace(gradient=gradient, check_exact=check_exact, fill=fill, Net=Net,
                               RNGS=RNGS, x=x)
