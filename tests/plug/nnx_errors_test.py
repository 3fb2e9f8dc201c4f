"""Mistakes in plugging an NNX model: each has its name, one paragraph, and the line to type."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

pytestmark = pytest.mark.usefixtures('quick')
X = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)
SHAPE = jax.ShapeDtypeStruct((4, 6), jnp.float32)


class Net(nnx.Module):
  """Two layers, or what comes after one."""

  def __init__(self, rngs=None, after=None):
    rngs = rngs or nnx.Rngs(0)
    self.hidden, self.after = nnx.Linear(6, 5, rngs=rngs), after
    self.readout = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    h = jnp.tanh(self.hidden(x))
    return self.readout(h) if self.after is None else self.after(self, h)

  def encode(self, x):
    return jnp.tanh(self.hidden(x))


class Matrix(nnx.Module):
  """No layer at all."""

  def __init__(self):
    self.w = nnx.Param(jnp.ones((6, 3)))

  def __call__(self, x):
    return x @ self.w[...]


class Uncallable(nnx.Module):
  """Has another name for its call."""

  def __init__(self):
    self.hidden = nnx.Linear(6, 5, rngs=nnx.Rngs(0))

  def encode(self, x):
    return self.hidden(x)


class Heavy(nnx.Linear):
  """Uses its weight past super's __call__: always, or on demand."""

  def __init__(self, always=True):
    super().__init__(6, 5, rngs=nnx.Rngs(0))
    self.always = always

  def __call__(self, x, plain=False):
    if self.always or plain:
      return x @ self.kernel[...] + self.bias[...][None]
    return super().__call__(x)


