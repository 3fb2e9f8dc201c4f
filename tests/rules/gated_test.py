"""Gated linear networks: by hand, in theory, in linen and in NNX, and where they cannot be."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

F = jnp.float64


class Mlp(nn.Module):
  """Two hidden layers."""
  phi: object = nn.relu

  @nn.compact
  def __call__(self, x):
    for width in (6, 5):
      x = self.phi(nn.Dense(width, param_dtype=F)(x))
    return nn.Dense(3, param_dtype=F)(x)


class NnxMlp(nnx.Module):
  """`Mlp` in NNX."""

  def __init__(self, rngs, dtype=F):
    self.layers = nnx.List([nnx.Linear(*shape, param_dtype=dtype, rngs=rngs)
                            for shape in ((4, 6), (6, 5), (5, 3))])

  def __call__(self, x):
    *hidden, last = self.layers
    for layer in hidden:
      x = nnx.relu(layer(x))
    return last(x)


class Conv(nn.Module):
  """A convolution, a strided one, one of one location, a dense layer: all of them gated."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3), param_dtype=F)(x))
    x = nn.relu(nn.Conv(5, (3, 3), strides=2, param_dtype=F)(x))
    x = nn.relu(nn.Conv(6, (4, 4), padding='VALID', param_dtype=F)(x))
    return nn.Dense(3, param_dtype=F)(nn.relu(nn.Dense(7, param_dtype=F)(x))[:, 0, 0])


class Ntk(nn.Module):
  """h^1 = W x / sqrt(D), h^{l+1} = W sqrt(2) relu(h^l) / sqrt(N); standard normal weights."""
  width: int
  hidden: int
  outputs: int = 1

  @nn.compact
  def __call__(self, x):
    for width in (*[self.width] * self.hidden, self.outputs):
      dense = nn.Dense(width, use_bias=False, kernel_init=nn.initializers.normal(1.0))
      h = dense(x) / math.sqrt(x.shape[-1])
      x = math.sqrt(2) * nn.relu(h)
    return h


class After(nn.Module):
  """Something between two layers, which may need to know whether it trains."""
  middle: object

  @nn.compact
  def __call__(self, x, train=False):
    h = self.middle(nn.Dense(6, name='hidden')(x), train)
    return nn.Dense(3, name='readout')(h)


class Positive(nn.Module):
  """Gains of each unit that are never below zero: the ReLU of a parameter."""

  @nn.compact
  def __call__(self, h):
    return h * nn.relu(self.param('gain', nn.initializers.ones, h.shape))


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


def plug(model, x, rule='gln', **kwargs):
  """The plugged model and its variables."""
  model = bioprop.wrap(model, rule)
  return model, model.init(jax.random.key(0), x, **kwargs)


def loss(out):
  """Its error is no multiple of the output."""
  return jnp.mean(jnp.sin(out))


def gradient(model, variables, x):
  """Of the parameters."""
  run = lambda params: loss(model.apply({**variables, 'params': params}, x))
  return jax.grad(run)(variables['params'])


def shapes(variables):
  """Of the projections, in the ReLUs' order."""
  gates = variables['feedback']['gates']
  return [gates[str(i)].shape for i in range(len(gates))]


def on_the_sphere(*angles):
  """Inputs [n, 16] of |x|^2 = 16, at these angles to the first axis."""
  x = np.zeros((len(angles), 16), np.float32)
  x[:, 0], x[:, 1] = 4 * np.cos(angles), 4 * np.sin(angles)
  return jnp.asarray(x)


