"""Weights that a model makes of its parameters before it multiplies data by them."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

pytestmark = pytest.mark.usefixtures('x64')
F = jnp.float64
Dense = functools.partial(nn.Dense, param_dtype=F)
MASK = np.random.RandomState(1).rand(6, 6) > 0.5


def new(module, name, *shape):
  """A parameter."""
  return module.param(name, nn.initializers.normal(1.0), shape, F)


def _queries(m, h):
  """Learned queries, projected, attend to positions that are made of the sample."""
  q = new(m, 'q', 4, 6) @ new(m, 'project', 6, 6)
  k = jnp.tanh(h[:, None] * jnp.linspace(0.0, 1.0, 5)[None, :, None])
  a = nn.softmax(jnp.einsum('qd,nkd->nqk', q, k), -1)
  return jnp.einsum('nqk,nkd->nqd', a, k).mean(1)


def _experts(m, h):
  """Every expert is one of a stack, weighted by a gate."""
  gate = nn.softmax(h @ new(m, 'gate', 6, 3), -1)
  return jnp.einsum('ne,enj->nj', gate, jax.vmap(lambda w: h @ w)(new(m, 'experts', 3, 6, 6)))


def _power(m, h):
  """Made in a scan that no data enter."""
  w = new(m, 'w', 6, 6)
  return h @ jax.lax.scan(lambda c, _: (c @ w * 0.3, None), w, None, 2)[0]


def _both_ways(m, h):
  w = new(m, 'w', 6, 6)
  return nn.tanh(h @ w) @ w.T


def _kernel(m, h):
  """Filters of two parameters."""
  kernel = jnp.concatenate([new(m, 'a', 3, 1, 2), new(m, 'b', 3, 1, 3)], -1)
  y = jax.lax.conv_general_dilated(h[..., None], kernel, (1,), 'SAME',
                                   dimension_numbers=('NWC', 'WIO', 'NWC'))
  return y.reshape((y.shape[0], -1))


# By name: from (module, activities) to activities; and the parameters that have feedback.
MADE = {
    'a parameter': (lambda m, h: h @ new(m, 'w', 6, 6), 'w'),
    'a parameter from the left': (lambda m, h: (new(m, 'w', 6, 6) @ h.T).T, 'w'),
    'two in a row': (lambda m, h: jnp.einsum(
        'ni,ij,jk->nk', h, new(m, 'u', 6, 2), new(m, 'v', 2, 6)), 'u v'),
    'low rank': (lambda m, h: h @ (
        new(m, 'w', 6, 6) + new(m, 'a', 6, 2) @ new(m, 'b', 2, 6)), 'w a b'),
    'masked': (lambda m, h: h @ (new(m, 'w', 6, 6) * MASK.astype(float)), 'w'),
    'a learned mask': (lambda m, h: h @ (
        new(m, 'w', 6, 6) * nn.sigmoid(new(m, 's', 6, 6))), 'w s'),
    'concatenated': (lambda m, h: h @ jnp.concatenate(
        [new(m, 'a', 6, 2), new(m, 'b', 6, 4)], 1), 'a b'),
    'concatenated filters': (_kernel, 'a b'),
    'both ways': (_both_ways, 'w'),
    'of its inverse': (lambda m, h: h @ jnp.linalg.inv(new(m, 'w', 6, 6) + 9 * jnp.eye(6)), 'w'),
    'a power': (_power, 'w'),
    'a choice': (lambda m, h: h @ (lambda a, b: jax.lax.cond(
        a[0, 0] > b[0, 0], lambda: a, lambda: b))(new(m, 'a', 6, 6), new(m, 'b', 6, 6)), 'a b'),
    'queries': (_queries, 'q project'),
    'experts': (_experts, 'gate experts'),
    'normalised': (lambda m, h: nn.WeightNorm(Dense(6))(h), 'Dense_0 WeightNorm_0'),
    'spectral': (lambda m, h: nn.SpectralNorm(Dense(6))(h, update_stats=True), 'Dense_0'),
}


class Between(nn.Module):
  """A layer, a product, a readout: what the product sends decides for the first layer."""
  middle: object

  @nn.compact
  def __call__(self, x):
    h = self.middle(self, nn.tanh(Dense(6, name='first')(x)))
    return Dense(3, name='readout')(nn.tanh(h))


@pytest.mark.parametrize('name', MADE)
@pytest.mark.some(2)
def test_made(tools, name):
  """The counterparts become one as the parameters do: B = W is backprop."""
  middle, with_feedback = MADE[name]
  model, x = Between(middle), tools.draw(4, 6)
  with jax.numpy_dtype_promotion('standard'):  # Flax's WeightNorm needs it.
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = tools.fill(shapes['params'])
    rest = {k: tools.fill(v, seed=2) for k, v in shapes.items() if k != 'params'}
    apply = lambda p, x: model.apply({**rest, 'params': p}, x, mutable=['batch_stats'])[0]
    feedback = tools.check_exact(apply, params, x)
  assert set(feedback) == {'first', 'readout', *with_feedback.split()}


@pytest.mark.parametrize('rule', ['fa', 'hebb'])
def test_concatenated_kernels_of_a_cell(tools, rule):
  """nn.OptimizedLSTMCell learns as nn.LSTMCell does, whose kernels stay apart."""
  x = tools.draw(2, 3, 4)
  model = lambda cell: nn.RNN(cell(5, param_dtype=F))
  slow, fast = model(nn.LSTMCell), model(nn.OptimizedLSTMCell)
  plugged = bioprop.plug(slow, rule), bioprop.plug(fast, rule)
  shapes = [jax.eval_shape(m.init, jax.random.key(0), x) for m in plugged]
  assert shapes[0]['params'] == shapes[1]['params']
  variables = tools.fill(shapes[0])
  params, rest = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
  got, want = (tools.gradient(lambda p, m=m: m.apply({**rest, 'params': p}, x), params)
               for m in plugged)
  tools.same(got, want)


def test_signs_are_those_of_the_weight_that_is_made(tools):
  """frsf sends through sign(u v) |M_u M_v|, whatever the signs of the factors."""
  x = tools.draw(5, 4)
  params = tools.fill({name: jax.ShapeDtypeStruct(shape, F) for name, shape in (
      ('first', (4, 6)), ('u', (6, 2)), ('v', (2, 3)))})
  plugged = bioprop.plug(
      lambda p, x: jnp.tanh(x @ p['first']) @ (p['u'] @ p['v']), 'frsf')
  feedback = tools.feedback_of(plugged, params, x)  # Of both signs, as what a model makes of M.
  got = tools.gradient(lambda p: plugged.apply(p, feedback, x), params)
  w, m = (np.asarray(tree['u']) @ np.asarray(tree['v']) for tree in (params, feedback))
  assert (m < 0).any() and (m > 0).any()
  h = np.tanh(x @ params['first'])
  e = np.cos(h @ w) / (5 * 3)
  want = np.asarray(x).T @ (e @ (np.sign(w) * np.abs(m)).T * (1 - h**2))
  np.testing.assert_allclose(got['first'], want, rtol=1e-10)
