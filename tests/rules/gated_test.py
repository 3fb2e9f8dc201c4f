"""Gated linear networks: by hand, in theory, in linen and in NNX."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

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


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


def plug(model, x, rule='gln', **kwargs):
  """The plugged model and its variables."""
  model = bioprop.plug(model, rule)
  return model, model.init(jax.random.key(0), x, **kwargs)


def loss(out):
  """Its error is no multiple of the output."""
  return jnp.mean(jnp.sin(out))


def gradient(model, variables, x):
  """Of the parameters."""
  run = lambda params: loss(model.apply({**variables, 'params': params}, x))
  return jax.grad(run)(variables['params'])


def on_the_sphere(*angles):
  """Inputs [n, 16] of |x|^2 = 16, at these angles to the first axis."""
  x = np.zeros((len(angles), 16), np.float32)
  x[:, 0], x[:, 1] = 4 * np.cos(angles), 4 * np.sin(angles)
  return jnp.asarray(x)


def test_dense_by_hand(x64):
  """Output and gradients of two hidden layers, in numpy."""
  x = draw(7, 4)
  model, variables = plug(Mlp(), x)
  p, m = jax.tree.map(np.asarray, (variables['params'], variables['feedback']['gates']))
  assert [m[str(i)].shape for i in range(len(m))] == [(4, 6), (4, 5)]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_wide_fields_are_gaussian():
  """h^2 of 4096 units given the gates: its covariance is cos(t) (1 - t / pi), not the ReLU's."""
  x = on_the_sphere(0, np.pi / 4)
  model, variables = plug(Ntk(4096, 1, 4096), x)
  h = np.asarray(model.apply(variables, x), np.float64)
  np.testing.assert_allclose(h.mean(1), 0, atol=4 / 64)
  np.testing.assert_allclose(np.mean(h**2, 1), 1, atol=8 / 64)
  np.testing.assert_allclose(np.mean(h[0] * h[1]), 0.75 * np.sqrt(0.5), atol=6 / 64)
  np.testing.assert_allclose(np.mean(h**4, 1) / np.mean(h**2, 1)**2, 3, atol=5 * np.sqrt(24) / 64)


@pytest.mark.slow
def test_lazy_kernel():
  """(L + 1) (1 - t / pi)^L cos(t), L = 3 (arXiv 2210.02157, table 2, with L + 1 for its L)."""
  x = on_the_sphere(0, np.pi / 4, np.pi / 2, np.pi)
  width, networks = 4096, 4
  model = bioprop.plug(Ntk(width, 3), 'gln')

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
  model = bioprop.plug(NnxMlp(nnx.Rngs(0)), 'gln', nnx.Rngs(1), x)
  for i, layer in enumerate(model.layers):
    for name, value in variables['params'][f'Dense_{i}'].items():
      getattr(layer, name)[...] = value
  for name, value in variables['feedback']['gates'].items():
    model.bioprop_feedback['gates'][name][...] = value

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


def test_remat_stays(x64):
  """The same numbers, and jax.checkpoint is still there."""
  x = draw(7, 4)
  plain, variables = plug(Mlp(), x)
  model = bioprop.plug(Mlp(jax.checkpoint(lambda h: nn.relu(jnp.sin(h)))), 'gln')
  want = gradient(bioprop.plug(Mlp(lambda h: nn.relu(jnp.sin(h))), 'gln'), variables, x)
  got = gradient(model, variables, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), got, want)
  text = lambda model: str(jax.make_jaxpr(lambda v: model.apply(v, x))(variables))
  assert text(model).count('remat') == 2 and 'remat' not in text(plain)
