"""Mistakes in plugging an NNX model: each has its name, one paragraph, and the line to type."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bioprop
from bioprop import errors

X = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)
SHAPE = jax.ShapeDtypeStruct((4, 6), jnp.float32)


class Net(nnx.Module):
  """Two layers, or what comes after one; other methods, one of which learns by itself."""

  def __init__(self, after=None):
    self.hidden, self.after = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), after
    self.readout = nnx.Linear(5, 3, rngs=nnx.Rngs(0))

  def __call__(self, x):
    h = self.encode(x)
    return self.readout(h) if self.after is None else self.after(self, h)

  def encode(self, x):
    return self._hidden(x)

  def _hidden(self, x):
    return jnp.tanh(self.hidden(x))

  def loss(self, x):
    return jnp.sum(self(x))

  def gradient(self, x):
    return nnx.grad(lambda model: model.loss(x))(self)

  def step(self, x, optimizer):
    optimizer.update(self, self.gradient(x))


class Odd(nnx.Module):
  """Parameters that `use` puts together with the input."""

  def __init__(self, use, *shapes):
    self.weights, self.use = nnx.List([nnx.Param(jnp.ones(shape)) for shape in shapes]), use

  def __call__(self, x):
    return self.use(x, *(w[...] for w in self.weights))


class Namesake(nnx.Module):
  """A weight in a dict, and something where its feedback would be kept."""

  def __init__(self):
    self.weights, self.feedback_weights_w = nnx.data({'w': nnx.Param(jnp.ones((6, 3)))}), 'theirs'

  def __call__(self, x):
    return x @ self.weights['w'][...]


class Uncallable(nnx.Module):
  """Has another name for its call."""

  def __init__(self):
    self.hidden = nnx.Linear(6, 5, rngs=nnx.Rngs(0))

  def encode(self, x):
    return self.hidden(x)


class Optional(nnx.Module):
  """A layer that runs only on demand."""

  def __init__(self):
    self.hidden = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    self.extra = nnx.Linear(6, 6, rngs=nnx.Rngs(1))

  def __call__(self, x, train=False):
    return self.hidden(self.extra(jnp.tanh(x)) if train else x)


class Outer(nnx.Module):
  """Plain, around something."""

  def __init__(self, inner):
    self.inner = inner

  def __call__(self, x):
    return jnp.tanh(self.inner(x))


@jax.custom_vjp
def opaque(x, w):
  """A product with a derivative of its own."""
  return x @ w


opaque.defvjp(lambda x, w: (opaque(x, w), (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))


def paragraph(error, run):
  """What is said."""
  with pytest.raises(error) as caught:
    run()
  message = str(caught.value)
  assert type(caught.value) is error and '\n' not in message and message.rstrip().endswith('.')
  return message


def plugged(model, rule, *args, **kwargs):
  """With rngs."""
  return bioprop.plug(model, rule, nnx.Rngs(1), *args, **kwargs)


def holding(model, other):
  """A plugged model that was given another afterwards."""
  model.hidden = other
  return model


# Error, what raises it, what the message says, the line that it says to type.
PLUGGING = {
    'no rngs': (errors.FeedbackMissingError, lambda: bioprop.plug(Net(), 'fa'),
                'was given no rngs', 'bioprop.plug(model, rule, nnx.Rngs(0))'),
    'other streams': (errors.FeedbackMissingError, lambda: bioprop.plug(
        Net(), 'fa', nnx.Rngs(params=0, dropout=1)), "['dropout', 'params']",
        'bioprop.plug(model, rule, nnx.Rngs(feedback=0))'),
    'dfa without a sample': (errors.FeedbackMissingError, lambda: plugged(Net(), 'dfa'),
                             'DirectFeedbackAlignment', 'bioprop.plug(model, rule, rngs, x)'),
    'hebb without a sample': (errors.FeedbackMissingError, lambda: plugged(
        Net(), {'hidden': 'fa', '*': 'hebb'}), 'Hebb', 'bioprop.plug(model, rule, rngs, x)'),
    'no product': (errors.NothingMatchedError, lambda: plugged(
        Odd(lambda x, w: x * w, (4, 6)), 'fa', SHAPE),
        'has no parameter that meets its inputs in a product', 'Its parameters: weights/0'),
    'no matrix': (errors.NothingMatchedError, lambda: plugged(Odd(None, (6,)), 'fa'),
                  'Odd holds no weight', 'bioprop.plug(model, rule, rngs, x)'),
    'no parameter': (errors.NothingMatchedError, lambda: plugged(Odd(None), 'bp'),
                     'Odd has no nnx.Param', ''),
    'unknown rule': (errors.UnknownRuleError, lambda: plugged(Net(), 'fas'),
                     "Did you mean 'fa'", "bioprop.make('fa')"),
    'no rule': (errors.UnknownRuleError, lambda: plugged(Net(), 3),
                '3 is not a learning rule', "bioprop.make('fa', rho=0.5)"),
    'unused pattern': (errors.PatternError, lambda: plugged(Net(), {'hiden': 'fa', '*': 'bp'}),
                       "'hiden' decides for no layer", 'hidden/kernel, readout/kernel'),
    'uncovered layer': (errors.PatternError, lambda: plugged(Net(), {'hidden': 'fa'}),
                        "'readout/kernel' matches none", "{..., '*': 'bp'}"),
    'two outputs': (errors.OutputError, lambda: plugged(
        Net(lambda m, h: (m.readout(h), h)), 'dfa', SHAPE),
        '[0]: (4, 3), [1]: (4, 5)', 'output=0'),
    'no such output': (errors.OutputError, lambda: plugged(Net(), 'dfa', SHAPE, output=7),
                       'output=7', 'output=0'),
    'scalar': (errors.OutputError, lambda: plugged(
        Net(lambda m, h: jnp.mean(m.readout(h))), 'hebb', SHAPE), 'scalar',
        'logits of shape [n, classes]'),
    'no call': (errors.OutputError, lambda: plugged(Uncallable(), 'dfa', SHAPE),
                'Uncallable has no __call__', 'def __call__(self, x)'),
    'a derivative of its own': (errors.UnsupportedLayerError, lambda: plugged(
        Odd(lambda x, w, v: opaque(x @ w, v), (6, 5), (5, 3)), 'fa', SHAPE),
        "'weights/1' together with data inside a 'custom_vjp_call'", "{'weights/1': 'bp', '*': .."),
    'two rules in one product': (errors.UnsupportedLayerError, lambda: plugged(
        Odd(lambda x, w, v: x @ (w @ v), (6, 5), (5, 3)), {'weights/0': 'fa', '*': 'usf'}, SHAPE),
        "'weights/0' by FeedbackAlignment, 'weights/1' by UniformSign", 'Give them one rule'),
    'learning beside a namesake': (
        errors.UnsupportedLayerError, lambda: plugged(Namesake(), 'kp', SHAPE),
        "of 'weights/w' at 'feedback_weights_w', and the model has", "{'weights/w': 'fa', '*': "),
    'no batch': (errors.ErrorShapeError, lambda: plugged(
        Odd(lambda x, w, v: x @ w + x.mean(0, keepdims=True) @ v, (6, 3), (6, 3)), 'dfa', SHAPE),
        "the weight 'weights/1' meets an input of shape (1, 6)", "'fa', '*': ...}"),
    'too much feedback': (errors.FeedbackMemoryError, lambda: plugged(
        Net(), bioprop.make('dfa', max_gib=1e-9), SHAPE), "'hidden' would be float32 (3, 6)",
        "bioprop.make('dfa', max_gib=1)"),
    'twice': (errors.PluggedError, lambda: plugged(plugged(Net(), 'usf'), 'usf'),
              'the model learns by UniformSign', 'bioprop.unplug(model)'),
    'backprop over a rule': (errors.PluggedError, lambda: plugged(plugged(Net(), 'usf'), 'bp'),
                             'the model learns by UniformSign', 'bioprop.unplug(model)'),
    'around a plugged model': (errors.PluggedError, lambda: plugged(
        Outer(plugged(Net(), 'usf')), 'dfa', SHAPE), "the model at 'inner' learns by UniformSign",
        'bioprop.unplug(model)'),
    'a part of a plugged model': (errors.PluggedError, lambda: plugged(
        plugged(Net(), 'usf').hidden, 'usf'), 'is a part of a model that learns by a rule',
        "{'conv*': 'fa', '*': 'dfa'}"),
    'a part in another model': (errors.PluggedError, lambda: plugged(
        Outer(plugged(Net(), 'usf').hidden), 'usf'), "the model at 'inner' is a part of a model",
        'bioprop.unplug(model)'),
}


@pytest.mark.parametrize('mistake', PLUGGING)
def test_mistakes_in_plugging(mistake, monkeypatch):
  """Found at once, and the model is not half plugged."""
  error, run, what, line = PLUGGING[mistake]
  real, models = bioprop.plug, []
  monkeypatch.setattr(bioprop, 'plug', lambda model, *args, **kwargs: (
      models.append((model, nnx.graphdef(model))), real(model, *args, **kwargs))[-1])
  message = paragraph(error, run)
  assert what in message and line in message
  model, definition = models[-1]
  assert nnx.graphdef(model) == definition


def gradient(model, x=X, call=lambda model, x: model(x)):
  """Of the parameters."""
  return nnx.jit(nnx.grad(lambda model: jnp.sum(call(model, x))))(model)


def merged(model):
  """A gradient by a model that was merged from variables of another trace."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  return jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(definition, p, rest)(X))))(params)


