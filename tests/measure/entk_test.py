"""The effective eNTK: against Jacobians written out, and against how networks move."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import measure
from bioprop.models import MLP, RNN, LeNet, Transformer
from bioprop.models.resnet import ResNet

RNG = np.random.RandomState(0)
KEY = jax.random.key(0)
LINEAR = [name for name, rule in bioprop.RULES.items() if rule.linear]
RNGS = {'feedback': jax.random.key(4)}
TOKENS = RNG.randint(0, 5, (4, 6))


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
    'lenet': (lambda: LeNet(classes=3), RNG.randn(2, 28, 28, 1)),
    'resnet': (lambda: ResNet(classes=3, stages=(1, 1), width=3), RNG.randn(3, 6, 6, 3)),
    'rnn': (lambda: RNN(classes=2, width=4), RNG.randn(3, 5)),
    'transformer': (lambda: Transformer(5, width=8, heads=2, positions=6), TOKENS),
}


@pytest.fixture(autouse=True)
def _promotion():
  """The zoo's parameters are float32 until they are drawn anew in float64."""
  with jax.numpy_dtype_promotion('standard'):
    yield


def started(model, x):
  """Float64 variables of a plugged model, its parameters moved from where its feedback was made."""
  variables = model.init(KEY, jnp.asarray(x, jnp.float32) if x.dtype == np.float64 else x)
  variables = jax.tree.map(
      lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, variables)
  move = lambda w: w + 0.3 * jnp.cos(jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape)
  return {**variables, 'params': jax.tree.map(move, variables['params'])}


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
  plugged = bioprop.wrap(model, rule)
  jacobians = bioprop.jacobians(plugged, x, rngs=RNGS, train=False)
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


@pytest.mark.parametrize('rule', LINEAR)
@pytest.mark.usefixtures('x64')
def test_every_rule(rule):
  """On a multi-layer perceptron, against naive Jacobians in float64."""
  check('mlp', rule)


@pytest.mark.parametrize('rule', ['bp', 'fa', 'dfa', 'align_ada'])
@pytest.mark.parametrize('name', [name for name in ZOO if name != 'mlp'])
@pytest.mark.usefixtures('x64')
def test_every_layer(name, rule, quick):
  """Convolutions, norms, embeddings, attention, layers that are called twice, loops."""
  del quick
  check(name, rule)
