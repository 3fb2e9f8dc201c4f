"""The weights that `measure.feedback_weights` finds: they are what the rule sends errors through.

All models are linear, so that their pseudogradients are products of matrices, here NumPy's.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.errors import MeasureError
from bioprop.models import MLP

RNG = np.random.RandomState(0)
KEY = jax.random.key(0)
RNGS = {'feedback': jax.random.key(4)}
F = jnp.float64


def dense(features, name):
  return nn.Dense(features, use_bias=False, param_dtype=F, name=name)


class Line(nn.Module):
  """Three layers, of which the second is called twice."""

  @nn.compact
  def __call__(self, x):
    twice = dense(4, 'twice')
    return dense(2, 'last')(twice(twice(dense(4, 'first')(x))))


class Two(nn.Module):
  """Two layers."""

  @nn.compact
  def __call__(self, x):
    return dense(2, 'last')(dense(4, 'first')(x))


class Tied(nn.Module):
  """One matrix that embeds and reads out."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(5, 4, param_dtype=F, name='embed')
    return embed.attend(dense(4, 'middle')(embed(tokens)))


class Stack(nn.Module):
  """Layers in a loop, and one below and above."""

  @nn.compact
  def __call__(self, x):
    scan = nn.scan(lambda layer, carry, _: (layer(carry), None), length=3,
                   variable_axes={'params': 0, 'feedback': 0},
                   split_rngs={'params': True, 'feedback': True})
    return dense(2, 'last')(scan(dense(4, 'loop'), dense(4, 'first')(x), None)[0])


def drawn(model, x):
  """Variables of normal numbers, feedback too."""
  shapes = jax.eval_shape(lambda x: model.init({'params': KEY, **RNGS}, x), x)
  return jax.tree.map(lambda a: jnp.asarray(0.7 * RNG.randn(*a.shape)), shapes)


def gradients(model, variables, x, error):
  """The pseudogradients of <error, f(x)>, without those of feedback."""
  loss = lambda p: jnp.vdot(error, model.apply({**variables, 'params': p}, x, rngs=RNGS))
  return jax.jit(jax.grad(loss))(variables['params'])


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())


def sender(found, error):
  """Maps the name of a layer and g at its output to what it sends to its input."""
  return lambda name, g: (error @ np.asarray(found.direct[name]) if name in found.direct else
                          g @ np.asarray(found.sent[f'{name}/kernel']).T)


def check_line(found, params, grads, x, error):
  """That the gradients of `Line` are those of errors that go down through what was found."""
  send, w = sender(found, error), {name: np.asarray(p['kernel']) for name, p in params.items()}
  one = x @ w['first']
  two = one @ w['twice']
  later = send('last', error)
  earlier = send('twice', later)
  close(grads['last']['kernel'], (two @ w['twice']).T @ error)
  close(grads['twice']['kernel'], two.T @ later + one.T @ earlier)
  close(grads['first']['kernel'], x.T @ send('twice', earlier))


@pytest.mark.parametrize('rule', [
    'bp', 'fa', 'kp', 'usf', 'frsf', 'mirror', 'align_prop', 'dfa', 'pfa', 'dkp',
    bioprop.make('fa', normalise='weights'),
    {'twice': 'usf', 'last': 'dfa', '*': 'fa'}, {'twice': 'bp', '*': 'kp'}], ids=str)
@pytest.mark.usefixtures('x64')
@pytest.mark.some(2)
def test_errors_go_down_through_it(rule):
  """The pseudogradients of what lies below are products with it; the first layer has none."""
  model, x, error = bioprop.plug(Line(), rule), RNG.randn(3, 4), RNG.randn(3, 2)
  variables = drawn(model, x)
  found = bioprop.measure.feedback_weights(model, variables, x)
  assert {path.split('/')[0] for path in found.sent} | set(found.direct) == {'twice', 'last'}
  assert found.weights.keys() == found.sent.keys()
  for path, w in found.weights.items():
    np.testing.assert_array_equal(w, variables['params'][path.split('/')[0]]['kernel'])
    assert found.sent[path].shape == w.shape
    same = rule == 'bp' or path == 'twice/kernel' and rule == {'twice': 'bp', '*': 'kp'}
    assert (np.abs(found.sent[path] - w).max() < 1e-6) == same
  check_line(found, variables['params'], gradients(model, variables, x, error), x, error)
  if rule == 'fa':  # Feedback that is bound into the model.
    bound = bioprop.plug(Line(), 'fa', variables=variables)
    again = bioprop.measure.feedback_weights(bound, {'params': variables['params']}, x)
    jax.tree.map(np.testing.assert_array_equal, again, found)


