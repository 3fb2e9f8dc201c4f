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


def check_exact(model, x, rtol=1e-12, **kwargs):
  """fa with B = W is backprop, and with its own B it is not; the forward pass is the plain one."""
  plugged = bioprop.wrap(model, 'fa')
  plain = model.init({'params': jax.random.key(0), **RNGS}, x, **kwargs)
  variables = plugged.init({'params': jax.random.key(0), **RNGS}, x, **kwargs)
  jax.tree.map(np.testing.assert_array_equal, variables['params'], plain['params'])
  symmetric = {**variables,
               'feedback': forward_as_feedback(variables['feedback'], variables['params'])}
  want = jax.jit(lambda v: gradient(model, v, x, **kwargs))(plain)
  got, other = jax.jit(lambda v, w: (gradient(plugged, v, x, **kwargs),
                                     gradient(plugged, w, x, **kwargs)))(symmetric, variables)
  scale = max(float(jnp.abs(w).max()) for w in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)
  away = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (other, want))))
  assert away > 1e-3 * scale, 'its own feedback gives backprop: no layer was plugged'
  return variables


@pytest.fixture
def tools():
  """Functions and a model that the tests of the plug share."""
  return types.SimpleNamespace(gradient=gradient, check_exact=check_exact, Net=Net, RNGS=RNGS,
                               x=jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32))
