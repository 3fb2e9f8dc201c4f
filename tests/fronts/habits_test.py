"""What others do with their models, done with plugged ones."""
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.rules import OF_TIME

# The models below are not gln's: they have no ReLU.
RULES = [rule for rule in bioprop.RULES if rule not in ('gln', *OF_TIME)]


class Fields(nn.Module):
  """Required, keyword-only and derived fields; a partial as norm; submodules; a method."""
  widths: list
  norm: object = functools.partial(nn.LayerNorm, epsilon=1e-3)
  head: nn.Module = dataclasses.field(default_factory=lambda: nn.Dense(3), kw_only=True)
  total: int = dataclasses.field(init=False, default=0)

  def __post_init__(self):
    self.total = sum(self.widths)
    super().__post_init__()

  @nn.compact
  def __call__(self, x, *, extra=None):
    for width in self.widths:
      x = nn.tanh(self.norm()(nn.Dense(width)(x)))
    x = x if extra is None else x + nn.Dense(x.shape[-1], name='extra')(inputs=extra)
    return {'logits': self.head(x), 'none': None, 'steps': jnp.arange(2)}


class Coder(nn.Module):
  """Has methods beside __call__."""

  def setup(self):
    self.encoder, self.decoder = nn.Dense(2), nn.Dense(6)

  def encode(self, x):
    return nn.tanh(self.encoder(x))

  def __call__(self, x):
    return self.decoder(self.encode(x))


@pytest.mark.slow
@pytest.mark.parametrize('rule', RULES)
def test_fields_and_odd_outputs(tools, rule):
  """Lists, partials, submodules and __post_init__; a dict out; keyword inputs."""
  model = bioprop.plug(Fields([5, 4]), rule)
  assert isinstance(model, Fields) and model.widths == [5, 4] and model.total == 9
  assert type(model).__name__ == 'Fields' and model.clone(widths=[2]).total == 2
  variables = model.init(jax.random.key(0), tools.x, extra=tools.x)
  run = lambda p: model.apply({**variables, 'params': p}, tools.x, extra=tools.x,
                              rngs=tools.RNGS)
  grads = jax.grad(lambda p: jnp.mean(run(p)['logits']**2))(variables['params'])
  for name in ('Dense_0', 'Dense_1', 'extra', 'head'):
    assert np.any(grads[name]['kernel']) == (rule != 'last_layer' or name == 'head')
  assert run(variables['params'])['none'] is None


@pytest.mark.slow
def test_tables_and_lazy_init(tools):
  """tabulate counts what the plain model has, and the feedback beside it."""
  model = bioprop.plug(tools.Net(), 'fa')
  table = model.tabulate(jax.random.key(0), tools.x, compute_flops=False)
  assert 'feedback' in table and 'hidden' in table
  assert 'hidden' in nn.tabulate(model, jax.random.key(0))(tools.x)
  lazy = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((4, 6), jnp.float32))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),  # Compiled, and not.
               lazy, model.init(jax.random.key(0), tools.x))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'usf', 'kp'])
@pytest.mark.some(2)
def test_per_sample_gradients(tools, rule):
  """jax.vmap over samples: their sum is the batch's gradient under a sum loss."""
  model = bioprop.plug(tools.Net(), rule)
  variables = model.init(jax.random.key(0), tools.x)
  grad = jax.grad(lambda p, x: jnp.sum(model.apply({**variables, 'params': p}, x)**2))
  each = jax.vmap(grad, (None, 0))(variables['params'], tools.x[:, None])
  whole = grad(variables['params'], tools.x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, atol=1e-4), each, whole)


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'hebb'])
def test_intermediates_and_mutable(tools, rule):
  """What is captured is the plain model's; ports do not show."""
  model = bioprop.plug(tools.Net(), rule)
  variables = model.init(jax.random.key(0), tools.x)
  _, got = model.apply(variables, tools.x, capture_intermediates=True, mutable=['intermediates'])
  _, want = tools.Net().apply({'params': variables['params']}, tools.x,
                              capture_intermediates=True, mutable=['intermediates'])
  jax.tree.map(np.testing.assert_array_equal, got, want)
  _, state = model.apply(variables, tools.x, mutable=True)
  assert set(state) <= {'params', 'feedback', 'intermediates'}


def test_methods(tools):
  """By name, by function, as a lambda."""
  model = bioprop.plug(Coder(), 'fa')
  variables = model.init(jax.random.key(0), tools.x)
  want = np.asarray(model.apply(variables, tools.x, method='encode'))
  for method in (Coder.encode, lambda self, x: self.encode(x)):
    np.testing.assert_array_equal(model.apply(variables, tools.x, method=method), want)
  grads = jax.grad(lambda v: model.apply(v, tools.x, method='encode').sum())(variables)
  assert np.any(grads['params']['encoder']['kernel'])
  assert not np.any(grads['params']['decoder']['kernel'])


@pytest.mark.parametrize('rule', RULES)
def test_a_layer_by_itself(tools, rule):
  """The model may be one nn.Dense: the readout, which follows the true gradient."""
  model = bioprop.plug(nn.Dense(3), rule)
  variables = model.init(jax.random.key(0), tools.x)
  got = tools.gradient(model, variables, tools.x)
  want = tools.gradient(nn.Dense(3), nn.Dense(3).init(jax.random.key(0), tools.x), tools.x)
  np.testing.assert_allclose(got['kernel'], want['kernel'], atol=1e-6)


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'hebb', 'brsf'])
def test_checkpoint_policies_and_donation(tools, rule):
  """jax.checkpoint around apply changes nothing; buffers may be donated."""
  model = bioprop.plug(tools.Net(), rule)
  variables = model.init(jax.random.key(0), tools.x)
  run = lambda p: model.apply({**variables, 'params': p}, tools.x, rngs=tools.RNGS)
  loss = lambda run: jax.grad(lambda p: jnp.mean(run(p)**2))(variables['params'])
  saved = jax.checkpoint(run, policy=jax.checkpoint_policies.dots_saveable)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loss(saved), loss(run))


def test_per_layer_choice_is_a_composition(tools):
  """{'hidden': 'dfa', '*': 'fa'}: the readout sends by fa, whatever the hidden layer does."""
  x = np.asarray(tools.x)
  mixed = bioprop.plug(tools.Net(), {'hidden': 'dfa', '*': 'fa'})
  variables = mixed.init(jax.random.key(0), x)
  got = tools.gradient(mixed, variables, x)
  alone = bioprop.plug(tools.Net(), 'fa')
  feedback = {**alone.init(jax.random.key(0), x)['feedback'],
              'readout': variables['feedback']['readout']}
  want = tools.gradient(alone, {'params': variables['params'], 'feedback': feedback}, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
  p, b = jax.tree.map(np.asarray, (variables['params'], variables['feedback']))
  h = np.tanh(x @ p['hidden']['kernel'] + p['hidden']['bias'])
  f = h @ p['readout']['kernel'] + p['readout']['bias']
  delta = (np.cos(f) / f.size) @ b['readout']['kernel'].T * (1 - h**2)
  np.testing.assert_allclose(got['hidden']['kernel'], x.T @ delta, atol=1e-6)
