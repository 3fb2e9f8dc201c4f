"""Which ops are readouts, for rules that treat them differently."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop


class Decoder(nn.Module):
  """A recurrent cell and a readout in one scan, as a decoder has them."""

  @nn.compact
  def __call__(self, x):
    step = nn.scan(_Step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1,
                   out_axes=1)
    return step(name='step')(jnp.zeros((x.shape[0], 5), x.dtype), x)[1]


class _Step(nn.Module):

  @nn.compact
  def __call__(self, h, x):
    h = nn.tanh(nn.Dense(5, name='hidden')(jnp.concatenate([h, x], -1)))
    return h, nn.Dense(3, name='readout')(h)


def test_a_readout_in_a_scan_that_some_steps_do_not_ask(tools):
  """Masked positions send it nothing, and nothing is what it learns there."""
  x = jnp.asarray(np.random.RandomState(1).randn(4, 5, 6), jnp.float32)
  mask = jnp.asarray(np.arange(5) < 3, jnp.float32)[None, :, None]
  loss = lambda model, v: lambda p: jnp.mean(
      jnp.sin(model.apply({**v, 'params': p}, x)) * mask)
  plugged = bioprop.plug(Decoder(), 'hebb')
  variables = plugged.init(jax.random.key(0), x)
  got, want = (jax.jit(jax.grad(loss(model, variables)))(variables['params'])['step']
               for model in (plugged, Decoder()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
               got['readout'], want['readout'])
  assert not np.allclose(got['hidden']['kernel'], want['hidden']['kernel'], atol=1e-4)


def test_hidden_layers_stay_hebbian_below_another_rule(tools):
  """A cotangent that arrives from a readout under backprop makes a hidden layer no readout."""
  variables = bioprop.plug(tools.Net(), 'hebb').init(jax.random.key(0), tools.x)
  want, got = (tools.gradient(bioprop.plug(tools.Net(), rule), variables, tools.x)
               for rule in ('hebb', {'readout': 'bp', '*': 'hebb'}))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def _tied_linen(x):
  model = bioprop.plug(TiedLinen(), 'hebb')
  variables = model.init(jax.random.key(0), x)
  of = lambda m: jax.grad(lambda p: jnp.mean(jnp.sin(m.apply({'params': p}, x))))(
      variables['params'])['embed']['embedding']
  return of(model), of(TiedLinen())


def _tied_nnx(x):
  of = lambda m: nnx.grad(lambda m: jnp.mean(jnp.sin(m(x))))(m)['embed']['embedding'][...]
  plain = of(TiedNnx())
  return of(bioprop.plug(TiedNnx(), 'hebb', nnx.Rngs(0), x)), plain


class TiedLinen(nn.Module):
  """An embedding that is the readout too."""

  def setup(self):
    self.embed, self.hidden = nn.Embed(5, 4), nn.Dense(4)

  def __call__(self, x):
    return self.embed.attend(nn.tanh(self.hidden(self.embed(x))))


class TiedNnx(nnx.Module):
  """The same."""

  def __init__(self):
    self.embed = nnx.Embed(5, 4, rngs=nnx.Rngs(0))
    self.hidden = nnx.Linear(4, 4, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.embed.attend(jnp.tanh(self.hidden(self.embed(x))))


@pytest.mark.slow
@pytest.mark.parametrize('tied', [_tied_linen, _tied_nnx], ids=['linen', 'nnx'])
def test_an_embedding_has_two_methods(tied):
  """Rows of tokens that do not occur learn as a readout alone; the others as a hidden layer too."""
  got, want = tied(jnp.asarray([[0, 1, 0]]))
  np.testing.assert_allclose(got[2:], want[2:], rtol=1e-5)
  assert not np.allclose(got[:2], want[:2], atol=1e-4)


class Aside(nn.Module):
  """Returns what a hidden layer computes beside the logits."""

  @nn.compact
  def __call__(self, x):
    code = nn.Dense(5, name='code')(x)
    return nn.Dense(3, name='readout')(nn.tanh(code)), code


class AsideNnx(nnx.Module):
  """The same."""

  def __init__(self):
    self.code = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    self.readout = nnx.Linear(5, 3, rngs=nnx.Rngs(1))

  def __call__(self, x):
    code = self.code(x)
    return self.readout(jnp.tanh(code)), code


def _aside_linen(rule, loss, x):
  model = bioprop.plug(Aside(), rule, output=0)
  variables = model.init(jax.random.key(0), x)
  return jax.grad(lambda p: loss(*model.apply({'params': p}, x)))(variables['params'])


def _aside_nnx(rule, loss, x):
  model = bioprop.plug(AsideNnx(), rule, nnx.Rngs(0), x, output=0)
  return nnx.to_pure_dict(nnx.grad(lambda m: loss(*m(x)))(model))


@pytest.mark.parametrize('gradient', [_aside_linen, _aside_nnx], ids=['linen', 'nnx'])
def test_another_output_may_be_in_the_loss_or_not(gradient, tools):
  """If it is, its layer follows what the loss asks of it; if not, it is a hidden layer."""
  both = lambda out, code: jnp.mean(jnp.sin(out)) + jnp.mean(jnp.cos(code))
  asked = gradient('hebb', both, tools.x)
  of_code = gradient('bp', lambda out, code: jnp.mean(jnp.cos(code)), tools.x)
  np.testing.assert_allclose(asked['code']['kernel'], of_code['code']['kernel'], atol=1e-6)
  hidden = gradient('hebb', lambda out, code: jnp.mean(jnp.sin(out)), tools.x)
  assert np.any(hidden['code']['kernel'])
