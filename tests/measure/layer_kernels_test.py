"""Kernels of single layers: against forward and backward passes written out in NumPy."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import measure
from bioprop.measure import Jacobian

RNG = np.random.RandomState(0)
F = jnp.float64
C = 3


class Mlp(nn.Module):
  """Two hidden layers."""

  @nn.compact
  def __call__(self, x):
    for name, width in (('first', 5), ('second', 4)):
      x = nn.tanh(nn.Dense(width, param_dtype=F, name=name)(x))
    return nn.Dense(C, param_dtype=F, name='last')(x)


class Patches(nn.Module):
  """A convolution with strides and uneven padding, and a layer that is called twice."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(2, (2, 3), strides=(2, 1), padding=((1, 1), (0, 2)), param_dtype=F, name='conv')(x)
    x = nn.tanh(x).reshape(x.shape[0], -1)
    twice = nn.Dense(x.shape[1], param_dtype=F, name='twice')
    return nn.Dense(C, param_dtype=F, name='last')(twice(nn.tanh(twice(x))))


def drawn(model, x):
  """Variables of normal numbers, feedback too; arrays of NumPy."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  return jax.tree.map(lambda a: 0.7 * RNG.randn(*a.shape), shapes)


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())


def traced(g, h):
  """SUM_c g_c . h_c, of cotangents [n, C, O]."""
  return np.einsum('nco,mco->nm', g, h)


def forward(params, x):
  """What each layer of `Mlp` multiplies, and the slopes of the layers below the readout."""
  inputs, slopes = {}, {}
  for name in ('first', 'second', 'last'):
    inputs[name] = x
    x = np.tanh(x @ params[name]['kernel'] + params[name]['bias'])
    slopes[name] = 1 - x**2
  return inputs, slopes


def cotangents(slopes, sent):
  """At each layer's output [n, C, O], where `sent` maps g at a layer to g at its input."""
  g = {'last': np.broadcast_to(np.eye(C), (len(slopes['last']), C, C))}
  for name, below in (('last', 'second'), ('second', 'first')):
    g[below] = sent(name, g[name]) * slopes[below][:, None]
  return g


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
@pytest.mark.usefixtures('x64')
def test_every_kernel(rule):
  """Of a multi-layer perceptron; the weights' traced eNTK is K Phi * G~."""
  model, x = bioprop.plug(Mlp(), rule), RNG.randn(6, 4)
  variables = drawn(model, x)
  params, feedback = variables['params'], variables['feedback']
  inputs, slopes = forward(params, x)
  true = cotangents(slopes, lambda name, g: g @ params[name]['kernel'].T)
  ruled = cotangents(slopes, (lambda name, g: g @ feedback[name]['kernel'].T) if rule == 'fa' else
                     (lambda name, g: np.eye(C) @ feedback[name]['error']))
  jacobians = bioprop.measure.jacobians(model, x)
  kernels, entk = jax.jit(lambda true, pseudo: (
      measure.features(true(x), pseudo(x)),
      measure.entk(true, pseudo, x, per_layer=True, trace=True)))(
          jacobians.true(variables), jacobians.pseudo(variables))
  assert kernels.keys() == {f'{name}/kernel' for name in inputs}
  for name, a in inputs.items():
    g, h, got = true[name], ruled[name], kernels[f'{name}/kernel']
    close(got.phi, a @ a.T / a.shape[1])
    close(got.g, traced(g, g))
    close(got.g_pseudo, traced(g, h))
    close(got.pseudo, traced(h, h))
    close(entk[f'{name}/kernel'], a.shape[1] * got.phi * got.g_pseudo)
  assert np.abs(kernels['first/kernel'].g_pseudo - kernels['first/kernel'].g_pseudo.T).max() > 0.1


def patches(image):
  """What the convolution of `Patches` multiplies at each of its places."""
  padded = np.pad(image, ((1, 1), (0, 2), (0, 0)))
  return np.stack([padded[i:i + 2, j:j + 3].reshape(-1)
                   for i in range(0, padded.shape[0] - 1, 2) for j in range(padded.shape[1] - 2)])


def passes(params, x):
  """What each layer of `Patches` multiplies and its cotangents, [n, T, K] and [n, C, T O]."""
  dense = lambda name, x: x @ params[name]['kernel'] + params[name]['bias']
  a = np.stack([patches(image) for image in x])
  before = a @ params['conv']['kernel'].reshape(a.shape[2], -1) + params['conv']['bias']
  before = np.tanh(before).reshape(len(x), -1)
  between = np.tanh(dense('twice', before))
  later = np.broadcast_to(params['last']['kernel'].T, (len(x), C, before.shape[1]))
  earlier = later @ params['twice']['kernel'].T * (1 - between**2)[:, None]
  first = earlier @ params['twice']['kernel'].T * (1 - before**2)[:, None]
  last = np.broadcast_to(np.eye(C), (len(x), C, C))
  return {'conv/kernel': (a, first),
          'twice/kernel': (np.stack([before, between], 1), np.concatenate([earlier, later], 2)),
          'last/kernel': (dense('twice', between)[:, None], last)}


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_places_and_calls():
  """The kernels sum over them; under align_ada errors are those of the initial network."""
  model, x = bioprop.plug(Patches(), 'align_ada'), RNG.randn(4, 4, 3, 2)
  variables = drawn(model, x)
  jacobians = bioprop.measure.jacobians(model, x)
  kernels = jax.jit(lambda true, pseudo: measure.features(true(x), pseudo(x)))(
      jacobians.true(variables), jacobians.pseudo(variables))
  now, start = passes(variables['params'], x), passes(variables['feedback']['initial'], x)
  assert now['conv/kernel'][0].shape == (4, 9, 12)
  assert kernels.keys() == now.keys()
  for path, (a, g) in now.items():
    got, h = kernels[path], start[path][1]
    close(got.phi, np.einsum('ntk,mtk->nm', a, a) / a[0].size)
    close(got.g, traced(g, g))
    close(got.g_pseudo, traced(g, h))
    close(got.pseudo, traced(h, h))


@pytest.mark.usefixtures('x64')
def test_rules_without_cotangents():
  """Where a weight's pseudogradient is no product, there are kernels of the network alone."""
  a, g = RNG.randn(4, 1, 5), RNG.randn(4, C, 1, 2)
  true = Jacobian({'w': (a, g)}, {'gain': RNG.randn(4, C, 3)})
  kernels = measure.features(true, Jacobian({}, {'w': RNG.randn(4, C, 10), **true.full}))
  assert list(kernels) == ['w']
  close(kernels['w'].phi, a[:, 0] @ a[:, 0].T / 5)
  close(kernels['w'].g, traced(g[:, :, 0], g[:, :, 0]))
  assert kernels['w'].g_pseudo is None and kernels['w'].pseudo is None
