"""Direct Kolen-Pollack: whole trainings by loops in NumPy, and what its feedback becomes."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bioprop
from bioprop import errors
from tests.rules.product_test import (
  DECAY,
  MOMENTUM,
  RATE,
  STEPS,
  Cnn,
  F,
  Mlp,
  patches,
)


def by_hand(params, x, y, steps, rate):
  """SGD with momentum and decay of W, b and B [outputs, inputs], sample by sample."""
  names = list(params)
  w = {n: np.asarray(p['kernel']).reshape(-1, p['kernel'].shape[-1]) for n, p in params.items()}
  held = [w, {n: np.asarray(p['bias']) for n, p in params.items()},
          {n: np.asarray(p['feedback_error']) for n, p in params.items()}]
  speed = [{n: np.zeros_like(a) for n, a in group.items()} for group in held]
  for _ in range(steps):
    w, bias, b = held
    h, inputs, outs = x, {}, {}
    for n in names:
      conv = params[n]['kernel'].ndim == 4
      below, seen = h, patches(h, 2) if conv else h.reshape(len(h), -1)
      h = seen @ w[n] + bias[n]
      h = h if n == 'last' else np.tanh(h)
      inputs[n], outs[n] = (below, seen), h
    e = (h - y) / len(x)
    grads = [{n: 0.0 for n in names} for _ in held]
    for sample in range(len(x)):
      for n in names:
        if n == 'last':
          g = e[sample]
        else:  # The error of the output, straight to the input of the layer above.
          above = names[names.index(n) + 1]
          out = outs[n][sample]
          g = (e[sample] @ b[above]).reshape(out.shape) * (1 - out**2)
        seen, wide = inputs[n][1][sample].reshape(-1, w[n].shape[0]), g.reshape(-1, w[n].shape[1])
        grads[0][n] = grads[0][n] + seen.T @ wide
        grads[1][n] = grads[1][n] + wide.sum(0)
        grads[2][n] = grads[2][n] + rate * np.outer(e[sample], inputs[n][0][sample])
    for group, grad, v in zip(held, grads, speed):
      for n in names:
        v[n] = MOMENTUM * v[n] + grad[n] + DECAY * group[n]
        group[n] = group[n] - RATE * v[n]
  return held


@pytest.mark.slow
@pytest.mark.parametrize('cls, shape', [(Mlp, (7, 4)), (Cnn, (5, 4, 4, 2))])
def test_training(x64, cls, shape):
  """Several steps, with momentum and decay."""
  x = np.random.RandomState(0).randn(*shape)
  model = bioprop.plug(cls(), bioprop.make('dkp', rate=0.5, scale=1.0))
  params = model.init(jax.random.key(0), x)['params']
  y = np.random.RandomState(2).randn(*model.apply({'params': params}, x).shape)
  tx = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM))
  state, now = tx.init(params), params
  gradient = jax.jit(jax.grad(lambda p: 0.5 * jnp.mean(jnp.sum(
      (model.apply({'params': p}, x) - y)**2, -1))))
  for _ in range(STEPS):
    updates, state = tx.update(gradient(now), state, now)
    now = optax.apply_updates(now, updates)
  order = [n for n in ('first', 'second', 'last') if n in params]
  found = by_hand({n: params[n] for n in order}, x, y, STEPS, 0.5)
  for n in order:
    assert np.abs(np.asarray(now[n]['feedback_error'] - params[n]['feedback_error'])).max() > 1e-2
    for leaf, want in zip(('kernel', 'bias', 'feedback_error'), found):
      np.testing.assert_allclose(np.asarray(now[n][leaf]).ravel(), want[n].ravel(), rtol=1e-9)


def test_the_readout_s_becomes_its_transpose(x64):
  """At the rate of Kolen and Pollack, as both get the same update and the same decay."""
  x = np.random.RandomState(0).randn(7, 4)
  model = bioprop.plug(Mlp(), bioprop.make('dkp', rate=1.0))
  params = model.init(jax.random.key(0), x)['params']
  gradient = jax.jit(jax.grad(lambda p: jnp.mean(model.apply({'params': p}, x)**2)))
  away = lambda p: np.linalg.norm(p['last']['kernel'] - p['last']['feedback_error'].T)
  for _ in range(4):
    before = away(params)
    params = jax.tree.map(lambda w, g: w - 0.1 * (g + 0.3 * w), params, gradient(params))
    np.testing.assert_allclose(away(params) / before, 1 - 0.1 * 0.3, rtol=1e-12)


class Positions(nn.Module):
  """A convolution over positions, each of which has an error of its own; layers in a scan."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(3, param_dtype=F, name='first')(x))
    scan = nn.scan(lambda layer, carry, _: (nn.tanh(layer(carry)), None), length=2,
                   variable_axes={'params': 0}, split_rngs={'params': True})
    x, _ = scan(nn.Dense(3, param_dtype=F, name='loop'), x, None)
    return nn.Dense(2, param_dtype=F, name='last')(x)