def stepped(model):
  """A step that the model takes by itself, in one program."""
  optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
  nnx.jit(lambda model, x, optimizer: model.step(x, optimizer))(model, X, optimizer)


def changed(model, change):
  """The model with other feedback."""
  nnx.update(model, jax.tree.map(change, nnx.state(model, bioprop.Feedback)))
  return model


def fed(model, other):
  """The model with another's feedback."""
  model.bioprop_feedback = other.bioprop_feedback
  return model


def forward(model):
  definition, state = nnx.split(model)
  return jax.jvp(lambda x: nnx.merge(definition, state)(x), (X,), (X,))


CALLING = {
    'a layer that the sample did not reach': (
        errors.FeedbackMissingError, lambda: gradient(
            plugged(Optional(), 'fa', X), call=lambda m, x: m(x, train=True)),
        "the weight 'extra/kernel' has no feedback", 'such as train=False'),
    'another layer in the place of one': (
        errors.FeedbackMissingError, lambda: gradient(holding(
            plugged(Net(), 'fa'), nnx.Linear(
                6, 5, dtype=jnp.float32, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))),
        "the feedback of 'hidden/kernel' is float32[6, 5], and the weight is bfloat16[6, 5]",
        'Make it again of these parameters'),
    'another method, with an output of another size': (
        errors.ErrorShapeError, lambda: gradient(
            plugged(Net(), 'dfa', X), call=lambda m, x: m.encode(x)),
        'the error (4, 5) need direct feedback of shape (5, 6)', 'such as \'fa\''),
    'a loss that is a method': (
        errors.OutputError, lambda: gradient(
            plugged(Net(), 'dfa', X), call=lambda m, x: m.loss(x)),
        'returns a scalar', 'compute the loss outside'),
    'a part of the model': (
        errors.UnboundError, lambda: gradient(plugged(Net(), 'dfa', X).hidden),
        'Linear.__call__, a part of a plugged model', 'Call the model that was plugged'),
    'a part of the model in another': (
        errors.UnboundError, lambda: gradient(Outer(plugged(Net(), 'fa').hidden)),
        'Linear.__call__, a part of a plugged model', 'Call the model that was plugged'),
    'a private method': (
        errors.UnboundError, lambda: gradient(
            plugged(Net(), 'fa'), call=lambda m, x: m._hidden(x)),
        'Net._hidden, a part of a plugged model', 'Call the model that was plugged'),
    'a model that learns by itself': (
        errors.UnboundError, lambda: stepped(plugged(Net(), 'fa')),
        'Net.step changes or returns parameters', 'optimizer.update(model, grads)'),
    'a gradient that a method returns': (
        errors.UnboundError, lambda: nnx.jit(lambda model, x: model.gradient(x))(
            plugged(Net(), 'fa'), X),
        'Net.gradient changes or returns parameters', 'grads = nnx.grad(loss)(model)'),
    'a plugged model that was put into one': (
        errors.PluggedError, lambda: gradient(holding(
            plugged(Net(), 'usf'), plugged(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), 'usf'))),
        "the model at 'hidden' learns by UniformSign", 'bioprop.unplug(model)'),
    'a model that a gradient closes over': (
        errors.UnboundError, lambda: (lambda model: jax.grad(lambda x: jnp.sum(model(x)))(X))(
            plugged(Net(), 'brsf', X)), 'closes over it', 'nnx.grad(loss)(model)'),
    'a stream of another trace': (
        errors.UnboundError, lambda: merged(plugged(Net(), 'brsf')), 'BatchSign(scale=1.0) draws',
        'nnx.merge(graphdef, params, rest, copy=True)'),
    'feedback of another dtype': (
        errors.FeedbackMissingError, lambda: gradient(changed(
            plugged(Net(), 'dfa', X), lambda b: b.astype(jnp.bfloat16))),
        "'hidden/kernel' has bfloat16 feedback", 'Make it again'),
    'feedback of another rule': (
        errors.FeedbackMissingError, lambda: gradient(fed(
            plugged(Net(), 'fa', X), plugged(Net(), 'dfa', X))),
        "'hidden/kernel' has no feedback", 'Make it again'),
    'no samples': (
        errors.ErrorShapeError, lambda: gradient(plugged(Net(), 'dfa', X), X[:0]),
        'input of shape (0, 6)', 'if len(x)'),
    'forward mode': (
        errors.ForwardModeError, lambda: forward(plugged(Net(), 'dfa', X)),
        'asked for in forward mode', 'jax.jacrev'),
    'inputs of another size': (
        errors.ErrorShapeError, lambda: gradient(plugged(nnx.Sequential(
            nnx.Conv(3, 2, (3,), rngs=nnx.Rngs(0)), lambda h: h.mean(1)), 'dfa',
            jnp.ones((2, 4, 3))), jnp.ones((2, 5, 3))), '(2, 5, 3)', 'such as \'fa\''),
}


