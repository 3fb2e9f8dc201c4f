"""A weight may be used wherever the model likes: past its layer, in loops, and by other layers."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

pytestmark = pytest.mark.usefixtures('x64')
TOKENS = jnp.asarray([[0, 3, 1], [2, 2, 4]])

# What stands in place of the readout: it takes the embedding layer, its weight, and activities.
TIES = {
    'attend': lambda embed, w, h: embed.attend(h),
    'not at all': lambda embed, w, h: h,
    'stopped': lambda embed, w, h: h @ jax.lax.stop_gradient(w).T,
    'a choice by it': lambda embed, w, h: jnp.where(w[0, 0] > 0, h, -h),
    'transposed': lambda embed, w, h: h @ w.T,
    'as well as attend': lambda embed, w, h: embed.attend(h) + h @ w.T,
    'remat': lambda embed, w, h: jax.checkpoint(lambda w: h @ w.T)(w),
    'jit': lambda embed, w, h: jax.jit(lambda w: h @ w.T)(w),
    'scan': lambda embed, w, h: jax.lax.scan(lambda c, _: (c + h @ w.T, None), h @ w.T, None, 2)[0],
    'a carry': lambda embed, w, h: jax.lax.scan(
        lambda c, _: ((c[1], c[0]), h @ c[0].T), (jnp.zeros_like(w), w), None, 2)[1],
    'cond': lambda embed, w, h: jax.lax.cond(
        jnp.sum(h**2) > 0, lambda w: h @ w.T, lambda w: jnp.zeros((2, 3, 5)), w),
}


class Linen(nn.Module):
  """Tokens, embedded, a layer, and a way to tie the readout."""
  tie: object

  def setup(self):
    self.embed = nn.Embed(5, 4, param_dtype=jnp.float64)
    self.hidden = nn.Dense(4, param_dtype=jnp.float64)

  def __call__(self, x):
    h = jnp.tanh(self.hidden(self.embed(x)))
    return self.tie(self.embed, self.embed.embedding, h)


@pytest.mark.parametrize('tie', TIES)
@pytest.mark.some(2)
def test_tied(tools, tie):
  """B = W is backprop; the matrix has feedback where it multiplies data."""
  model = Linen(TIES[tie])
  params = tools.fill(jax.eval_shape(model.init, jax.random.key(0), TOKENS))['params']
  apply = lambda params, x: model.apply({'params': params}, x)
  feedback = tools.check_exact(apply, params, TOKENS)
  assert ('embed' in feedback) == (tie not in ('not at all', 'a choice by it'))


def test_a_weight_past_its_layer_in_a_while_loop(tools):
  """No gradient can be asked; the forward pass is the plain one, traced or not."""
  loop = lambda embed, w, h: jax.lax.while_loop(
      lambda c: c[0] < 1, lambda c: (c[0] + 1, h @ w.T), (0, jnp.zeros((2, 3, 5))))[1]
  model = bioprop.plug(Linen(loop), 'fa')
  variables = model.init(jax.random.key(0), TOKENS)
  want = Linen(loop).apply({'params': variables['params']}, TOKENS)
  np.testing.assert_array_equal(model.apply(variables, TOKENS), want)
  np.testing.assert_allclose(jax.jit(model.apply)(variables, TOKENS), want, rtol=1e-12)


def test_backprop_may_be_asked_of_it_alone(tools):
  """The tied matrix on backprop, the layer below on feedback alignment."""
  model = Linen(TIES['transposed'])
  params = tools.fill(jax.eval_shape(model.init, jax.random.key(0), TOKENS))['params']
  apply = lambda params, x: model.apply({'params': params}, x)
  plugged = bioprop.plug(apply, {'embed': 'bp', '*': 'fa'})
  feedback = tools.feedback_of(plugged, params, TOKENS)
  assert set(feedback) == {'hidden'}
  run = lambda b: tools.gradient(lambda p: plugged.apply(p, b, TOKENS), params)
  tools.same(run(tools.forward_as_feedback(feedback, params)),
             tools.gradient(apply, params, TOKENS))
  assert tools.distance(run(feedback), run(tools.forward_as_feedback(feedback, params))) > 1e-3


class Nnx(nnx.Module):
  """Tokens, embedded, a layer, and the embedding's matrix once more."""

  def __init__(self):
    self.embed = nnx.Embed(5, 4, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    self.hidden = nnx.Linear(4, 4, rngs=nnx.Rngs(1), param_dtype=jnp.float64)

  def __call__(self, x):
    return jnp.tanh(self.hidden(self.embed(x))) @ self.embed.embedding[...].T


@pytest.mark.slow
def test_tied_in_nnx(tools):
  """As in linen."""
  of = lambda model: nnx.to_pure_dict(nnx.grad(lambda m: jnp.mean(jnp.sin(m(TOKENS))))(model))
  plugged = bioprop.plug(Nnx(), bioprop.make('fa', rho=1.0), nnx.Rngs(0), TOKENS)
  tools.same(of(plugged), of(Nnx()))
