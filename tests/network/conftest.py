"""Gradients of functions and of the same functions under rules, in float64."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop


def draw(*shape, seed=0):
  """Normals."""
  return jnp.asarray(np.random.RandomState(seed).randn(*shape))


def fill(shapes, seed=0):
  """Normals as large as LeCun's in place of shapes; no initialiser has to be compiled."""
  random = np.random.RandomState(seed)
  fan_in = lambda s: max(1, s.size // s.shape[-1]) if len(s.shape) > 1 else 4
  return jax.tree.map(lambda s: jnp.asarray(random.randn(*s.shape) / fan_in(s)**0.5, s.dtype),
                      shapes)


def gradient(apply, params, *rest):
  """Of a loss whose error is no multiple of the output."""
  return jax.jit(jax.grad(lambda p, *rest: jnp.mean(jnp.sin(apply(p, *rest)))))(params, *rest)


def same(got, want, rtol=1e-12):
  """Trees of arrays are equal up to rounding, beside the largest of all entries."""
  got, want = jax.tree.map(np.asarray, (got, want))
  scale = max(np.abs(w).max() for w in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)


def distance(got, want):
  """The largest difference of two trees, beside the largest of all entries."""
  pairs = [jax.tree.map(np.asarray, pair) for pair in zip(*map(jax.tree.leaves, (got, want)))]
  return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs)


def feedback_of(plugged, params, *inputs, seed=1):
  """Feedback of the shapes that `init_feedback` makes."""
  shapes = jax.eval_shape(
      lambda p, *inputs: plugged.init_feedback(jax.random.key(0), p, *inputs), params, *inputs)
  return fill(shapes, seed)


def forward_as_feedback(feedback, params):
  """B := W, wherever there is a B."""
  if not isinstance(feedback, dict):
    return params
  named = (lambda name: params[int(name)] if isinstance(params, list | tuple) else
           params[name] if isinstance(params, dict) else getattr(params, name))
  return {name: forward_as_feedback(value, named(name)) for name, value in feedback.items()}


def check_exact(function, params, *inputs, rtol=1e-12):
  """fa with B = W is backprop, and with another B it is not; returns its feedback."""
  plugged = bioprop.plug(function, 'fa')
  feedback = feedback_of(plugged, params, *inputs)
  want = gradient(function, params, *inputs)
  run = jax.jit(lambda b: gradient(lambda p: plugged.apply(p, b, *inputs), params))
  same(run(forward_as_feedback(feedback, params)), want, rtol)
  assert distance(run(feedback), want) > 1e-3, 'its own feedback gives backprop'
  return feedback


@pytest.fixture
def tools():
  """Functions that the tests of the network share."""
  return types.SimpleNamespace(
      draw=draw, fill=fill, gradient=gradient, same=same, distance=distance,
      feedback_of=feedback_of, forward_as_feedback=forward_as_feedback, check_exact=check_exact)
