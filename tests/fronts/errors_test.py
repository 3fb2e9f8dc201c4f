"""Mistakes in plugging: each has its name and says what to type."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.rules import NetworkRule


class Two(nn.Module):
  """Two outputs."""
  names: bool = False

  @nn.compact
  def __call__(self, x):
    h = nn.tanh(nn.Dense(5, name='hidden')(x))
    a, b = nn.Dense(3, name='a')(h), nn.Dense(2, name='b')(h)
    return {'a': a, 'deep': (b, jnp.arange(3))} if self.names else (a, b)


class Gains(nn.Module):
  """No product at all."""

  @nn.compact
  def __call__(self, x):
    return x * self.param('w', nn.initializers.normal(), (1, x.shape[-1]))


class Scalar(nn.Module):
  """Computes its own loss."""

  @nn.compact
  def __call__(self, x):
    return jnp.mean(nn.Dense(3)(x)**2)


def test_two_outputs(tools):
  """Which one carries the error?"""
  with pytest.raises(errors.OutputError, match=r'\[0\]: \(4, 3\), \[1\]: \(4, 2\).*output=0'):
    bioprop.plug(Two(), 'dfa').init(jax.random.key(0), tools.x)
  with pytest.raises(errors.OutputError, match='output=7'):
    bioprop.plug(Two(), 'dfa', output=7).init(jax.random.key(0), tools.x)
  with pytest.raises(errors.OutputError, match='scalar'):
    bioprop.plug(Scalar(), 'dfa').init(jax.random.key(0), tools.x)


@pytest.mark.parametrize('names, output, width', [
    (False, 0, 3), (False, 1, 2), (True, 'a', 3), (True, ('deep', 0), 2)])
def test_output_picks(tools, names, output, width):
  """Feedback is as wide as the output picked, and the hidden update reads that error only."""
  model = bioprop.plug(Two(names), 'dfa', output=output)
  variables = model.init(jax.random.key(0), tools.x)
  assert variables['feedback']['a']['error'].shape == (width, 5)

  def hidden(weight_a, weight_b):
    def loss(p):
      out = model.apply({**variables, 'params': p}, tools.x)
      a, b = (out['a'], out['deep'][0]) if names else out
      return weight_a * jnp.sum(a) + weight_b * jnp.sum(b)
    return np.asarray(jax.grad(loss)(variables['params'])['hidden']['kernel'])

  picked = (1.0, 0.0) if width == 3 else (0.0, 1.0)
  assert np.any(hidden(*picked))
  assert not np.any(hidden(*picked[::-1]))


@pytest.mark.parametrize('rule', [name for name, cls in bioprop.RULES.items() if name != 'bp'
                                  and not issubclass(cls, NetworkRule)])
def test_nothing_matched(tools, rule):
  """At init, and where it is described."""
  with pytest.raises(errors.NothingMatchedError, match='Gains has no parameter that meets its'):
    bioprop.plug(Gains(), rule).init(jax.random.key(0), tools.x)
  with pytest.raises(errors.NothingMatchedError, match='Its parameters: w'):
    bioprop.describe(Gains(), rule, tools.x)


def test_no_parameters(tools):
  """There is nothing to be learned."""
  with pytest.raises(errors.NothingMatchedError, match='Dropout has no parameters'):
    bioprop.plug(nn.Dropout(0.1, deterministic=True), 'bp').init(jax.random.key(0), tools.x)


@pytest.mark.parametrize('choice, error, words', [
    ({'hidden': 'fa'}, errors.PatternError, "'readout/kernel' matches none of the patterns 'hid"),
    ({'hiden': 'fa', '*': 'bp'}, errors.PatternError, "'hiden' decides for no layer"),
    ({'*': 'fa', 'hidden': 'bp'}, errors.PatternError, 'first match wins'),
    ({}, errors.PatternError, 'empty'),
    ({1: 'fa'}, errors.PatternError, 'got 1'),
    ({'': 'fa'}, errors.PatternError, "got ''"),
    ({'*': 3}, errors.UnknownRuleError, '3 is not a learning rule'),
    ('fas', errors.UnknownRuleError, "Did you mean 'fa'"),
    (bioprop.RULES['fa'], errors.UnknownRuleError, 'is not a learning rule'),
    (None, errors.UnknownRuleError, 'None'),
])
def test_choices_that_cannot_be_read(tools, choice, error, words):
  """At plug if they are wrong by themselves, at init if the model lacks the layer."""
  with pytest.raises(error, match=words):
    bioprop.plug(tools.Net(), choice).init(jax.random.key(0), tools.x)


def runs_elsewhere(model, variables, x, how):
  """Runs a plugged model past its own apply."""
  class Outer(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
      return self.inner(x)

  if how == 'bind':
    return model.bind(variables)(x)
  if how == 'nn.apply':
    return nn.apply(lambda m, x: m(x), model)(variables, x)
  nested = {'params': {'inner': variables['params']}}
  return Outer(model).apply(nested, x)


@pytest.mark.parametrize('how', ['bind', 'nn.apply', 'submodule'])
def test_gradients_past_apply(tools, how):
  """The forward pass works; a gradient would be backprop, and is refused."""
  model = bioprop.plug(tools.Net(), 'fa')
  variables = model.init(jax.random.key(0), tools.x)
  want = tools.Net().apply({'params': variables['params']}, tools.x)
  np.testing.assert_array_equal(runs_elsewhere(model, variables, tools.x, how), want)
  with pytest.raises(errors.UnboundError, match='Plug the outermost module'):
    jax.grad(lambda p: runs_elsewhere(
        model, {**variables, 'params': p}, tools.x, how).sum())(variables['params'])


def plain(params, x):
  return jnp.tanh(x @ params['hidden']) @ params['readout']


def plugged(tools, front, rule):
  """A function of parameters, feedback and inputs; and the first two."""
  if front == 'linen':
    model = bioprop.plug(tools.Net(), rule)
    variables = model.init(jax.random.key(0), tools.x)
    run = lambda params, feedback, x: model.apply({'params': params, 'feedback': feedback}, x)
    return run, variables['params'], variables['feedback']
  model, params = bioprop.plug(plain, rule), {'hidden': jnp.ones((6, 5)),
                                              'readout': jnp.ones((5, 3))}
  return model.apply, params, model.init_feedback(jax.random.key(0), params, tools.x)


def gradient_of(run, params, feedback, x):
  return jax.grad(lambda params: jnp.sum(run(params, feedback, x)))(params)


FRONTS = pytest.mark.parametrize('front', ['linen', 'function'])


@FRONTS
@pytest.mark.parametrize('rule, other', [('fa', 'dfa'), ('dfa', 'fa')])
def test_feedback_of_another_rule(tools, front, rule, other):
  """Backprop would be silent, where fa finds nothing by its name."""
  run, params, _ = plugged(tools, front, rule)
  feedback = plugged(tools, front, other)[2]
  with pytest.raises(errors.FeedbackMissingError, match="hidden.* no feedback.*another rule"):
    gradient_of(run, params, feedback, tools.x)
  # What another rule leaves beside its own feedback is not looked at.
  both = jax.tree.map(lambda own: own, plugged(tools, front, rule)[2])
  want = gradient_of(run, params, both, tools.x)
  for name, own in feedback.items():
    both[name] = {**both[name], **own} if isinstance(own, dict) else own
  jax.tree.map(np.testing.assert_array_equal, gradient_of(run, params, both, tools.x), want)


@FRONTS
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.int32])
def test_feedback_that_was_cast(tools, front, dtype):
  """Of integers most would be 0."""
  run, params, feedback = plugged(tools, front, 'dfa')
  cast = jax.tree.map(lambda b: b.astype(dtype), feedback)
  with pytest.raises(errors.FeedbackMissingError, match=f'{dtype.dtype} feedback.*float32'):
    gradient_of(run, params, cast, tools.x)


@FRONTS
@pytest.mark.parametrize('rule', ['dfa', 'drtp'])
def test_no_samples(tools, front, rule):
  """When feedback is made, and when it is used."""
  run, params, feedback = plugged(tools, front, rule)
  with pytest.raises(errors.ErrorShapeError, match=r'input of shape \(0, .*Leave empty batches'):
    gradient_of(run, params, feedback, tools.x[:0])
  tools.x = tools.x[:0]
  with pytest.raises(errors.ErrorShapeError, match=r'shape \(0, 3\).*Leave empty batches'):
    plugged(tools, front, rule)


@FRONTS
@pytest.mark.parametrize('derivative', [
    lambda f, p: jax.jvp(f, (p,), (p,)), lambda f, p: jax.jacfwd(f)(p),
    lambda f, p: jax.hessian(f)(p), lambda f, p: jax.jit(jax.hessian(f))(p)],
    ids=['jvp', 'jacfwd', 'hessian', 'jit'])
def test_forward_mode(tools, front, derivative):
  """A rule says how errors go back, and no more."""
  run, params, feedback = plugged(tools, front, 'fa')
  with pytest.raises(errors.ForwardModeError, match='jax.jacrev.*call the plain model'):
    derivative(lambda params: jnp.sum(run(params, feedback, tools.x)), params)


@pytest.mark.parametrize('rule', ['align_ada', 'align_zero'])
def test_forward_mode_of_a_network_rule(tools, rule):
  run, params, feedback = plugged(tools, 'linen', rule)
  with pytest.raises(errors.ForwardModeError, match='jax.jacrev'):
    jax.jvp(lambda params: run(params, feedback, tools.x), (params,), (params,))


def test_forward_mode_past_apply(tools):
  model = bioprop.plug(tools.Net(), 'fa')
  bound = model.bind(model.init(jax.random.key(0), tools.x))
  with pytest.raises(errors.ForwardModeError, match='jax.jacrev'):
    jax.jvp(bound, (tools.x,), (tools.x,))
  with pytest.raises(TypeError, match='theirs'):  # What the model raises by itself stays.
    with errors.refusing_forward_mode():
      raise TypeError('theirs')