@pytest.mark.slow
def test_positions_and_stacks(x64):
  """Each position's error times its own activities; of a stack each layer's own."""
  x = np.random.RandomState(0).randn(5, 6, 4)
  model = bioprop.plug(Positions(), bioprop.make('dkp', rate=1.0))
  params = model.init(jax.random.key(0), x)['params']
  assert {n: p['feedback_error'].shape for n, p in params.items()} == {
      'first': (2, 4), 'loop': (2, 2, 3), 'last': (2, 3)}
  grads, out = jax.grad(lambda p: (lambda out: (jnp.sum(out**2) / 2, out))(
      model.apply({'params': p}, x)), has_aux=True)(params)
  dense = lambda h, p: h @ np.asarray(p['kernel']) + np.asarray(p['bias'])
  layer = lambda at: {name: leaf[at] for name, leaf in params['loop'].items()}
  inputs = [x, np.tanh(dense(x, params['first']))]
  for at in range(2):
    inputs.append(np.tanh(dense(inputs[-1], layer(at))))
  want = [np.einsum('nto,nti->oi', out, h) for h in inputs]
  got = [grads['first']['feedback_error'], *grads['loop']['feedback_error'],
         grads['last']['feedback_error']]
  for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.slow
def test_shared_feedback_gets_the_mean_over_locations(x64):
  x = np.random.RandomState(0).randn(3, 4, 4, 2)
  model = bioprop.plug(Cnn(), bioprop.make('dkp', rate=1.0, spatial='shared'))
  params = model.init(jax.random.key(0), x)['params']
  grads, out = jax.grad(lambda p: (lambda out: (jnp.sum(out**2) / 2, out))(
      model.apply({'params': p}, x)), has_aux=True)(params)
  np.testing.assert_allclose(grads['first']['feedback_error'],
                             np.einsum('no,nhwc->oc', out, x) / 16, rtol=1e-10)


@pytest.mark.slow
def test_several_weights_of_a_layer():
  """Names of two weights in one layer, in linen and in NNX, and what describe says of them."""

  class Pair(nnx.Module):

    def __init__(self):
      self.a, self.b = nnx.Param(jnp.ones((4, 3))), nnx.Param(jnp.ones((3, 2)))

    def __call__(self, x):
      return jnp.tanh(x @ self.a[...]) @ self.b[...]

  class Two(nn.Module):

    @nn.compact
    def __call__(self, x):
      init = nn.initializers.normal()
      return jnp.tanh(x @ self.param('a', init, (4, 3))) @ self.param('b', init, (3, 2))

  x = jnp.ones((5, 4))
  names = {'feedback_a_error': (2, 4), 'feedback_b_error': (2, 3)}
  model = bioprop.plug(Two(), 'dkp')
  params = model.init(jax.random.key(0), x)['params']
  own = {'a': (4, 3), 'b': (3, 2)}
  assert {n: p.shape for n, p in params.items()} == {**own, **names}
  grads = jax.grad(lambda p: jnp.sum(model.apply({'params': p}, x)**2))(params)
  assert all(bool(jnp.any(g)) for g in jax.tree.leaves(grads))
  pair = bioprop.plug(Pair(), 'dkp', nnx.Rngs(0), x)
  assert {n: p.shape for n, p in nnx.to_pure_dict(nnx.state(pair, nnx.Param)).items()} == {
      **own, **names}
  taken = nnx.grad(lambda model: jnp.sum(model(x)**2))(pair)
  assert all(bool(jnp.any(g)) for g in jax.tree.leaves(taken))
  for rows in (bioprop.describe(Two(), 'dkp', x), bioprop.describe(pair, None, x)):
    told = {row.path: (row.shape, row.note) for row in rows}
    assert told['feedback_b_error'] == ((2, 3), 'learned feedback')
  bioprop.unplug(pair)
  assert set(nnx.to_pure_dict(nnx.state(pair, nnx.Param))) == {'a', 'b'}


class Taken(nn.Module):
  """Parameters that are called as learned feedback is."""

  @nn.compact
  def __call__(self, x):
    x = x * self.param('feedback_error', nn.initializers.ones, (1, 3))
    return x @ self.param('kernel', nn.initializers.normal(), (3, 2))


@pytest.mark.parametrize('rule', ['fa', 'kp', 'pfa'])
def test_the_name_is_free_under_other_rules(rule):
  model, x = bioprop.plug(Taken(), rule), jnp.ones((2, 3))
  variables = model.init(jax.random.key(0), x)
  grads = jax.grad(lambda p: jnp.sum(model.apply({**variables, 'params': p}, x)**2))(
      variables['params'])
  assert bool(jnp.any(grads['feedback_error']))


def test_a_namesake_is_refused():
  """Not overwritten; NNX refuses it too."""
  with pytest.raises(errors.UnsupportedLayerError, match=(
      "'error' at 'feedback_error', and the model has that")):
    bioprop.plug(Taken(), 'dkp').init(jax.random.key(0), jnp.ones((2, 3)))
