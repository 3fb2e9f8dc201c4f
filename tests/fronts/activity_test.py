"""Which nonlinearity follows a layer, where it is not the next line of code."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop


class Net(nn.Module):
  """Something after a layer."""
  after: object

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='readout')(self.after(nn.Dense(6, name='hidden')(x)))


def note(after, x):
  """What describe says of the layer."""
  rows = bioprop.describe(Net(after), 'hebb', x)
  return {r.path: r.note for r in rows}['hidden/kernel']


@pytest.mark.parametrize('after', [
    lambda h: nn.BatchNorm(use_running_average=False)(h), lambda h: nn.tanh(nn.LayerNorm()(h)),
    lambda h: h.mean(1, keepdims=True), lambda h: h + h[:, ::-1], lambda h: nn.softmax(h),
    lambda h: h, lambda h: h + h.reshape((6, 4)).T, lambda h: nn.tanh(h)[:, :3] + h[:, 3:],
    lambda h: nn.relu(jnp.broadcast_to(h[:, None], (4, 2, 6))).sum(1)])
def test_something_else_reads_it_first(tools, after):
  """Then the activity is the identity."""
  assert note(after, tools.x) == 'identity'


@pytest.mark.parametrize('after', [
    lambda h: nn.tanh(h.reshape((4, 2, 3))).reshape((4, 6)), lambda h: nn.tanh(h.T).T,
    lambda h: nn.tanh(h[:, None])[:, 0], lambda h: nn.tanh(h.T.reshape((2, 3, 4)) * 1).sum(0).T])
def test_it_is_found_where_entries_are_moved(tools, after):
  """A reshape, a transpose and an axis of one keep them all."""
  assert note(after, tools.x).endswith('tanh')


def test_it_is_found_through_jit_and_remat(tools):
  """Calls are looked into."""
  assert note(jax.jit(jnp.tanh), tools.x) == 'tanh'
  assert note(jax.checkpoint(jnp.tanh), tools.x) == 'tanh'
  assert note(lambda h: (lambda a: a + a[:, ::-1])(jnp.tanh(h)), tools.x) == 'tanh'


@pytest.mark.parametrize('scaled', [
    lambda h: jnp.sqrt(2.0) * nn.relu(h), lambda h: nn.relu(h) * jnp.sqrt(jnp.float32(4) / 2),
    lambda h: nn.relu(h) / jnp.sqrt(0.5), lambda h: nn.relu(h) * jnp.asarray(2)**0.5])
def test_constants_that_jax_computes(tools, scaled):
  """They are factors of the activity as much as numbers of Python are."""
  def update(after):
    model = bioprop.plug(Net(after), 'hebb')
    return tools.gradient(model, model.init(jax.random.key(0), tools.x), tools.x)

  found, expected = (update(after)['hidden']['kernel'] for after in (
      scaled, lambda h: 2**0.5 * nn.relu(h)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_the_model_may_go_on_in_another_precision(tools):
  """The activity has the layer's own, so that it fits the layer's update."""

  def update(dtype):
    model = bioprop.plug(Mixed(dtype), 'hebb')
    return tools.gradient(model, model.init(jax.random.key(0), tools.x), tools.x)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02),
               update(jnp.bfloat16), update(jnp.float32))


class Mixed(nn.Module):
  """A layer in another precision than its nonlinearity."""
  dtype: object

  @nn.compact
  def __call__(self, x):
    h = nn.relu(nn.Dense(6, dtype=self.dtype)(x).astype(jnp.float32))
    return nn.Dense(3)(jnp.real(jnp.fft.ifft(jnp.fft.fft(h))))


def test_learned_nonlinearities_take_gradients(tools):
  """A slope that is a parameter is no constant of the function."""
  model = bioprop.plug(Net(lambda h: nn.PReLU()(h)), 'hebb')
  grads = tools.gradient(model, model.init(jax.random.key(0), tools.x), tools.x)
  assert np.any(grads['hidden']['kernel'])


class Shared(nn.Module):
  """One layer, two nonlinearities."""
  first: object
  second: object

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(6, param_dtype=jnp.float64, name='shared')
    x = self.second(layer(self.first(layer(x))))
    return nn.Dense(3, param_dtype=jnp.float64, name='readout')(x)


# Functions of other names, other constants, and other options of a primitive; also in numpy.
PAIRS = {
    'names': ((nn.tanh, np.tanh), (nn.relu, lambda h: np.maximum(h, 0))),
    'slopes': tuple((lambda h, a=a: nn.leaky_relu(h, a), lambda h, a=a: np.where(h > 0, h, a * h))
                    for a in (0.1, 0.2)),
    'exponents': tuple((lambda h, n=n: h**n,) * 2 for n in (2, 3)),
}


@pytest.mark.parametrize('pair', PAIRS)
def test_each_use_of_a_layer_has_its_own(x64, tools, pair):
  """Both uses are Hebbian in what follows them, and add up; under jit too."""
  (first, one), (second, two) = PAIRS[pair]
  model = bioprop.plug(Shared(first, second), 'hebb')
  x = np.asarray(tools.x, np.float64)
  variables = tools.fill(jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0)))
  got = jax.jit(lambda v: tools.gradient(model, v, jnp.asarray(x)))(variables)
  p = jax.tree.map(np.asarray, variables['params'])
  apply = lambda name, x: x @ p[name]['kernel'] + p[name]['bias']
  low = one(apply('shared', x))
  high = two(apply('shared', low))
  f = apply('readout', high)
  error = np.cos(f) / 3  # Of one sample, of its mean over outputs.
  posts = [-np.square(error).sum(1, keepdims=True) / len(x) * post for post in (low, high)]
  want = {'shared': {'kernel': x.T @ posts[0] + low.T @ posts[1], 'bias': sum(posts).sum(0)},
          'readout': {'kernel': high.T @ error / len(x), 'bias': error.mean(0)}}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, want)
