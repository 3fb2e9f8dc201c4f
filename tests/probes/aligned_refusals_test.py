"""Models, rules and variables of which nothing is certain to stay aligned."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.errors import FeedbackMissingError, MeasureError, TheoryError
from bioprop.models import MLP

KEY, X = jax.random.key(0), jnp.ones((2, 3))


class Unit(nn.Module):
  """A layer whose weight has norm 1."""

  @nn.compact
  def __call__(self, x):
    w = self.param('kernel', nn.initializers.normal(), (4, 4))
    return x @ (w / jnp.sqrt(jnp.sum(jnp.square(w))))


class Net(nn.Module):
  """Three layers of four units, put together as `kind` says."""
  kind: str

  @nn.compact
  def __call__(self, x):
    dense = lambda name: nn.Dense(4, name=name)
    one = dense('one')(x)
    if self.kind == 'tanh':
      return dense('last')(dense('two')(jnp.tanh(one)))
    if self.kind == 'normalised':
      return dense('last')(nn.LayerNorm()(dense('two')(one)))
    if self.kind == 'normalised without parameters':
      return dense('last')(nn.LayerNorm(use_bias=False, use_scale=False)(dense('two')(one)))
    if self.kind == 'normalised weight':
      return dense('last')(Unit(name='two')(one))
    if self.kind == 'stopped':
      return dense('last')(dense('two')(jax.lax.stop_gradient(one)))
    if self.kind == 'residual':
      return dense('last')(one + dense('two')(nn.relu(one)))
    if self.kind == 'branches':
      return dense('last')(dense('two')(x) + one)
    if self.kind == 'skip to the output':
      return one + dense('last')(dense('two')(one))
    if self.kind == 'shared':
      two = dense('two')
      return dense('last')(two(two(one)))
    two = nn.scan(lambda layer, carry, _: (layer(carry), None), length=3,
                  variable_axes={'params': 0, 'feedback': 0},
                  split_rngs={'params': True, 'feedback': True})(dense('two'), one, None)[0]
    return dense('last')(two)


@pytest.mark.parametrize('kind, match', [
    ('tanh', "input of the layer 'two'.*such as tanh"),
    ('normalised weight', "'two' multiplies with a function of its parameter 'two/kernel'"),
    ('normalised', 'LayerNorm_0/bias, LayerNorm_0/scale'),
    ('normalised without parameters', "input of the layer 'last'"),
    ('stopped', "input of the layer 'two'"),
    ('residual', "input of the layer 'last'"), ('branches', "input of the layer 'two'"),
    ('skip to the output', "more than its last layer 'last'"), ('shared', 'called again'),
    ('loop', 'called again, or in a loop')])
@pytest.mark.some(2)
def test_models_that_are_no_chains(kind, match):
  """The feedback can be set, and the weights stay."""
  model = bioprop.plug(Net(kind), 'fa')
  variables = model.init(KEY, X)
  with pytest.raises(TheoryError, match=f'{match}.*scale=False'):
    bioprop.theory.aligned_init(model, variables, X)
  start = bioprop.theory.aligned_init(model, variables, X, scale=False)
  jax.tree.map(np.testing.assert_array_equal, start['params'], variables['params'])
  for layer, b in start['feedback'].items():
    np.testing.assert_array_equal(b['kernel'], variables['params'][layer]['kernel'])
  assert ('two' in start['feedback']) == (kind != 'stopped')  # Nothing is sent there.


@pytest.mark.parametrize('rule, match', [
    ('bp', 'Backprop'), ('dfa', 'DirectFeedbackAlignment'), ('usf', 'UniformSign'),
    ('frsf', 'FixedSign'), ('brsf', 'BatchSign'), ('mirror', 'WeightMirror'), ('hebb', 'Hebb'),
    ('align_zero', 'AlignZero'),
    ({'Dense_1': 'dfa', '*': 'fa'}, "'Dense_1' learns by DirectFeedbackAlignment"),
    ({'Dense_0': 'hebb', '*': 'fa'}, "'Dense_0' learns by Hebb")], ids=str)
def test_rules_without_such_feedback(rule, match):
  """Said before anything is changed."""
  model = bioprop.plug(MLP(classes=2, hidden=(4,), activation='relu'), rule)
  shapes = jax.eval_shape(lambda: model.init(KEY, X))
  with pytest.raises(TheoryError, match=match):
    ones = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
    bioprop.theory.aligned_init(model, ones, X)


def test_other_errors():
  """A readout of zeros, feedback that is bound, and variables of another model."""
  layer = lambda width: nn.Dense(width, kernel_init=nn.initializers.zeros)
  zero = bioprop.plug(nn.Sequential([layer(9), nn.relu, layer(2)]), 'fa')
  with pytest.raises(TheoryError, match='layer 2 of 2'):
    bioprop.theory.aligned_init(zero, zero.init(KEY, X), X)
  plain = MLP(classes=2, hidden=(4,), activation='relu')
  model = bioprop.plug(plain, 'fa')
  variables = model.init(KEY, X)
  with pytest.raises(FeedbackMissingError, match='Align first'):
    bioprop.theory.aligned_init(bioprop.plug(plain, 'fa', variables=variables), variables, X)
  with pytest.raises(MeasureError, match='not those of the model'):
    bioprop.theory.aligned_init(model, {'params': variables['params']}, X)