class Decoy(nnx.Linear):
  """Calls another layer's op, and not its own."""

  def __init__(self):
    super().__init__(6, 5, rngs=nnx.Rngs(0))
    self.inner = nnx.Linear(6, 6, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.inner(x) @ self.kernel[...]


class Optional(nnx.Module):
  """A layer that runs only on demand."""

  def __init__(self):
    self.hidden = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    self.extra = nnx.Linear(6, 6, rngs=nnx.Rngs(1))

  def __call__(self, x, train=False):
    return self.hidden(self.extra(jnp.tanh(x)) if train else x)


def shared(activations):
  """A model with one layer, two nonlinearities."""
  first, second = activations

  class Twice(nnx.Module):

    def __init__(self):
      self.layer, self.readout = (nnx.Linear(6, n, rngs=nnx.Rngs(0)) for n in (6, 3))

    def __call__(self, x):
      return self.readout(first(self.layer(second(self.layer(x)))))

  return Twice()


class NoBatch(nnx.Module):
  """A layer whose input has no batch."""

  def __init__(self):
    self.queries = nnx.Param(jnp.ones((3, 6)))
    self.hidden, self.readout = (nnx.Linear(6, n, rngs=nnx.Rngs(0)) for n in (6, 2))

  def __call__(self, x):
    return self.readout(x + self.hidden(self.queries[...]).sum(0, keepdims=True))


def paragraph(error, run):
  """What is said."""
  with pytest.raises(error) as caught:
    run()
  message = str(caught.value)
  assert type(caught.value) is error and '\n' not in message and message.rstrip().endswith('.')
  return message


def install(model, rule, *args, **kwargs):
  """With rngs."""
  return bioprop.install(model, rule, nnx.Rngs(1), *args, **kwargs)


def tied():
  """A model of two layers with one kernel."""
  first, second = (nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(2))
  second.kernel = first.kernel
  return nnx.Sequential(first, second)


spectral = lambda: nnx.SpectralNorm(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

# Error, what raises it, what the message says, the line that it says to type.
INSTALLING = {
    'no rngs': (errors.FeedbackMissingError, lambda: bioprop.install(Net(), 'fa'),
                'was given no rngs', 'bioprop.install(model, rule, nnx.Rngs(0))'),
    'other streams': (errors.FeedbackMissingError, lambda: bioprop.install(
        Net(), 'fa', nnx.Rngs(params=0, dropout=1)), "['dropout', 'params']",
        'bioprop.install(model, rule, nnx.Rngs(feedback=0))'),
    'dfa without a sample': (errors.FeedbackMissingError, lambda: install(Net(), 'dfa'),
                             'DirectFeedbackAlignment', 'bioprop.install(model, rule, rngs, x)'),
    'hebb without a sample': (errors.FeedbackMissingError, lambda: install(
        Net(), {'hidden': 'fa', '*': 'hebb'}), 'Hebb', 'bioprop.install(model, rule, rngs, x)'),
    'no layer': (errors.NothingMatchedError, lambda: install(Matrix(), 'fa'),
                 'Matrix holds no layer', 'nnx.Linear, LinearGeneral, Conv'),
    'unknown rule': (errors.UnknownRuleError, lambda: install(Net(), 'fas'),
                     "Did you mean 'fa'", "bioprop.make('fa')"),
    'no rule': (errors.UnknownRuleError, lambda: install(Net(), 3),
                '3 is not a learning rule', "bioprop.make('fa', rho=0.5)"),
    'unused pattern': (errors.PatternError, lambda: install(Net(), {'hiden': 'fa', '*': 'bp'}),
                       "'hiden' decides for no layer", 'hidden, readout'),
    'uncovered layer': (errors.PatternError, lambda: install(Net(), {'hidden': 'fa'}),
                        "'readout' matches none", "{..., '*': 'bp'}"),
    'two outputs': (errors.OutputError, lambda: install(
        Net(after=lambda m, h: (m.readout(h), h)), 'dfa', SHAPE),
        '[0]: (4, 3), [1]: (4, 5)', 'output=0'),
    'no such output': (errors.OutputError, lambda: install(Net(), 'dfa', SHAPE, output=7),
                       'output=7', 'output=0'),
    'scalar': (errors.OutputError, lambda: install(
        Net(after=lambda m, h: jnp.mean(m.readout(h))), 'hebb', SHAPE), 'scalar',
        'logits of shape [n, classes]'),
    'no call': (errors.OutputError, lambda: install(Uncallable(), 'dfa', SHAPE),
                'Uncallable has no __call__', 'def __call__(self, x)'),
    'override': (errors.UnsupportedLayerError, lambda: install(
        nnx.Sequential(Heavy(), nnx.Linear(5, 3, rngs=nnx.Rngs(0))), 'fa', SHAPE),
        'Heavy extends nnx.Linear', "bioprop.install(model, {'layers/0': 'bp', '*': ...}, rngs)"),
    'decoy': (errors.UnsupportedLayerError, lambda: install(
        nnx.Sequential(Decoy(), nnx.Linear(5, 3, rngs=nnx.Rngs(0))), 'fa', SHAPE),
        'Decoy extends nnx.Linear', "bioprop.install(model, {'layers/0': 'bp', '*': ...}, rngs)"),
    'learning below a norm': (errors.UnsupportedLayerError, lambda: install(
        nnx.Sequential(spectral(), nnx.Linear(5, 3, rngs=nnx.Rngs(0))), 'kp'), 'nnx.SpectralNorm',
        "bioprop.install(model, {'layers/0/layer_instance': 'fa', '*': ...}, rngs)"),
    'learning beside a shared parameter': (errors.UnsupportedLayerError, lambda: install(
        tied(), 'kp'), "'layers/0' and 'layers/1' share one parameter",
        "bioprop.install(model, {'layers/1': 'fa', '*': ...}, rngs)"),
    'two nonlinearities': (errors.ActivationError, lambda: install(
        shared((jnp.tanh, jnp.sin)), 'hebb', SHAPE), "'layer' is called more than once",
        "bioprop.make('hebb', activation='relu')"),
    'no batch': (errors.ErrorShapeError, lambda: install(NoBatch(), 'dfa', SHAPE),
                 "the layer 'hidden' has an input of shape (3, 6)", "{'hidden': 'fa', '*': ...}"),
    'too much feedback': (errors.FeedbackMemoryError, lambda: install(
        Net(), bioprop.make('dfa', max_gib=1e-9), SHAPE), "'hidden' would be float32 (3, 6)",
        "bioprop.make('dfa', max_gib=1)"),
}


@pytest.mark.parametrize('mistake', INSTALLING)
def test_install(mistake):
  """Found at once."""
  error, run, what, line = INSTALLING[mistake]
  message = paragraph(error, run)
  assert what in message and line in message


@pytest.mark.parametrize('mistake', [m for m in INSTALLING if m not in ('no rngs', 'no call')])
def test_a_refused_model_stays_plain(mistake, monkeypatch):
  """Whatever the mistake was, the model is not half plugged."""
  models = []
  real = bioprop.install
  monkeypatch.setattr(bioprop, 'install', lambda model, *args, **kwargs: (
      models.append((model, nnx.graphdef(model))), real(model, *args, **kwargs)))
  with pytest.raises(INSTALLING[mistake][0]):
    INSTALLING[mistake][1]()
  (model, definition), = models
  assert nnx.graphdef(model) == definition


@pytest.mark.parametrize('what', [nnx.Linear, 'model', None, lambda x: x])
def test_only_modules_can_be_plugged(what):
  """A class is not an instance."""
  with pytest.raises(TypeError, match=r"bioprop\.install\(model, 'fa', nnx\.Rngs\(0\)\)"):
    bioprop.install(what, 'fa', nnx.Rngs(0))


def gradient(model, x=X, call=lambda model, x: model(x)):
  """Of the parameters."""
  return nnx.jit(nnx.grad(lambda model: jnp.sum(call(model, x))))(model)


def merged(model):
  """A gradient by a model that was merged from variables of another trace."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  return jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(definition, p, rest)(X))))(params)


CALLING = {
    'an override that calls super now and then': (
        errors.UnsupportedLayerError, lambda: (
            lambda model: (gradient(model), gradient(model, call=lambda m, x: m(x, plain=True))))(
                install(Heavy(always=False), 'fa', X)), 'Heavy extends', 'super().__call__(x)'),
    'a layer that the sample did not reach': (
        errors.FeedbackMissingError, lambda: gradient(
            install(Optional(), 'fa', X), call=lambda m, x: m(x, train=True)),
        "'extra' has no feedback", 'bioprop.install(model, rule, rngs, x, train=True)'),
    'another method': (
        errors.UnboundError, lambda: gradient(
            install(Net(), 'dfa', X), call=lambda m, x: m.encode(x)),
        'outside the model\'s own __call__', 'nnx.grad(loss)(model)'),
    'a part of the model': (
        errors.UnboundError, lambda: gradient(install(Net(), 'dfa', X).hidden),
        "of the layer 'hidden'", 'nnx.grad(loss)(model)'),
    'a model that a gradient closes over': (
        errors.UnboundError, lambda: (lambda model: jax.grad(lambda x: jnp.sum(model(x)))(X))(
            install(Net(), 'dfa', X)), 'closed over', 'nnx.grad(loss)(model)'),
    'a stream of another trace': (
        errors.UnboundError, lambda: merged(install(Net(), 'brsf')), 'BatchSign cannot give',
        'nnx.merge(graphdef, params, rest, copy=True)'),
    'inputs of another size': (
        errors.ErrorShapeError, lambda: gradient(install(nnx.Sequential(
            nnx.Conv(3, 2, (3,), rngs=nnx.Rngs(0)), lambda h: h.mean(1)), 'dfa',
            jnp.ones((2, 4, 3))), jnp.ones((2, 5, 3))), '(2, 5, 3)', 'such as \'fa\''),
}


@pytest.mark.parametrize('mistake', CALLING)
def test_call(mistake):
  """Found when the model is used."""
  error, run, what, line = CALLING[mistake]
  message = paragraph(error, run)
  assert what in message and line in message


@pytest.mark.parametrize('rule', ['dfa', 'hebb'])
def test_forward_passes_need_no_gradient(rule):
  """Another method, a part, a closure: values are the plain model's."""
  model, plain = install(Net(), rule, X), Net()
  np.testing.assert_array_equal(model.encode(X), plain.encode(X))
  np.testing.assert_array_equal(model.hidden(X), plain.hidden(X))
  np.testing.assert_array_equal(jax.jit(lambda: model(X))(), jax.jit(lambda: plain(X))())


def test_an_input_gradient_that_closes_over_the_model():
  """fa needs nothing of the trace, and sends through B."""
  model = install(Net(), 'fa')
  got = jax.grad(lambda x: jnp.sum(model(x)))(X)
  h = np.tanh(np.asarray(X @ model.hidden.kernel[...]))
  sent = np.ones((4, 3)) @ np.asarray(model.readout.feedback_kernel[...]).T * (1 - h**2)
  np.testing.assert_allclose(got, sent @ np.asarray(model.hidden.feedback_kernel[...]).T, atol=1e-6)


def test_layers_left_out():
  """What an error says to type works."""
  make = lambda: nnx.Sequential(Heavy(), jnp.tanh, nnx.Linear(5, 3, rngs=nnx.Rngs(0)))
  model = install(make(), {'layers/0': 'bp', '*': 'fa'}, X)
  assert np.any(gradient(model)['layers'][0]['kernel'][...])
  named = {'layer': bioprop.make('hebb', activation='relu'), '*': 'bp'}
  assert np.any(gradient(install(shared((jnp.tanh, jnp.sin)), named, X))['layer']['kernel'][...])
