"""The effective eNTK: against Jacobians written out, and against how networks move."""
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import measure
from bioprop.errors import MeasureError
from bioprop.models import MLP, RNN, LeNet, Transformer
from bioprop.models.resnet import ResNet
from bioprop.rules import OF_TIME

RNG = np.random.RandomState(0)
KEY = jax.random.key(0)
LINEAR = [name for name, rule in bioprop.RULES.items() if rule.linear]
RNGS = {'feedback': jax.random.key(4)}
TOKENS = RNG.randint(0, 5, (3, 6))


class Shared(nn.Module):
  """One layer called twice, one on positions, biases, a scale, a parameter of its own."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    layer = nn.Dense(6)
    x = nn.LayerNorm()(layer(nn.tanh(layer(x))))
    x = nn.tanh(nn.Dense(4)(x.reshape(x.shape[0], 3, 2))).reshape(x.shape[0], -1)
    return nn.Dense(2)(x * self.param('gain', nn.initializers.ones, (1, 12)))


class Convolutions(nn.Module):
  """Strides, dilation, groups, a convolution on one location."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
    x = nn.relu(nn.Conv(4, (2, 2), kernel_dilation=2, feature_group_count=2)(x))
    x = nn.relu(nn.Conv(5, x.shape[1:3], padding='VALID')(x))
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


ZOO = {
    'mlp': (lambda: MLP(classes=3, hidden=(6, 4)), RNG.randn(4, 7)),
    'shared': (Shared, RNG.randn(4, 6)),
    'convolutions': (Convolutions, RNG.randn(4, 6, 6, 2)),
    'lenet': (lambda: LeNet(classes=3, features=(3, 4, 9), dense=8), RNG.randn(2, 28, 28, 1)),
    'resnet': (lambda: ResNet(classes=3, stages=(1, 1), width=3), RNG.randn(3, 6, 6, 3)),
    'rnn': (lambda: RNN(classes=2, width=4), RNG.randn(3, 5)),
    'transformer': (lambda: Transformer(5, layers=1, width=8, heads=2, positions=6), TOKENS),
}


@pytest.fixture(autouse=True)
def _promotion():
  """The zoo's parameters are float32 until they are drawn anew in float64."""
  with jax.numpy_dtype_promotion('standard'):
    yield


def wave(w):
  """Numbers shaped like w."""
  return 0.3 * np.cos(np.arange(w.size)).reshape(w.shape)


def started(model, x):
  """Float64 variables of a plugged model, its parameters moved from where its feedback was made."""
  variables = jax.jit(model.init)(KEY, jnp.asarray(x, jnp.float32) if x.dtype == np.float64 else x)
  double = lambda a: np.asarray(a, np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype)
  variables = jax.tree.map(double, variables)
  params = jax.tree.map(lambda w: w + wave(w), variables['params'])
  return jax.tree.map(jnp.asarray, {**variables, 'params': params})


def own(tree):
  """The parameters of the plain model: without feedback that learns."""
  return {name: own(value) if isinstance(value, dict) else value
          for name, value in tree.items() if not name.startswith('feedback_')}


def naive(model, variables, x, plain=False):
  """The whole Jacobian [n, C, parameters], sample by sample, by JAX alone."""
  if plain:
    variables = {name: own(value) for name, value in variables.items() if name != 'feedback'}

  def one(x):
    f = lambda p: model.apply({**variables, 'params': p}, x[None], train=False,
                              rngs=None if plain else RNGS).reshape(-1)
    rows = own(jax.jacrev(f)(variables['params']))
    leaves = jax.tree.leaves(rows)
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)

  return jnp.stack([jax.jit(one)(sample) for sample in x])


def prepared(name, rule):
  """A plugged model of the zoo, its inputs, variables, and derivatives."""
  make, x = ZOO[name]
  model = make().clone(activation='relu') if (name, rule) == ('mlp', 'gln') else make()
  plugged = bioprop.plug(model, rule)
  jacobians = bioprop.measure.jacobians(plugged, x, rngs=RNGS, train=False)
  return model, plugged, jnp.asarray(x), started(plugged, x), jacobians


def check(name, rule):
  """All of the kernel at once, and in blocks of two shapes."""
  model, plugged, x, variables, jacobians = prepared(name, rule)
  pseudo = naive(plugged, variables, x)
  true = pseudo if rule == 'gln' else naive(model, variables, x, plain=True)
  want = np.einsum('ncp,mdp->nmcd', true, pseudo[:2])
  functions = jacobians.true(variables), jacobians.pseudo(variables)
  for block in (None, 3):
    got = measure.entk(*functions, x, x[:2], block=block)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * abs(want).max())
  traced = measure.entk(*functions, x, x[:2], trace=True)
  np.testing.assert_allclose(traced, np.einsum('nmcc->nm', want), rtol=1e-10,
                             atol=1e-10 * abs(want).max())