@pytest.mark.usefixtures('x64')
def test_a_rule_that_draws_at_every_call():
  """What mirror draws is no feedback: the call sends through what is kept."""
  model, x, error = bioprop.plug(Two(), 'mirror'), RNG.randn(3, 4), RNG.randn(3, 2)
  variables = drawn(model, x)
  found = bioprop.measure.feedback_weights(model, variables, x, rngs=RNGS)
  assert list(found.sent) == ['last/kernel'] and not found.direct
  b = np.asarray(found.sent['last/kernel'])
  close(gradients(model, variables, x, error)['first']['kernel'], x.T @ (error @ b.T))


@pytest.mark.usefixtures('x64')
def test_signs_with_random_magnitudes():
  """Those of the weights; without random streams there is nothing to tell."""
  model, x = bioprop.plug(Two(), 'brsf'), RNG.randn(3, 4)
  variables = drawn(model, x)
  for rngs in (None, {'dropout': KEY}):
    assert not bioprop.measure.feedback_weights(model, variables, x, rngs=rngs).sent
  (b,) = bioprop.measure.feedback_weights(model, variables, x, rngs=RNGS).sent.values()
  np.testing.assert_array_equal(np.sign(b), np.sign(variables['params']['last']['kernel']))
  assert len(np.unique(np.abs(b))) == b.size


@pytest.mark.parametrize('rule', ['hebb', 'align_ada', 'last_layer'])
@pytest.mark.usefixtures('x64')
def test_rules_that_send_nothing_down(rule):
  """And those of the whole network: no layer has feedback."""
  model, x = bioprop.plug(Line(), rule), RNG.randn(3, 4)
  found = bioprop.measure.feedback_weights(model, drawn(model, x), x)
  assert not found.weights and not found.sent and not found.direct


@pytest.mark.parametrize('rule', ['fa', 'usf'])
@pytest.mark.usefixtures('x64')
def test_a_matrix_that_embeds_and_reads_out(rule):
  """It sends to the activities that it reads out, and nothing to tokens."""
  model, tokens = bioprop.plug(Tied(), rule), jnp.asarray([0, 3, 3, 1])
  variables, error = drawn(model, tokens), RNG.randn(4, 5)
  found = bioprop.measure.feedback_weights(model, variables, tokens)
  assert set(found.sent) == {'embed/embedding', 'middle/kernel'} and not found.direct
  b, below = (np.asarray(found.sent[path]) for path in ('embed/embedding', 'middle/kernel'))
  grads = gradients(model, variables, tokens, error)
  params = jax.tree.map(np.asarray, variables['params'])
  one_hot = np.eye(5)[tokens]
  x = one_hot @ params['embed']['embedding']
  close(grads['middle']['kernel'], x.T @ (error @ b))
  close(grads['embed']['embedding'],
        error.T @ (x @ params['middle']['kernel']) + one_hot.T @ (error @ b @ below.T))


@pytest.mark.usefixtures('x64')
def test_layers_that_are_left_out():
  """Those in a loop's stack, of which it is not known which; a layer that is the whole model."""
  x = RNG.randn(3, 4)
  model = bioprop.plug(Stack(), 'fa')
  variables = drawn(model, x)
  assert variables['feedback']['loop']['kernel'].shape == (3, 4, 4)
  assert list(bioprop.measure.feedback_weights(model, variables, x).sent) == ['last/kernel']
  model = bioprop.plug(dense(2, None), 'fa')
  found = bioprop.measure.feedback_weights(model, drawn(model, x), x)
  assert not found.weights and not found.sent


@pytest.mark.usefixtures('x64')
def test_feedback_that_learns():
  """Under Kolen-Pollack, step by step: it moves as the weights do, without decay."""
  model, x, error = bioprop.plug(Line(), 'kp'), RNG.randn(3, 4), RNG.randn(3, 2)
  variables = drawn(model, x)
  found = [bioprop.measure.feedback_weights(model, variables, x)]
  for _ in range(2):
    grads = gradients(model, variables, x, error)
    variables = {'params': jax.tree.map(lambda w, g: w - 0.1 * g, variables['params'], grads)}
    found.append(bioprop.measure.feedback_weights(model, variables, x))
  for before, after in zip(found, found[1:]):
    for path, b in after.sent.items():
      close(b - before.sent[path], after.weights[path] - before.weights[path])
      assert np.abs(b - before.sent[path]).max() > 1e-3


