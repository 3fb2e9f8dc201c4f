"""Probes: what they give against Jacobians and gradients of samples by JAX alone, and NumPy."""
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.errors import MeasureError, OutputError, UnknownRuleError
from bioprop.probes import TYPES, Probe, cross_entropy

RNG = np.random.RandomState(0)
F = jnp.float64
LAYERS = ('first', 'second', 'out')
X, LABELS = RNG.randn(6, 4), np.array([0, 0, 0, 1, 1, 2])  # Not as many of each class.


class Mlp(nn.Module):
  """Two hidden layers: one would leave the kernel of feedback alignment symmetric."""

  @nn.compact
  def __call__(self, x):
    for name, width in (('first', 5), ('second', 4)):
      x = nn.tanh(nn.Dense(width, param_dtype=F, name=name)(x))
    return nn.Dense(3, param_dtype=F, name='out')(x)


class Net(nnx.Module):
  """The same in NNX, of zeros."""

  def __init__(self):
    zeros = nnx.initializers.zeros
    layer = lambda *sizes: nnx.Linear(*sizes, kernel_init=zeros, rngs=nnx.Rngs(0), param_dtype=F)
    self.first, self.second, self.out = layer(4, 5), layer(5, 4), layer(4, 3)

  def __call__(self, x):
    return self.out(nnx.tanh(self.second(nnx.tanh(self.first(x)))))


class Sequences(nn.Module):
  """Two inputs, two outputs, a layer at each position, a parameter that is no layer's."""

  @nn.compact
  def __call__(self, a, b):
    gain = self.param('gain', nn.initializers.ones, (1, 1, 2), F)
    out = nn.Dense(3, name='out', param_dtype=F)((a - b) * gain)
    return out[:, 0], out


class Centred(nn.Module):
  """Less the batch's mean."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, param_dtype=F)(x - x.mean(0, keepdims=True))


def drawn(model, *x):
  """Variables of normal numbers, feedback too."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *x)
  return jax.tree.map(lambda a: jnp.asarray(0.7 * RNG.randn(*a.shape)), shapes)


def by_path(tree):
  """The leaves by path, without feedback."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {'/'.join(entry.key for entry in path): np.asarray(leaf) for path, leaf in flat}
  return {path: leaf for path, leaf in named.items() if 'feedback_' not in path}


def jacobian(model, variables, x=(X,), pick=lambda out: out):
  """Of each sample [n, outputs, p] by parameter."""

  def one(*x):
    x = [leaf[None] for leaf in x]
    f = lambda p: pick(model.apply({**variables, 'params': p}, *x)).reshape(-1)
    return jax.jacrev(f)(variables['params'])

  rows = by_path(jax.jit(jax.vmap(one))(*map(jnp.asarray, x)))
  return {path: leaf.reshape(*leaf.shape[:2], -1) for path, leaf in rows.items()}


def logistic(outputs, label):
  """The cross-entropy of one sample."""
  return -jax.nn.log_softmax(outputs)[label]


def gradients(model, variables, loss=logistic, labels=LABELS):
  """Of each sample's own loss, the sample alone: a tree of [n, ...]."""

  def one(x, label):
    f = lambda p: loss(model.apply({**variables, 'params': p}, x[None])[0], label)
    return jax.grad(f)(variables['params'])

  return jax.jit(jax.vmap(one))(jnp.asarray(X), labels)


def forward(params):
  """What each layer multiplies, and the outputs, in NumPy."""
  x, inputs = X, {}
  for name in LAYERS:
    inputs[name] = x
    y = x @ np.asarray(params[name]['kernel']) + np.asarray(params[name]['bias'])
    x = np.tanh(y)
  return inputs, y


def cosine(a, b):
  a, b = np.asarray(a).ravel(), np.asarray(b).ravel()
  return a @ b / np.sqrt((a @ a) * (b @ b))


def alignment(kernel):
  """With the kernel of one-hot labels, both centred."""
  centre, targets = np.eye(len(X)) - 1 / len(X), np.eye(3)[LABELS]
  return cosine(centre @ kernel @ centre, centre @ targets @ targets.T @ centre)