@pytest.mark.parametrize('rule', [
    rule if rule in ('bp', 'fa', 'dfa', 'hebb') else pytest.param(rule, marks=pytest.mark.slow)
    for rule in LINEAR])
@pytest.mark.usefixtures('x64')
@pytest.mark.some(2)
def test_every_rule(rule):
  """On a multi-layer perceptron, or a recurrent network, against naive Jacobians in float64."""
  check('rnn' if rule in OF_TIME else 'mlp', rule)


@pytest.mark.slow
@pytest.mark.parametrize('name, rule', [
    ('convolutions', 'bp'), ('convolutions', 'dfa'), ('convolutions', 'align_ada'),
    ('shared', 'bp'), ('shared', 'dfa'), ('shared', 'align_ada'), ('lenet', 'fa'),
    ('resnet', 'bp'), ('resnet', 'dfa'), ('rnn', 'dfa'), ('rnn', 'align_zero'),
    ('transformer', 'fa')])
@pytest.mark.usefixtures('x64')
def test_every_layer(name, rule):
  """Convolutions, norms, embeddings, attention, layers that are called twice, loops."""
  check(name, rule)


@pytest.mark.slow
@pytest.mark.parametrize('rule', [rule for rule in bioprop.RULES if rule not in OF_TIME])
@pytest.mark.usefixtures('x64')
def test_networks_move_as_it_says(rule):
  """f(theta - h g) - f(theta) = - h SUM K e, to first order, g the rule's own step; hebb too.

  The loss is a sum over samples, as its mean would be undone by hebb.
  """
  make, x = ZOO['mlp']
  model = make().clone(activation='relu') if rule == 'gln' else make()
  options = {'reduction': 'sum'} if rule in ('hebb', 'drtp') else {}
  plugged = bioprop.plug(model, bioprop.make(rule, **options))
  variables, x = started(plugged, x), jnp.asarray(x)
  y = jax.nn.one_hot(jnp.arange(4) % 3, 3, dtype=x.dtype)

  @jax.jit
  def moved(params):
    run = lambda p: plugged.apply({**variables, 'params': p}, x, rngs=RNGS)
    step = jax.grad(lambda p: jnp.sum(jnp.square(run(p) - y)) / 2)(params)
    h = 1e-6
    move = lambda sign: run(jax.tree.map(lambda w, g: w - sign * h * g, params, step))
    return (move(1) - move(-1)) / (2 * h), run(params) - y

  want, error = moved(variables['params'])
  jacobians = bioprop.measure.jacobians(plugged, x, rngs=RNGS)
  true = jacobians.true(variables)
  got = -measure.entk(true, jacobians.update(variables), x, (x, error)).sum((1, 3))
  scale = jnp.abs(want).max()
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * scale)
  assert scale > 0.1
  if bioprop.RULES[rule].linear:
    kernel = measure.entk(true, jacobians.pseudo(variables), x)
    np.testing.assert_allclose(-jnp.einsum('nmcd,md->nc', kernel, error), want, rtol=1e-6,
                               atol=1e-6 * scale)


class Net(nnx.Module):
  """A convolution, batch statistics, a layer that is called twice."""

  def __init__(self):
    kwargs = {'rngs': nnx.Rngs(0), 'param_dtype': jnp.float64}
    self.conv = nnx.Conv(2, 3, (3, 3), strides=2, **kwargs)
    self.norm = nnx.BatchNorm(3, use_running_average=True, **kwargs)
    self.first, self.twice = nnx.Linear(27, 5, **kwargs), nnx.Linear(5, 5, **kwargs)
    self.out = nnx.Linear(5, 3, **kwargs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x))).reshape(x.shape[0], -1)
    return self.out(nnx.relu(self.twice(nnx.relu(self.twice(nnx.relu(self.first(x)))))))


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['bp', 'kp', 'align_ada', 'gln', {'first': 'fa', '*': 'dfa'}],
                         ids=str)