def test_dense_by_hand(x64):
  """Output and gradients of two hidden layers, in numpy."""
  x = draw(7, 4)
  model, variables = plug(Mlp(), x)
  assert shapes(variables) == [(4, 6), (4, 5)]
  p, m = jax.tree.map(np.asarray, (variables['params'], variables['feedback']['gates']))
  names, inputs, gates, h = list(p), [], [], np.asarray(x)
  for i, name in enumerate(names):
    inputs.append(h)
    gates.append(np.asarray(x) @ m[str(i)] / np.sqrt(4) > 0 if i < 2 else 1)
    h = gates[i] * (h @ p[name]['kernel'] + p[name]['bias'])
  np.testing.assert_allclose(model.apply(variables, x), h, rtol=1e-12)
  got, g = gradient(model, variables, x), np.cos(h) / h.size
  for i, name in reversed(list(enumerate(names))):
    g = g * gates[i]
    np.testing.assert_allclose(got[name]['kernel'], inputs[i].T @ g, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[name]['bias'], g.sum(0), rtol=1e-12, atol=1e-14)
    g = g @ p[name]['kernel'].T


@pytest.mark.parametrize('model, x', [(Mlp(), (5, 4)), (Conv(), (5, 8, 8, 2))])
def test_linear_in_every_layer(x64, model, x):
  """f(2 Q - P) = 2 f(Q) - f(P), for the kernel and bias of one layer; a ReLU network is not."""
  x = draw(*x)
  gln, variables = plug(model, x)
  check_linear(gln, variables, x)
  with pytest.raises(AssertionError):
    check_linear(model, variables, x)


def check_linear(model, variables, x):
  """See `test_linear_in_every_layer`."""
  p = variables['params']
  for name in p:
    run = lambda layer, name=name: model.apply(
        {**variables, 'params': {**p, name: layer}}, x)
    q = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size, dtype=F)).reshape(w.shape), p[name])
    beyond = jax.tree.map(lambda a, b: 2 * b - a, p[name], q)
    np.testing.assert_allclose(run(beyond), 2 * run(q) - run(p[name]), rtol=1e-9, atol=1e-11)


def test_projections_are_independent_normals():
  """Those of equal shapes too."""
  variables = plug(Ntk(256, 4), on_the_sphere(0))[1]
  one, two, three = (np.ravel(variables['feedback']['gates'][i]) for i in '123')
  for m in (one, two, three):
    np.testing.assert_allclose([m.mean(), m.var()], [0, 1], atol=5 / 64)
  np.testing.assert_allclose(np.corrcoef([one, two, three]), np.eye(3), atol=5 / 64)


def test_wide_fields_are_gaussian():
  """h^2 of 4096 units given the gates: its covariance is cos(t) (1 - t / pi), not the ReLU's."""
  x = on_the_sphere(0, np.pi / 4)
  model, variables = plug(Ntk(4096, 1, 4096), x)
  h = np.asarray(model.apply(variables, x), np.float64)
  np.testing.assert_allclose(h.mean(1), 0, atol=4 / 64)
  np.testing.assert_allclose(np.mean(h**2, 1), 1, atol=8 / 64)
  np.testing.assert_allclose(np.mean(h[0] * h[1]), 0.75 * np.sqrt(0.5), atol=6 / 64)
  np.testing.assert_allclose(np.mean(h**4, 1) / np.mean(h**2, 1)**2, 3, atol=5 * np.sqrt(24) / 64)


def test_lazy_kernel():
  """(L + 1) (1 - t / pi)^L cos(t), L = 3 (arXiv 2210.02157, table 2, with L + 1 for its L)."""
  x = on_the_sphere(0, np.pi / 4, np.pi / 2, np.pi)
  width, networks = 4096, 4
  model = bioprop.wrap(Ntk(width, 3), 'gln')

  @jax.jit
  def kernel(key):
    variables = model.init(key, x)
    run = lambda params: model.apply({**variables, 'params': params}, x)[:, 0]
    of_first = jax.grad(lambda params: run(params)[0])(variables['params'])
    return jax.jvp(run, (variables['params'],), (of_first,))[1]

  mean = np.mean([kernel(jax.random.key(seed)) for seed in range(networks)], 0)
  # |phi(h^l)|^2 / N fluctuates by sqrt(5 / N) in each of three layers; three times that is allowed.
  np.testing.assert_allclose(mean, [4, 1.193243, 0, 0], rtol=3 * np.sqrt(15 / width / networks),
                             atol=2 / np.sqrt(width))