def rank(kernel):
  """The exponential of the entropy of the singular values."""
  values = np.linalg.svd(kernel, compute_uv=False)
  values = values[values > 1e-12 * values[0]] / values.sum()
  return np.exp(-(values * np.log(values)).sum())


def shares(kernels):
  kernel = sum(kernels.values())
  return {f'share/{path}': np.trace(own) / np.trace(kernel) for path, own in kernels.items()}


def all_close(found, want):
  """The same names, and the same numbers and shapes under each."""
  assert found.keys() == want.keys()
  for name, value in want.items():
    assert type(found[name]) is np.ndarray and found[name].shape == np.shape(value), name
    np.testing.assert_allclose(found[name], value, rtol=1e-8, atol=1e-10, err_msg=name)


def of(found, kind):
  """What one type found."""
  return {name.removeprefix(f'{kind}/'): value for name, value in found.items()
          if name.startswith(f'{kind}/')}


@pytest.fixture(scope='module')
def measured():
  """Variables of fa, what all types find, what was compiled afterwards for others, the probe."""
  compiled = []

  class Heard(logging.Handler):

    def emit(self, record):
      if record.getMessage().startswith('Compiling'):
        compiled.append(record.getMessage())

  plugged, logger, handler = bioprop.plug(Mlp(), 'fa'), logging.getLogger('jax'), Heard()
  with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
    variables, others = drawn(plugged, X), drawn(plugged, X)
    probe = Probe(plugged, None, (X, LABELS))
    patch.setattr(logger, 'propagate', False)
    patch.setattr(logger, 'handlers', [handler])
    with jax.log_compiles():
      found = probe.measure(variables)
      first = len(compiled)
      moved = probe.measure(others)
      Probe(plugged, None, (X[::-1], LABELS), like=probe).measure(variables)
  assert first > 0 and moved['angles/cosine'] != found['angles/cosine']
  return variables, found, compiled[first:], probe


def test_nothing_is_compiled_twice(measured):
  """All types, at other variables, and on other samples by a probe that is made `like` it."""
  assert measured[2] == []


def test_every_type_has_its_own_names(measured):
  """There are no others."""
  assert {name.split('/')[0] for name in measured[1]} == set(TYPES)


def _check_entk(found, true, pseudo):
  """As naive Jacobians [n, C, p] of each parameter say."""
  kernels = {path: np.einsum('ncp,mcp->nm', true[path], pseudo[path]) / true[path].shape[1]
             for path in true}
  kernel = sum(kernels.values())
  all_close(found, {'kernel': kernel, 'effective_rank': rank(kernel),
                    'target_alignment': alignment(kernel), **shares(kernels)})
  np.testing.assert_allclose(sum(found[name] for name in found if name.startswith('share/')), 1)
  assert abs(found['target_alignment']) < 0.99
  return np.allclose(kernel, kernel.T)


@pytest.mark.usefixtures('x64')
def test_entk_of_backprop():
  """The mean over outputs of the Jacobian's products with itself."""
  variables = drawn(Mlp(), X)
  true = jacobian(Mlp(), variables)
  found = Probe(Mlp(), 'bp', (X, LABELS), types=('entk',)).measure(variables)
  assert _check_entk(found, true, true)


@pytest.mark.usefixtures('x64')
def test_entk_of_feedback_alignment(measured):
  """True Jacobians in rows, the rule's in columns; blocks give the same numbers."""
  variables, found, _, probe = measured
  plugged = bioprop.plug(Mlp(), 'fa')
  true = jacobian(Mlp(), {'params': variables['params']})
  assert not _check_entk(of(found, 'entk'), true, jacobian(plugged, variables))
  blocks = Probe(plugged, None, (X, LABELS), types=('entk',), block=4, like=probe).measure(
      variables)
  all_close(blocks, of(found, 'entk'))