@pytest.mark.usefixtures('x64')
def test_nnx_models(rule):
  """Against naive Jacobians in float64."""
  x = jnp.asarray(RNG.randn(3, 6, 6, 2))
  models = Net(), bioprop.plug(Net(), rule, nnx.Rngs(1), x)
  for model in models:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    nnx.update(model, nnx.from_flat_state(
        [(p, v.replace(jnp.asarray(np.asarray(v[...]) + wave(v[...])))) for p, v in state]))

  def rows(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def one(x):
      f = lambda p: nnx.merge(graphdef, p, rest, copy=True)(x[None])[0]
      leaves = [leaf[...] for path, leaf in nnx.to_flat_state(jax.jacrev(f)(params))
                if not path[-1].startswith('feedback')]
      return jnp.concatenate([leaf.reshape(3, -1) for leaf in leaves], 1)

    return jnp.stack([jax.jit(one)(sample) for sample in x])

  plain, plugged = models
  jacobians = bioprop.measure.jacobians(plugged, x)
  got = measure.entk(jacobians.true(plugged), jacobians.pseudo(plugged), x, x[:2], block=2)
  want = jnp.einsum('ncp,mdp->nmcd', rows(plugged if rule == 'gln' else plain), rows(plugged)[:2])
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * jnp.abs(want).max())


@pytest.mark.usefixtures('x64')
def test_layer_by_layer():
  """The kernels of the parameters add up; under dfa the readout's own is backprop's."""
  _, _, x, variables, jacobians = prepared('mlp', 'dfa')
  functions = jacobians.true(variables), jacobians.pseudo(variables)
  parts = measure.entk(*functions, x, per_layer=True, trace=True)
  assert set(parts) == {f'Dense_{i}/{name}' for i in range(3) for name in ('kernel', 'bias')}
  np.testing.assert_allclose(sum(parts.values()), measure.entk(*functions, x, trace=True))
  exact = measure.entk(functions[0], functions[0], x, per_layer=True, trace=True)
  np.testing.assert_allclose(parts['Dense_2/kernel'], exact['Dense_2/kernel'])
  assert jnp.abs(parts['Dense_0/kernel'] - exact['Dense_0/kernel']).max() > 0.1


@pytest.mark.usefixtures('x64')
def test_no_jacobian_where_factors_serve():
  """The largest array that the compiled program of a wide layer holds is the kernel's size."""
  model, x = MLP(classes=3, hidden=(64, 256)), jnp.zeros((8, 32))
  variables = started(model, x)
  jacobians = bioprop.measure.jacobians(model, x)
  made = jax.eval_shape(jacobians.true(variables), x)
  assert max(leaf.size for leaf in jax.tree.leaves(made)) == 8 * 3 * 256
  assert not made.full and {bias for bias, _ in made.biases} == {
      f'Dense_{i}/bias' for i in range(3)}


def test_what_cannot_be_measured():
  """Rules that are not linear, variables of another model, no samples, blocks of none."""
  model, x = bioprop.plug(MLP(classes=3, hidden=(6,)), 'hebb'), jnp.ones((4, 7))
  variables = jax.jit(model.init)(KEY, x)
  jacobians = bioprop.measure.jacobians(model, x)
  with pytest.raises(MeasureError, match='Hebb is not linear.*jacobians.update'):
    jacobians.pseudo(variables)
  with pytest.raises(MeasureError, match=r"\*\*variables, 'params': params"):
    jacobians.true({'params': {'Dense_0': variables['params']['Dense_0']}})
  with pytest.raises(MeasureError, match='the model itself'):
    bioprop.measure.jacobians(nnx.Linear(7, 3, rngs=nnx.Rngs(0)), x).true(variables)
  true = jacobians.true(variables)
  with pytest.raises(MeasureError, match='block is 0'):
    measure.entk(true, true, x, block=0)
  with pytest.raises(MeasureError, match='one n > 0'):
    measure.entk(true, true, x[:0])


class Deep(nn.Module):
  """Three convolutions."""

  @nn.compact
  def __call__(self, x):
    for _ in range(3):
      x = jnp.sin(nn.Conv(4, (3, 3))(x))
    return nn.Dense(2)(x.mean((1, 2)))


@pytest.mark.slow
def test_true_and_pseudo_share_the_forward_pass(monkeypatch):
  """The program of both runs three convolutions, and two for each of the ways back: 7, not 10."""
  x, model = jnp.ones((2, 5, 5, 4)), bioprop.plug(Deep(), 'fa')
  variables = jax.jit(model.init)(KEY, x)
  jacobians = bioprop.measure.jacobians(model, x)
  module, programs = importlib.import_module('bioprop.measure.tangent'), []
  evaluated = module._evaluated

  def noted(*args):
    programs.append(evaluated.lower(*args).compile().as_text())
    return evaluated(*args)

  monkeypatch.setattr(module, '_evaluated', noted)
  measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)
  assert [program.count(' convolution(') for program in programs] == [7]
