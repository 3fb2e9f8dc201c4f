"""No cache may serve one rule's program to another, or to the plain model."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors


class Block(nn.Module):
  """A residual layer."""

  @nn.compact
  def __call__(self, x):
    return x + nn.tanh(nn.Dense(6)(x))


Jitted = nn.jit(Block)  # One class, so one cache, for all models.


class Model(nn.Module):
  """Has an nn.jit inside."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.tanh(Jitted()(nn.tanh(nn.Dense(6, name='first')(x)))))


@pytest.mark.parametrize('rules', [
    ('usf',), ('usf', 'fa', 'usf'), ('dfa', 'hebb', 'dfa'), ('hebb', 'dfa', 'bp')])
def test_inner_jit(tools, rules):
  """Plain first, then rules in turn: each as in a model without nn.jit."""
  seen = {}

  def loss(model, variables):
    return jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(
        {**variables, 'params': p}, tools.x))))(variables['params'])['first']['kernel']

  plain = Model().init(jax.random.key(0), tools.x)
  exact = np.asarray(loss(Model(), plain))
  for rule in rules:
    model = bioprop.plug(Model(), rule)
    got = np.asarray(loss(model, model.init(jax.random.key(0), tools.x)))
    if rule in seen:
      np.testing.assert_array_equal(got, seen[rule])
    elif rule == 'bp':
      np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-7)
    else:
      assert all(np.abs(got - other).max() > 1e-4 for other in (exact, *seen.values()))
    seen[rule] = got


def test_inner_jit_is_seen_at_every_init(tools):
  """Patterns, reports and errors know the layers inside on the second init too."""
  for _ in range(2):
    model = bioprop.plug(Model(), {'JitBlock_0': 'fa', '*': 'bp'})
    feedback = model.init(jax.random.key(0), tools.x)['feedback']
    assert set(feedback) == {'JitBlock_0'}
    rules = {row.path: row.rule for row in bioprop.describe(Model(), 'fa', tools.x)}
    assert rules['JitBlock_0/Dense_0/kernel'] == 'fa'


def test_outer_jit_that_closes_over_the_model(tools):
  """Two models of one class, two programs."""
  def program(rule):
    model = bioprop.plug(tools.Net(), rule)
    return jax.jit(lambda v: tools.gradient(model, v, tools.x))

  programs = {rule: program(rule) for rule in ('bp', 'usf')}
  variables = tools.Net().init(jax.random.key(0), tools.x)
  bp, usf = (programs[rule](variables)['hidden']['kernel'] for rule in ('bp', 'usf'))
  assert np.abs(bp - usf).max() > 1e-3
  np.testing.assert_allclose(
      bp, tools.gradient(tools.Net(), variables, tools.x)['hidden']['kernel'], atol=1e-6)


def test_models_as_static_arguments(tools):
  """Equal plugs are equal and hash alike: one trace; another rule is another trace."""
  traces = []

  def run(model, variables):
    traces.append(1)
    return model.apply(variables, tools.x)

  jitted = jax.jit(run, static_argnums=0)
  variables = tools.Net().init(jax.random.key(0), tools.x)
  for model in (bioprop.plug(tools.Net(), 'usf'), bioprop.plug(tools.Net(), 'usf'),
                bioprop.plug(bioprop.plug(tools.Net(), 'usf'), 'usf'),
                bioprop.plug(tools.Net(), {'*': 'usf'})):
    jitted(model, variables)
  assert len(traces) == 1
  jitted(bioprop.plug(tools.Net(), 'bp'), variables)
  jitted(tools.Net(), variables)
  assert len(traces) == 3
  assert bioprop.plug(tools.Net(), 'usf') != tools.Net()


def test_wrapping_again(tools):
  """By the same rule it is one model; by another, two rules would act on one weight."""
  once = bioprop.plug(tools.Net(), 'fa')
  again = bioprop.plug(once, bioprop.make('fa'))
  assert once == again and hash(once) == hash(again) and type(again).__mro__[2] is tools.Net
  for other in ('usf', 'bp', bioprop.make('fa', rho=0.5), {'hidden': 'fa', '*': 'bp'}):
    with pytest.raises(errors.PluggedError, match=r'Net learns by FeedbackAlignment.*already'):
      bioprop.plug(once, other)
