"""What an NNX model is plugged on: samples that it cannot be called on, and what is no stream."""
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bioprop
from bioprop import errors

X = jax.ShapeDtypeStruct((4, 6), jnp.float32)


class Net(nnx.Module):
  """Dropout, whose mode has to be said: by an argument, or by train() and eval()."""

  def __init__(self):
    self.hidden = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    self.dropout = nnx.Dropout(0.5, deterministic=None, rngs=nnx.Rngs(0))
    self.readout = nnx.Linear(5, 3, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.readout(self.dropout(jax.nn.relu(self.hidden(x))))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'gln'])
@pytest.mark.parametrize('shape, train', [((4, 7), True), ((4, 6), False)])
def test_a_sample_on_which_the_model_fails(rule, shape, train):
  """The model is named, with what it was called on and what it may want; it is not half plugged."""
  model = Net()
  if train:
    model.train()
  definition = nnx.graphdef(model)
  with pytest.raises(errors.SampleError, match=(
      rf'Net cannot be called on float32\[4, {shape[1]}\].*model\.train\(\)\.$')) as caught:
    bioprop.plug(model, rule, nnx.Rngs(1), jax.ShapeDtypeStruct(shape, jnp.float32))
  assert caught.value.__cause__ is not None and nnx.graphdef(model) == definition
  model.train()
  assert bioprop.plug(model, rule, nnx.Rngs(1), X) is model


@pytest.mark.parametrize('args', [(X,), (jnp.ones((4, 6)),), (jnp.ones((4, 6)), nnx.Rngs(1))])
def test_a_sample_where_streams_belong(args):
  """They come first; the sample's size is told, not its numbers."""
  with pytest.raises(TypeError, match=(
      r'third argument, and got float32\[4, 6\]\..*plug\(model, rule, nnx\.Rngs\(0\), x\)\.$')):
    bioprop.plug(Net(), 'fa', *args)


def test_what_is_no_model():
  """A state is told by its class, not by all its arrays."""
  with pytest.raises(TypeError, match=r"got <class '[^']*State'>\. Make the model first"):
    bioprop.plug(nnx.state(Net()), 'fa', nnx.Rngs(1))


def test_describe_of_what_was_not_plugged_itself():
  """Its table would say backprop of weights that learn by a rule."""
  model = Net()
  model.train()
  bioprop.plug(model.hidden, 'fa', nnx.Rngs(1))
  with pytest.raises(errors.PluggedError, match="Net was not plugged.*at 'hidden' was"):
    bioprop.describe(model, None, X)
  assert {row.rule for row in bioprop.describe(model.hidden, None)} == {'fa'}
  with pytest.raises(errors.PluggedError, match='describe'):
    bioprop.describe(bioprop.plug(Net(), 'fa', nnx.Rngs(1)).readout, None)