@pytest.mark.parametrize('mistake', CALLING)
def test_call(mistake):
  """Found when the model is used."""
  error, run, what, line = CALLING[mistake]
  message = paragraph(error, run)
  assert what in message and line in message


@pytest.mark.parametrize('rule', ['dfa', 'hebb', 'brsf'])
def test_forward_passes_need_no_gradient(rule):
  """Other methods, a part, a closure: values are the plain model's, without an error."""
  model, plain = plugged(Net(), rule, X), Net()
  for call in (Net.encode, Net._hidden, Net.loss, lambda m, x: m.hidden(x)):
    want = call(plain, X)
    np.testing.assert_array_equal(call(model, X), want)
    np.testing.assert_allclose(nnx.jit(call)(model, X), want, rtol=1e-6)
  np.testing.assert_array_equal(jax.jit(lambda: model(X))(), jax.jit(lambda: plain(X))())
  np.testing.assert_array_equal(jax.jit(model.__call__)(X), jax.jit(plain.__call__)(X))


@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_an_input_gradient_that_closes_over_the_model(rule):
  """Nothing is needed of the trace; what is sent to the input is the rule's."""
  model = plugged(Net(), rule, X)
  got = jax.grad(lambda x: jnp.sum(model(x)))(X)
  b, c = (np.asarray(jax.tree.leaves(model.bioprop_feedback[layer])[0]) for layer in
          ('hidden', 'readout'))
  h = np.tanh(np.asarray(X @ model.hidden.kernel[...]))
  want = np.ones((4, 3)) @ b if rule == 'dfa' else np.ones((4, 3)) @ c.T * (1 - h**2) @ b.T
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_step_that_the_model_takes_by_itself():
  """Outside of any trace the gradient inside is the rule's: below the readout nothing learns."""
  model, plain = plugged(Net(), 'last_layer'), Net()
  model.step(X, nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))
  np.testing.assert_array_equal(model.hidden.kernel[...], plain.hidden.kernel[...])
  assert np.abs(model.readout.kernel[...] - plain.readout.kernel[...]).max() > 1e-3


def test_layers_left_out():
  """What an error says to type works: the layer below the one on backprop learns as it does."""
  make = lambda: Odd(lambda x, w, v: opaque(jnp.tanh(x @ w), v), (6, 5), (5, 3))
  model = plugged(make(), {'weights/1': 'bp', '*': 'fa'}, X)
  for got, want in zip(*(jax.tree.leaves(gradient(m)) for m in (model, make()))):
    np.testing.assert_allclose(got, want, rtol=1e-5)