def test_linen_is_nnx(x64):
  """Same weights and projections: same output and gradients; one trace for two steps."""
  x, traces = draw(7, 4), []
  linen, variables = plug(Mlp(), x)
  model = bioprop.install(NnxMlp(nnx.Rngs(0)), 'gln', nnx.Rngs(1), x)
  for i, layer in enumerate(model.layers):
    for name, value in variables['params'][f'Dense_{i}'].items():
      getattr(layer, name)[...] = value
  for name, value in variables['feedback']['gates'].items():
    model.feedback_network['gates'][name][...] = value

  @nnx.jit
  def step(model, x):
    traces.append(1)
    return nnx.grad(lambda model: loss(model(x)))(model)

  np.testing.assert_allclose(model(x), linen.apply(variables, x), rtol=1e-12)
  got, want = nnx.to_pure_dict(step(model, x)), gradient(linen, variables, x)
  for i in range(3):
    for name in ('kernel', 'bias'):
      np.testing.assert_allclose(got['layers'][i][name], want[f'Dense_{i}'][name], rtol=1e-12,
                                 atol=1e-14)
  step(model, x + 1)
  assert len(traces) == 1


@pytest.mark.parametrize('phi, gates', [
    (nn.relu, 1), (nnx.relu, 1), (lambda h: jnp.maximum(h, 0), 1),
    (lambda h: jnp.maximum(0.0, h), 1), (lambda h: jnp.maximum(h, jnp.zeros_like(h)), 1),
    (jax.jit(lambda h: nn.relu(h)), 1), (jax.checkpoint(lambda h: nn.relu(h)), 1),
    (jax.vmap(nn.relu), 1),
    (nn.relu6, 0), (nn.leaky_relu, 0), (nn.gelu, 0), (nn.softplus, 0), (nn.celu, 0), (nn.elu, 0),
    (nn.tanh, 0), (nn.silu, 0), (nn.hard_swish, 0), (lambda h: jnp.clip(h, 0, 6), 0),
    (lambda h: jnp.minimum(jnp.maximum(h, 0), 6), 0), (lambda h: jnp.sqrt(jnp.maximum(h, 0)), 0),
    (lambda h: Positive()(h), 0),
])
def test_what_is_a_relu(phi, gates):
  """Each beside one ReLU, which alone has gates if it is none."""
  both = lambda h, train: phi(h) + nn.relu(h)
  variables = plug(After(both), draw(4, 5))[1]
  assert len(shapes(variables)) == 1 + gates


@pytest.mark.parametrize('norm', [
    lambda h, train: nn.BatchNorm(use_running_average=not train)(h),
    lambda h, train: nn.LayerNorm()(h), lambda h, train: nn.GroupNorm(2)(h),
    lambda h, train: nnx.LayerNorm(6, rngs=nnx.Rngs(0))(h)])
@pytest.mark.parametrize('x', [(4, 5), (4, 3, 5)])
def test_variances_are_no_relus(norm, x):
  """max(var, 0) stays: as many gates in training as in evaluation."""
  x = draw(*x).astype(jnp.float32)
  model, variables = plug(After(lambda h, train: nn.relu(norm(h, train))), x, train=True)
  assert shapes(variables) == [(5, 6)]
  for train in (True, False):
    assert model.apply(variables, x, train=train, mutable=['batch_stats'])[0].shape[-1] == 3


def test_statistics_are_the_gated_networks():
  """A norm above the gates sees gated activities."""
  x = draw(8, 5).astype(jnp.float32)
  model, variables = plug(
      After(lambda h, train: nn.BatchNorm(use_running_average=not train)(nn.relu(h))), x)
  _, state = model.apply(variables, x, train=True, mutable=['batch_stats'])
  h = x @ variables['params']['hidden']['kernel']
  gated = jnp.where(x @ variables['feedback']['gates']['0'] > 0, h, 0.0)
  np.testing.assert_allclose(state['batch_stats']['BatchNorm_0']['mean'], 0.01 * gated.mean(0),
                             rtol=1e-5, atol=1e-7)


