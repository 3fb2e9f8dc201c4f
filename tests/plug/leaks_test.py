"""A weight that the model also uses past its layer is refused: no rule could act there."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bioprop
from bioprop.errors import UnsupportedLayerError

pytestmark = pytest.mark.usefixtures('quick')
TOKENS = jnp.zeros((2, 3), int)

# What stands in place of the readout: it takes the embedding layer, its weight, and activities.
INSIDE = {
    'attend': lambda embed, w, h: embed.attend(h),
    'not at all': lambda embed, w, h: h,
    'stopped': lambda embed, w, h: h @ jax.lax.stop_gradient(w).T,
    'a choice by it': lambda embed, w, h: jnp.where(w[0, 0] > 0, h, -h),
}
PAST = {
    'transposed': lambda embed, w, h: h @ w.T,
    'as well as attend': lambda embed, w, h: embed.attend(h) + h @ w.T,
    'remat': lambda embed, w, h: jax.checkpoint(lambda w: h @ w.T)(w),
    'jit': lambda embed, w, h: jax.jit(lambda w: h @ w.T)(w),
    'scan': lambda embed, w, h: jax.lax.scan(lambda c, _: (c + h @ w.T, None), h @ w.T, None, 2)[0],
    'a carry': lambda embed, w, h: jax.lax.scan(
        lambda c, _: ((c[1], c[0]), h @ c[0].T), (jnp.zeros_like(w), w), None, 2)[1],
    'while': lambda embed, w, h: jax.lax.while_loop(
        lambda c: c[0] < 1, lambda c: (c[0] + 1, h @ w.T), (0, jnp.zeros((2, 3, 5))))[1],
    'cond': lambda embed, w, h: jax.lax.cond(
        jnp.sum(h) > 0, lambda w: h @ w.T, lambda w: jnp.zeros((2, 3, 5)), w),
}


class Linen(nn.Module):
  """Tokens, embedded, a layer, and a way to tie the readout."""
  tie: str

  def setup(self):
    self.embed, self.hidden = nn.Embed(5, 4), nn.Dense(4)

  def __call__(self, x):
    h = jnp.tanh(self.hidden(self.embed(x)))
    return {**INSIDE, **PAST}[self.tie](self.embed, self.embed.embedding, h)


class Nnx(nnx.Module):
  """The same."""

  def __init__(self, tie):
    self.tie = tie
    self.embed = nnx.Embed(5, 4, rngs=nnx.Rngs(0))
    self.hidden = nnx.Linear(4, 4, rngs=nnx.Rngs(1))

  def __call__(self, x):
    h = jnp.tanh(self.hidden(self.embed(x)))
    return {**INSIDE, **PAST}[self.tie](self.embed, self.embed.embedding[...], h)


def _linen(tie, rule):
  model = bioprop.wrap(Linen(tie), rule)
  jax.jit(model.apply)(model.init(jax.random.key(0), TOKENS), TOKENS)


def _nnx(tie, rule):
  bioprop.install(Nnx(tie), rule, nnx.Rngs(0), TOKENS)


@pytest.mark.parametrize('plug', [_linen, _nnx], ids=['linen', 'nnx'])
@pytest.mark.parametrize('tie', PAST)
def test_past_its_layer(plug, tie):
  with pytest.raises(UnsupportedLayerError, match="the weight 'embed/embedding' outside its layer"):
    plug(tie, 'fa')


@pytest.mark.parametrize('plug', [_linen, _nnx], ids=['linen', 'nnx'])
@pytest.mark.parametrize('tie', INSIDE)
def test_inside_its_layer(plug, tie):
  plug(tie, 'fa')


@pytest.mark.parametrize('plug', [_linen, _nnx], ids=['linen', 'nnx'])
def test_backprop_may_use_it_anywhere(plug):
  plug('transposed', {'embed': 'bp', '*': 'fa'})


def test_normalised_weights_are_used_by_their_layers(tools):
  """A weight made of other parameters is the layer's own."""
  layer = nnx.WeightNorm(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
  bioprop.install(layer, 'fa', nnx.Rngs(0), tools.x)