@pytest.mark.usefixtures('x64')
def test_entk_of_a_rule_that_is_not_linear():
  """How a small step of hebb for one sample moves another, along the error of the one."""
  plugged, h = bioprop.plug(Mlp(), 'hebb'), 1e-6
  variables = drawn(plugged, X)
  params, steps = variables['params'], gradients(plugged, variables)
  scores = np.exp(forward(params)[1])
  error = scores / scores.sum(1, keepdims=True) - np.eye(3)[LABELS]
  outputs = jax.jit(jax.vmap(lambda p: Mlp().apply({'params': p}, jnp.asarray(X))))

  def kernel(steps):
    """-df / d eta of all samples, under the step for each, along its error."""
    move = lambda sign: np.asarray(outputs(
        jax.tree.map(lambda w, g: np.asarray(w) + sign * h * np.asarray(g), params, steps)))
    moved = (move(1) - move(-1)) / (2 * h)
    return np.einsum('mnc,mc->nm', moved, error) / (error**2).sum(1)

  probe = Probe(plugged, None, (X, LABELS), types=('entk',))
  found = probe.measure(variables)
  want = kernel(steps)
  np.testing.assert_allclose(found['kernel'], want, rtol=1e-6, atol=1e-7 * np.abs(want).max())
  assert not np.allclose(want, want.T)
  nothing = jax.tree.map(np.zeros_like, steps)
  for layer in LAYERS:
    for name in ('kernel', 'bias'):
      alone = {**nothing, layer: {**nothing[layer], name: steps[layer][name]}}
      np.testing.assert_allclose(found[f'share/{layer}/{name}'],
                                 np.trace(kernel(alone)) / np.trace(want), atol=1e-6)
  all_close(found, {
      'kernel': found['kernel'], 'effective_rank': rank(found['kernel']),
      'target_alignment': alignment(found['kernel']),
      **{name: value for name, value in found.items() if name.startswith('share/')}})
  blocks = Probe(plugged, None, (X, LABELS), types=('entk',), block=3, like=probe).measure(
      variables)
  all_close(blocks, found)


def test_features(measured):
  """Forward and backward passes written out in NumPy."""
  variables, found, *_ = measured
  inputs, _ = forward(variables['params'])
  slopes = {'second': 1 - inputs['out']**2, 'first': 1 - inputs['second']**2}

  def cotangents(weights):
    g = {'out': np.broadcast_to(np.eye(3), (6, 3, 3))}
    for name, below in (('out', 'second'), ('second', 'first')):
      g[below] = g[name] @ np.asarray(weights[name]['kernel']).T * slopes[below][:, None]
    return g

  g, h = cotangents(variables['params']), cotangents(variables['feedback'])
  traced = lambda g, h: np.einsum('nck,mck->nm', g, h)
  want = {}
  for name, a in inputs.items():
    phi = a @ a.T / a.shape[1]
    want |= {f'{key}/{name}/kernel': value for key, value in {
        'phi': phi, 'g': traced(g[name], g[name]), 'g_pseudo': traced(g[name], h[name]),
        'effective_rank': rank(phi), 'target_alignment': alignment(phi)}.items()}
  all_close(of(found, 'features'), want)


def _check_angles(found, own, ruled):
  """As the gradients of samples say, the plain model's and the rule's."""
  ratio = lambda a, b: np.linalg.norm(b) / np.linalg.norm(a)
  rows = [np.concatenate([leaf.reshape(6, -1) for leaf in one.values()], 1) for one in (own, ruled)]
  whole = [one.sum(0) for one in rows]
  want = {'cosine': cosine(*whole), 'ratio': ratio(*whole),
          'samples': [cosine(*pair) for pair in zip(*rows)]}
  for path in own:
    summed = own[path].sum(0), ruled[path].sum(0)
    want |= {f'cosine/{path}': cosine(*summed), f'ratio/{path}': ratio(*summed)}
    layer, _, name = path.rpartition('/')
    if name == 'bias':  # It has the cotangents at its layer's output.
      want[f'signals/{layer}/kernel'] = np.mean(
          [cosine(*pair) for pair in zip(own[path], ruled[path])])
  all_close(found, want)
  assert abs(want['cosine']) < 0.99