def test_remat_stays(x64):
  """The same numbers, and jax.checkpoint is still there."""
  x = draw(7, 4)
  plain, variables = plug(Mlp(), x)
  model = bioprop.wrap(Mlp(jax.checkpoint(lambda h: nn.relu(jnp.sin(h)))), 'gln')
  want = gradient(bioprop.wrap(Mlp(lambda h: nn.relu(jnp.sin(h))), 'gln'), variables, x)
  got = gradient(model, variables, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), got, want)
  text = lambda model: str(jax.make_jaxpr(lambda v: model.apply(v, x))(variables))
  assert text(model).count('remat') == 2 and 'remat' not in text(plain)


@pytest.mark.parametrize('x, middle, shape', [
    ((4, 5), lambda h: nn.relu(h), (5, 6)),
    ((4, 3, 5), lambda h: nn.relu(h), (5, 6)),  # Per position.
    ((4, 3, 5), lambda h: nn.relu(h[:, 0]), (15, 6)),
    ((4, 3, 5), lambda h: nn.relu(h[:, :2]), (5, 6)),  # Resized to two positions.
    ((4, 3, 5), lambda h: nn.relu(h.reshape((4, 3, 2, 3))), (5, 6)),  # Per position, two heads.
    ((4, 8, 8, 2), lambda h: nn.relu(h), (2, 6)),
    ((4, 8, 8, 2), lambda h: nn.relu(h[:, ::3, ::2]), (2, 6)),
    ((4, 8, 8, 2), lambda h: nn.relu(h[:, :1, :1]), (128, 6)),  # One location sees all.
    ((4, 8, 8, 2), lambda h: nn.relu(h.reshape((4, 64, 6))), (128, 384)),
    ((4, 6), lambda h: nn.relu(h.reshape((4, 2, 3))), (6, 6)),
])
def test_what_the_gates_see(x, middle, shape):
  """The projection's shape; and whatever the gates are, they are no more than gates."""
  x = draw(*x).astype(jnp.float32)
  last = lambda h, train: middle(h).reshape((len(h), -1))
  model, variables = plug(After(last), x)
  assert shapes(variables) == [shape]
  ones = {name: jax.tree.map(jnp.zeros_like, layer)
          for name, layer in variables['params'].items()}
  ones['hidden']['bias'] += 1
  ones['readout']['kernel'] += 1
  opened = model.apply({**variables, 'params': ones}, x)[:, 0]
  units = middle(jnp.ones((*x.shape[:-1], 6))).size / len(x)
  assert opened.tolist() == [round(n) for n in opened.tolist()]
  assert 0 < opened.sum() < units * len(x)


def test_positions_do_not_mix():
  """In a network that acts position by position, the gates do too."""
  x = draw(4, 3, 5).astype(jnp.float32)
  model, variables = plug(After(lambda h, train: nn.relu(h)), x)
  changed = model.apply(variables, x.at[:, 1].add(1.0)) - model.apply(variables, x)
  np.testing.assert_array_equal(jnp.any(changed, (0, 2)), [False, True, False])


def test_outputs_of_any_kind():
  """A dict out, keyword inputs, and the choice of the input that the gates see."""

  class Pair(nn.Module):

    @nn.compact
    def __call__(self, x, *, extra):
      h = nn.relu(nn.Dense(4)(x)) + nn.relu(nn.Dense(4)(extra))
      return {'logits': nn.Dense(3)(h), 'none': None, 'steps': jnp.arange(2)}

  x, extra = draw(4, 5), draw(4, 2)
  for number, rows in ((0, 5), (1, 2)):
    model, variables = plug(Pair(), x, bioprop.make('gln', input=number), extra=extra)
    assert shapes(variables) == [(rows, 4)] * 2
    out = model.apply(variables, x, extra=extra)
    assert out['none'] is None and out['logits'].shape == (4, 3)
  with pytest.raises(errors.UnsupportedLayerError, match=r'2 to choose from.*0: float32 \(4, 5\)'):
    plug(Pair(), x, extra=extra)
  with pytest.raises(errors.UnsupportedLayerError, match='input=2 there are 0'):
    plug(Pair(), x, bioprop.make('gln', input=2), extra=extra)


