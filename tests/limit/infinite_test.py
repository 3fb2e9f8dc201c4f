"""theory.infinite: what it reads, how it computes, and what it refuses."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import theory
from bioprop.errors import BiopropError, ConvergenceError, TheoryError
from bioprop.limit import blocks
from bioprop.models import MLP
from bioprop.theory import ReLU, lazy_kernels

DRAWN = np.random.RandomState(0)
X = jnp.asarray(DRAWN.randn(5, 6), jnp.float32)
IMAGES = jnp.asarray(DRAWN.randn(5, 4, 4, 2), jnp.float32)
UNIT = {'*/kernel': 1.0}


def made(function):
  """A linen module of a function of its input."""

  class Made(nn.Module):

    @nn.compact
    def __call__(self, x):
      return function(x)

  return Made()


def close(one, other, tolerance=2e-6):
  np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * float(jnp.abs(other).max()))


@pytest.mark.slow
@pytest.mark.parametrize('rule, told', [
    (bioprop.make('fa', rho=0.5, scale=0.8), {'rule': 'fa', 'rho': 0.5, 'scale': 0.8}),
    *((rule, {'rule': rule}) for rule in (
        'bp', 'dfa', 'hebb', 'last_layer', 'align_prop', 'align_ada', 'align_zero', 'gln')),
    # They know W no better.
    *((rule, {'rule': 'last_layer'}) for rule in ('kp', 'dkp', 'pfa'))])
def test_it_reads_what_lazy_kernels_is_told(rule, told):
  """Every kernel of an MLP with biases, under every rule."""
  phi = 'relu' if rule == 'gln' else 'tanh'
  model = MLP(classes=3, hidden=(8, 8), activation=phi, parametrization='ntk')
  found = theory.infinite(model, X, rule=rule, variances=UNIT)
  want = lazy_kernels(X, 2, phi, bias_rate=1.0, **told)
  weights = [f'Dense_{at}/kernel' for at in range(3)]
  close(found.entk, want.entk)
  for name in ('phi', 'g', 'g_pseudo'):
    # What a weight multiplies is divided by the root of the fan-in already.
    scale = np.asarray([6, 8, 8]) if name == 'phi' else 1 / np.asarray([6, 8, 8]) ** 0
    got = jnp.stack([getattr(found, name)[path] for path in weights])
    close(got * jnp.asarray(scale, jnp.float32).reshape(-1, 1, 1), getattr(want, name))
  shares = [found.shares[path] + found.shares[path.replace('kernel', 'bias')] for path in weights]
  close(jnp.stack(shares), want.layers)
  close(found.nngp, want.phi[-1])
  assert found.variances == {**dict.fromkeys(weights, 1.0),
                             **dict.fromkeys([w.replace('kernel', 'bias') for w in weights], 0.0)}


def conv_net(x):
  x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
  return nn.Dense(2)(jnp.tanh(nn.Conv(8, (2, 2))(x)).mean((1, 2)))


@pytest.mark.slow
def test_blocks_and_two_sets_of_samples():
  """Blocks give what the whole gives; other samples are columns of a larger kernel."""
  model, options = made(conv_net), {'variances': {'*/kernel': 0.1}, 'rule': 'align_prop'}
  whole = theory.infinite(model, IMAGES, **options)
  cut = theory.infinite(model, IMAGES, block=2, **options)
  apart = theory.infinite(model, IMAGES[:2], IMAGES[2:], block=2, **options)
  for one, part, corner in zip(*(jax.tree.leaves((own.nngp, own.ntk, own.entk, own.phi, own.g))
                                 for own in (whole, cut, apart))):
    close(part, one)
    close(corner, one[:2, 2:])


def flattened(x):
  return nn.Dense(2)(nn.relu(nn.Dense(8)(x.reshape(len(x), -1))))


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['bp', 'gln'])
def test_blocks_are_as_small_as_memory_asks(rule, monkeypatch):
  """A model that reshapes its samples, of which a block of five takes too much."""
  options = {'variances': {'*/kernel': 0.1}, 'rule': rule}
  whole, real, told = theory.infinite(made(flattened), IMAGES, **options), blocks._gib, []

  def too_much_at_first(program):
    told.append(real(program))
    return 10.0 if len(told) == 1 else told[-1]

  monkeypatch.setattr(blocks, '_gib', too_much_at_first)
  parts = theory.infinite(made(flattened), IMAGES, **options)
  assert len(told) == 2
  for one, part in zip(*(jax.tree.leaves((own.nngp, own.entk, own.g)) for own in (whole, parts))):
    close(part, one)


@pytest.mark.slow
def test_fronts_agree():
  """Linen, NNX and a function of the same network."""

  class Net(nnx.Module):

    def __init__(self, rngs):
      self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
      return self.last(jnp.tanh(self.first(x)))

  def function(params, x):
    h = jnp.tanh(x @ params['first'] + params['bias'].reshape(1, -1))
    return h @ params['last'] + params['end'].reshape(1, -1)

  draw = lambda key: {
      'first': jax.random.normal(key, (6, 8)), 'bias': jnp.zeros(8),
      'last': jax.random.normal(jax.random.fold_in(key, 1), (8, 2)), 'end': jnp.zeros(2)}
  linen = theory.infinite(made(lambda x: nn.Dense(2)(jnp.tanh(nn.Dense(8)(x)))), X, rule='dfa',
                           variances={'*/kernel': 0.2})
  model = Net(nnx.Rngs(0))
  before = jax.tree.map(jnp.copy, nnx.state(model))
  in_nnx = theory.infinite(model, X, rule='dfa', variances={'*/kernel': 0.2})
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
  plain = theory.infinite(function, X, rule='dfa', init=draw,
                           variances={'first': 0.2, 'last': 0.2})
  for other in (in_nnx, plain):
    for name in ('nngp', 'ntk', 'entk'):
      close(getattr(other, name), getattr(linen, name))
  installed = bioprop.plug(model, 'dfa', nnx.Rngs(1), X)
  own = theory.infinite(installed, X, variances={'*/kernel': 0.2})  # By its own rule.
  close(own.entk, linen.entk)


@pytest.mark.slow
def test_rules_by_layer():
  """A layer's rule decides what those below it learn from."""
  model = MLP(classes=2, hidden=(8, 8), activation='relu', parametrization='ntk', use_bias=False)
  exact = theory.infinite(model, X, variances=UNIT)
  mixed = theory.infinite(model, X, rule={'Dense_1': 'dfa', '*': 'bp'}, variances=UNIT)
  assert not np.any(mixed.shares['Dense_0/kernel'])
  for path in ('Dense_1/kernel', 'Dense_2/kernel'):
    close(mixed.shares[path], exact.shares[path])
  close(mixed.ntk, exact.ntk)
  hebb = theory.infinite(model, X, rule={'Dense_1': 'hebb', '*': 'bp'}, variances=UNIT)
  assert not np.any(hebb.shares['Dense_1/kernel'])
  # E|W| / rms(W) of Gaussian weights, what the sign has in common with them.
  signs = theory.infinite(model, X, rule='usf', variances=UNIT)
  ratio = signs.shares['Dense_1/kernel'] / exact.shares['Dense_1/kernel']
  np.testing.assert_allclose(ratio, np.sqrt(2 / np.pi), atol=0.1)