@pytest.mark.usefixtures('x64')
def test_angles(measured):
  """The plugged and the plain gradient of the loss, summed over samples and sample by sample."""
  variables, found, *_ = measured
  _check_angles(of(found, 'angles'), by_path(gradients(Mlp(), {'params': variables['params']})),
                by_path(gradients(bioprop.plug(Mlp(), 'fa'), variables)))


@pytest.mark.usefixtures('x64')
def test_labels_that_are_no_classes(measured):
  """Quantities with a loss of their own have no targets to align with; errors are that loss's."""
  variables, at_classes, _, probe = measured
  plugged, targets = bioprop.plug(Mlp(), 'fa'), RNG.randn(6)
  loss = lambda outputs, target: jnp.square(outputs[0] - target) + jnp.sum(outputs)
  losses = jax.vmap(loss)
  found = Probe(plugged, None, (X, targets), types=('entk', 'angles'), loss=losses,
                like=probe).measure(variables)
  all_close(of(found, 'entk'), {
      name: value for name, value in of(at_classes, 'entk').items() if name != 'target_alignment'})
  _check_angles(of(found, 'angles'),
                by_path(gradients(Mlp(), {'params': variables['params']}, loss, targets)),
                by_path(gradients(plugged, variables, loss, targets)))


@pytest.mark.usefixtures('x64')
def test_sequences():
  """A mean over positions and outputs, no targets; inputs in a tuple; which output is measured."""
  x, labels = tuple(RNG.randn(2, 6, 5, 2)), RNG.randint(0, 3, (6, 5))
  variables = drawn(Sequences(), *x)
  rows = jacobian(Sequences(), variables, x, lambda out: out[1])
  kernels = {path: np.einsum('ncp,mcp->nm', own, own) / 15 for path, own in rows.items()}
  kernel = sum(kernels.values())
  own = {'types': ('entk',), 'output': 1}
  probe = Probe(Sequences(), None, (x, labels), **own)
  found = probe.measure(variables)
  all_close(found, {'kernel': kernel, 'effective_rank': rank(kernel), **shares(kernels)})
  assert set(kernels) == {'gain', 'out/kernel', 'out/bias'}
  # A class of each sequence is none of each output.
  loss = lambda outputs, labels: cross_entropy(outputs.mean(1), labels)
  classes = Probe(Sequences(), None, (x, LABELS), **own, loss=loss, like=probe)
  all_close(classes.measure(variables), found)
  with pytest.raises(OutputError, match='output=0'):
    Probe(Sequences(), 'bp', (x, labels), types=('entk',)).measure(variables)


@pytest.mark.parametrize('rule', ['bp', 'kp', 'dfa', 'hebb'])
@pytest.mark.usefixtures('x64')
def test_alignment(rule):
  """W itself; feedback that learns; direct feedback with the weights above it; no feedback."""
  model = bioprop.plug(Mlp(), rule)
  variables = drawn(model, X)
  params, feedback = variables['params'], variables.get('feedback', {})
  second, out = (params[name]['kernel'] for name in ('second', 'out'))  # The first sends nowhere.
  want = {}
  if rule == 'bp':
    want = {'cosine/second/kernel': 1., 'cosine/out/kernel': 1.}
  if rule == 'kp':
    want = {f'cosine/{name}/kernel': cosine(w, params[name]['feedback_kernel'])
            for name, w in (('second', second), ('out', out))}
  if rule == 'dfa':
    want = {'direct/second': cosine(second @ out, feedback['second']['error'].T),
            'direct/out': cosine(out, feedback['out']['error'].T)}
  all_close(Probe(model, None, (X, LABELS), types=('alignment',)).measure(variables), want)