def scanned(h, train):
  """A loop over layers."""
  return jax.lax.scan(lambda h, w: (nn.relu(h * w), None), h, jnp.ones((2, 4, 6)))[0]


def own_derivative(h, train):
  """A ReLU and more, differentiated by hand."""
  @jax.custom_vjp
  def function(h):
    return nn.relu(h) * 2
  function.defvjp(lambda h: (function(h), None), lambda _, g: (g,))
  return function(h)


@pytest.mark.parametrize('middle, error, words', [
    (lambda h, train: nn.tanh(h), errors.NothingMatchedError, 'no ReLU.*activation=relu'),
    (scanned, errors.UnsupportedLayerError, "inside a 'scan'.*for layer in layers"),
    (lambda h, train: jax.lax.cond(h[0, 0] > 0, nn.relu, lambda h: h, h),
     errors.UnsupportedLayerError, "inside a 'cond'"),
    (lambda h, train: jax.lax.fori_loop(0, h.shape[0], lambda i, h: nn.relu(h), h),
     errors.UnsupportedLayerError, "inside a 'scan'"),
    (own_derivative, errors.UnsupportedLayerError, "inside a 'custom_vjp_call'"),
    (lambda h, train: nn.relu(h.reshape((-1, 3))).reshape(h.shape), errors.UnsupportedLayerError,
     r'\(8, 3\), whose first axis'),
    (lambda h, train: h + nn.relu(h[:, 0])[:, None], errors.UnsupportedLayerError,
     r'\(4,\), whose first axis'),
])
def test_models_that_cannot_be_gated(middle, error, words):
  """Each is told why, and what to type."""
  with pytest.raises(error, match=words):
    plug(After(middle), draw(4, 5))


def test_feedback_of_something_else():
  """Another input size, another number of ReLUs, another rule; no sample; no memory; no option."""
  x = draw(4, 5).astype(jnp.float32)
  relu = lambda h, train: nn.relu(h)
  model, variables = plug(After(relu), x)
  wide = plug(After(relu), draw(4, 6))[1]
  for other, words in (
      ({'gates': wide['feedback']['gates']}, r'\(5, 6\) of the input.*made it as \(6, 6\)'),
      ({'gates': {}}, 'at least 1 ReLUs on this call, and had 0'),
      ({'gates': dict.fromkeys('012', variables['feedback']['gates']['0'])}, '1 ReLUs.*had 3'),
      ({'hidden': {}}, 'another rule made it')):
    with pytest.raises(errors.FeedbackMissingError, match=words):
      model.apply({**variables, 'feedback': other}, x)
  with pytest.raises(errors.FeedbackMemoryError, match=r'\(5, 6\).*max_gib=1'):
    plug(After(relu), x, bioprop.make('gln', max_gib=1e-8))
  with pytest.raises(errors.FeedbackMissingError, match='no sample'):
    bioprop.install(NnxMlp(nnx.Rngs(0), jnp.float32), 'gln', nnx.Rngs(1))
  for bad in (-1, 1.0, True, 'x'):
    with pytest.raises(errors.RuleOptionError, match='input='):
      bioprop.make('gln', input=bad)


def test_described():
  """By name, with the model's own paths."""
  report = bioprop.describe(After(lambda h, train: nn.relu(h)), 'gln', draw(4, 5))
  assert {row.rule for row in report} == {'gln'} and len(report) == 4