@pytest.mark.slow
def test_variances_are_estimated():
  """From as many draws as the accuracy takes; the error is said."""
  found = theory.infinite(made(conv_net), IMAGES[:2])
  want = {'Conv_0/kernel': 1 / 18, 'Conv_1/kernel': 1 / 32, 'Dense_0/kernel': 1 / 8}
  for path, variance in want.items():
    assert abs(found.variances[path] / variance - 1) < 4 * 2e-3
  assert 1e-4 < found.error < 3**0.5 * 2e-3
  assert found.variances['Conv_0/bias'] == 0


@pytest.mark.slow
@pytest.mark.usefixtures('optimised')  # Or XLA computes a twice, rounds it twice: a != max(a, b).
def test_several_sums_are_sampled():
  """max(a, b) of two weights' outputs: (a + b + |a - b|) / 2, whose parts are independent."""
  model = made(lambda x: nn.Dense(1, use_bias=False)(jnp.maximum(
      nn.Dense(8, use_bias=False)(x), nn.Dense(8, use_bias=False)(x))))
  found = theory.infinite(model, X, variances={'Dense_0/kernel': 1 / 8, '*/kernel': 1 / 6})
  moments = X @ X.T / 6
  twice = 2 * moments
  diagonal = jnp.diagonal(twice)
  size = ReLU(slope=-1.0)
  magnitude = size.dual(diagonal[:, None], twice, diagonal[None])
  close(found.nngp, twice / 4 + magnitude / 4, 2e-3)
  np.testing.assert_array_equal(found.nngp, found.nngp.T)
  # d max / da is 1 where a is the larger: of two samples, (1 + E sign sign') / 4.
  signs = size.dual_derivative(diagonal[:, None], twice, diagonal[None])
  want = (1 + signs) / 2 * (X @ X.T) + 8 * found.nngp
  np.testing.assert_allclose(found.ntk, want, rtol=0, atol=5e-3 * float(want.max()))
  assert 0 < found.error < 5e-3