def test_alignment_of_feedback_alignment(measured):
  """With what the plug holds."""
  variables, found, *_ = measured
  all_close(of(found, 'alignment'), {
      f'cosine/{name}/kernel': cosine(
          variables['params'][name]['kernel'], variables['feedback'][name]['kernel'])
      for name in ('second', 'out')})


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_nnx_models(measured):
  """With the weights and the feedback of the linen model they have all of its numbers."""
  variables, want, *_ = measured
  model = bioprop.plug(Net(), 'fa', nnx.Rngs(1), X)
  probe = Probe(model, None, (X, LABELS), types=('entk', 'alignment'))
  for layer in LAYERS:  # After the probe was made.
    own, given = getattr(model, layer), variables['params'][layer]
    own.kernel[...], own.bias[...] = given['kernel'], given['bias']
    if layer in variables['feedback']:
      back = variables['feedback'][layer]['kernel']
      model.bioprop_feedback[layer]['kernel'][...] = back
  all_close(probe.measure(model), {name: value for name, value in want.items()
                                   if name.split('/')[0] in ('entk', 'alignment')})


@pytest.mark.usefixtures('x64')
def test_cross_entropy():
  """In NumPy, of one label and of one for each position."""
  outputs, labels = RNG.randn(2, 4, 3), RNG.randint(0, 3, (2, 4))
  scores = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
  want = -np.log(np.take_along_axis(scores, labels[..., None], -1)[..., 0])
  np.testing.assert_allclose(cross_entropy(outputs, labels), want)
  np.testing.assert_allclose(cross_entropy(outputs[0], labels[0]), want[0])


@pytest.mark.parametrize('make, error, words', [
    (lambda: Probe(Mlp(), 'fa', (X, LABELS), types=('entk', 'spectrum')), MeasureError,
     "type 'spectrum'. Valid: entk, features, angles, alignment"),
    (lambda: Probe(Mlp(), 'fa', (X, LABELS), types='spectrum'), MeasureError, "type 'spectrum'"),
    (lambda: Probe(Mlp(), 'fa', X), MeasureError, 'a pair of inputs and labels'),
    (lambda: Probe(Mlp(), 'fa', (X, LABELS, LABELS)), MeasureError, 'a pair'),
    (lambda: Probe(Net(), 'fa', (X, LABELS)), MeasureError, 'bioprop.plug.*Probe'),
    (lambda: Probe(Mlp(), 'af', (X, LABELS)), UnknownRuleError, "'af'"),
], ids=['type', 'one type', 'no pair', 'three', 'nnx', 'rule'])
@pytest.mark.usefixtures('x64')
def test_what_cannot_be_prepared(make, error, words):
  """Said before anything is computed."""
  with pytest.raises(error, match=words):
    make()


@pytest.mark.usefixtures('x64')
def test_what_cannot_be_measured(measured):
  """Variables of another model, or of another kind; samples that depend on each other."""
  variables, *_ = measured
  params, feedback = variables['params'], variables['feedback']
  probe = Probe(Mlp(), 'fa', (X, LABELS))
  for wrong in ({'params': {'out': params['out']}, 'feedback': feedback},  # Two layers less.
                {'params': params},  # Of the plain model.
                params,
                {'params': {**params, 'out': params['first']}, 'feedback': feedback},
                Net()):
    with pytest.raises(MeasureError, match='what init returned'):
      probe.measure(wrong)
  with pytest.raises(MeasureError, match='the model itself'):
    Probe(Net(), None, (X, LABELS)).measure(variables)
  with pytest.raises(MeasureError, match='what else is in the batch'):
    Probe(Centred(), 'bp', (X, LABELS)).measure(drawn(Centred(), X))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('labels, words', [
    ([0, 1, 2], r'arrays of \[3, 4\] entries'), ([0, 1, 2, 7], 'Labels run from 0 to 7'),
    ([0, 1, 2, -1], 'Labels run from -1 to 2'), ([0., 1., 2., 1.], r'labels are float\d+\[4\]')])
@pytest.mark.some(2)
def test_labels_that_are_none(labels, words):
  """Never the error of another class: it says which labels there are."""
  model, x = Mlp(), jnp.ones((4, 5), F)
  with pytest.raises(MeasureError, match=words):
    Probe(model, 'bp', (x, jnp.asarray(labels)), types=('angles',)).measure(
        model.init(jax.random.key(0), x))