class Block(nnx.Module):
  """A module around a layer."""

  def __init__(self, seed):
    self.inner = nnx.Linear(4, 4, use_bias=False, param_dtype=F, rngs=nnx.Rngs(seed))

  def __call__(self, x):
    return self.inner(x)


class Nested(nnx.Module):
  """`Line` of modules in modules."""

  def __init__(self):
    self.blocks = nnx.List([Block(0), Block(1)])
    self.last = nnx.Linear(4, 2, use_bias=False, param_dtype=F, rngs=nnx.Rngs(2))

  def __call__(self, x):
    first, twice = self.blocks
    return self.last(twice(twice(first(x))))


@pytest.mark.parametrize('rule', [
    {'blocks/*': 'fa', 'last': 'kp'}, {'last': 'dfa', '*': 'usf'}, {'last': 'bp', '*': 'mirror'}],
                         ids=str)
@pytest.mark.usefixtures('x64')
def test_nnx_models(rule):
  """The same of NNX modules in modules, at the model itself."""
  x, error = jnp.asarray(RNG.randn(3, 4)), RNG.randn(3, 2)
  model = bioprop.plug(Nested(), rule, nnx.Rngs(1), x)
  found = bioprop.measure.feedback_weights(model, model, x)
  names = {'blocks/1/inner': 'twice', 'last': 'last'}
  renamed = lambda tree: {names[path.removesuffix('/kernel')] + (
      '/kernel' if path.endswith('/kernel') else ''): np.asarray(w) for path, w in tree.items()}
  found = type(found)(*map(renamed, found[:3]), *found[3:])
  assert {path.split('/')[0] for path in found.sent} | set(found.direct) == {'twice', 'last'}
  grads = nnx.jit(nnx.grad(lambda model: jnp.vdot(error, model(x))))(model)
  by_name = lambda tree: {'first': tree['blocks'][0]['inner'], 'twice': tree['blocks'][1]['inner'],
                          'last': tree['last']}
  params, grads = (by_name(nnx.to_pure_dict(tree)) for tree in (nnx.state(model, nnx.Param), grads))
  check_line(found, params, grads, np.asarray(x), error)
  for name, b in found.sent.items():
    np.testing.assert_array_equal(found.weights[name], params[name.split('/')[0]]['kernel'])
    assert (np.abs(b - found.weights[name]).max() < 1e-6) == (rule.get(name.split('/')[0]) == 'bp')


@pytest.mark.usefixtures('x64')
def test_variables_of_another_model():
  """Without its feedback, or of other shapes."""
  model, x = bioprop.plug(Line(), 'fa'), RNG.randn(3, 4)
  variables = drawn(model, x)
  wide = {**variables, 'params': jax.tree.map(lambda w: jnp.zeros((5, 5)), variables['params'])}
  for other in ({'params': variables['params']}, wide):
    with pytest.raises(MeasureError, match='the variables are not those of the model'):
      bioprop.measure.feedback_weights(model, other, x)


class Branches(nn.Module):
  """Two layers of equal widths side by side."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4)(x)
    return nn.Dense(4)(nn.Dense(4)(x) + nn.Dense(4)(x))


@pytest.mark.slow
def test_what_lies_above():
  """Of a chain all layers up to the output; layers side by side are no chain."""
  x = jnp.ones((2, 3))
  for model, chain in ((MLP(classes=2, hidden=(4, 5)), True), (Branches(), False)):
    plugged = bioprop.plug(model, 'dfa')
    variables = plugged.init(KEY, x)
    found = bioprop.measure.feedback_weights(plugged, variables, x)
    assert set(found.direct) == set(variables['params']) - {'Dense_0'}
    kernels = [variables['params'][f'Dense_{i}']['kernel'] for i in (1, 2)]
    if chain:
      jax.tree.map(np.testing.assert_array_equal, found.above('Dense_1'), kernels)
    else:
      assert found.above('Dense_1') is None