class Twice(nn.Module):
  """One weight, used twice."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(6)
    return nn.Dense(1)(layer(nn.relu(layer(x))))


class Scaled(nn.Module):
  """One number that multiplies all features."""

  @nn.compact
  def __call__(self, x):
    return x * self.param('scale', nn.initializers.ones, (1, 1))


@jax.custom_vjp
def straight(h):
  return jnp.sign(h)


straight.defvjp(lambda h: (jnp.sign(h), None), lambda _, g: (g,))
ATTEND = made(lambda x: nn.Dense(1)(nn.MultiHeadDotProductAttention(2)(nn.Dense(4)(x)).mean(1)))
WIDE = nn.initializers.constant(0.1)
REFUSED = {
    'max pooling': (lambda x: nn.Dense(1)(nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2)).mean((1, 2))),
                    IMAGES, r"'reduce_window_max' in Made \(infinite_test.py:\d+\).*nn.avg_pool"),
    'token mixing': (lambda x: nn.Dense(1)(nn.Dense(4)(nn.Dense(4)(x.reshape(-1, 16, 2)).swapaxes(
        1, 2)).mean(2)), IMAGES, 'token mixing'),
    'batch norm': (lambda x: nn.Dense(1)(nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))),
                   X, 'sum over samples'),
    'depthwise': (lambda x: nn.Dense(1)(nn.Conv(4, (3, 3), feature_group_count=4)(
        nn.Conv(4, (1, 1))(x)).mean((1, 2))), IMAGES, 'depthwise'),
    'mean': (lambda x: nn.Dense(1)(nn.Dense(4, kernel_init=WIDE)(x)), X, 'have the mean 0.1'),
    'output': (lambda x: jnp.tanh(nn.Dense(1)(x)), X, 'nonlinear function of what its last'),
    'own derivative': (lambda x: nn.Dense(1)(straight(nn.Dense(4)(x))), X, 'derivative of its own'),
    'stopped': (lambda x: nn.Dense(1)(jax.lax.stop_gradient(nn.Dense(4)(x))), X, 'stopped'),
    'scalar': (lambda x: nn.Dense(1)(Scaled()(nn.Dense(4)(x))), X, 'shared by several features'),
    'dropout': (lambda x: nn.Dense(1)(nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))), X,
                'mask that differs between features'),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow) if name in (
        'max pooling', 'token mixing', 'batch norm', 'depthwise') else name for name in REFUSED])
@pytest.mark.some(2)
def test_refusals(name):
  """What has no limit is named, with its place and what could replace it."""
  function, x, words = REFUSED[name]
  with pytest.raises(TheoryError, match=words):
    theory.infinite(made(function), x)


@pytest.mark.parametrize('run, words', [
    (lambda: theory.infinite(Twice(), X), 'used a second time'),
    pytest.param(lambda: theory.infinite(ATTEND, IMAGES.reshape(5, 16, 2)),
                 'product of two activities', marks=pytest.mark.slow),
    (lambda: theory.infinite(made(conv_net), IMAGES, rule='drtp'), 'no lazy limit'),
    pytest.param(lambda: theory.infinite(made(conv_net), IMAGES, max_gib=1e-9),
                 r'max_gib allows 1e-09', marks=pytest.mark.slow),
    (lambda: theory.infinite(made(conv_net), IMAGES, variances={'Nothing': 1.0}), 'matches no'),
    (lambda: theory.infinite(made(conv_net), IMAGES, variances={'*': -1.0}), 'no variance'),
    (lambda: theory.infinite(made(conv_net), IMAGES, IMAGES[:, 1:]), 'one network sees both'),
    (lambda: theory.infinite(made(conv_net), jnp.nan * IMAGES), 'infinite numbers or NaN'),
    (lambda: theory.infinite(made(conv_net), IMAGES, block=0), 'block=0'),
    (lambda: jax.jit(lambda x: theory.infinite(made(conv_net), x).ntk)(IMAGES), 'under jax.jit'),
    (lambda: theory.infinite(lambda params, x: x @ params, X), 'init=params'),
    (lambda: theory.infinite(made(conv_net), IMAGES, init=lambda key: None), 'takes no init'),
])
@pytest.mark.some(2)
def test_errors(run, words):
  """What is out of range is named, with what to type."""
  with pytest.raises(BiopropError, match=words):
    run()


@pytest.mark.slow
def test_large_variances_are_refused():
  """Where sums would not be accurate; closed forms are at any."""
  with pytest.raises(ConvergenceError, match='variance of a pre-activation is'):
    theory.infinite(made(lambda x: nn.Dense(1)(jnp.tanh(nn.Dense(4)(x)))), 10 * X)
  found = theory.infinite(made(lambda x: nn.Dense(1)(nn.relu(nn.Dense(4)(x)))), 10 * X)
  assert np.all(np.isfinite(found.ntk))


@pytest.mark.slow
def test_factors_after_a_product_count_as_large_variances_and_before_it_do_not():
  """What the error says to write is the same network, and has a limit."""
  x = jax.random.normal(jax.random.key(3), (3, 64))
  init = lambda key: [jax.random.normal(key, (64, 4)), jax.random.normal(key, (4, 1))]
  read = lambda net: theory.infinite(net, x, init=init, variances={'*': 1.0})
  with pytest.raises(ConvergenceError, match='before the product'):
    read(lambda w, x: jnp.tanh(x @ w[0] / 8) @ w[1])
  found = read(lambda w, x: jnp.tanh((x / 8) @ w[0]) @ w[1])
  np.testing.assert_allclose(
      found.nngp, 4 * theory.lazy_kernels(x, 1, 'tanh').phi[-1], rtol=1e-5)
