"""Which nonlinearity follows a layer, where it is not the next line of code."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors

pytestmark = pytest.mark.usefixtures('quick')


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
    lambda h: h])
def test_something_else_reads_it_first(tools, after):
  """Then the activity is the identity."""
  assert note(after, tools.x) == 'identity'


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
    model = bioprop.wrap(Net(after), 'hebb')
    return tools.gradient(model, model.init(jax.random.key(0), tools.x), tools.x)

  found, expected = (update(after)['hidden']['kernel'] for after in (
      scaled, lambda h: 2**0.5 * nn.relu(h)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_learned_nonlinearities_take_gradients(tools):
  """A slope that is a parameter is no constant of the function."""
  model = bioprop.wrap(Net(lambda h: nn.PReLU()(h)), 'hebb')
  grads = tools.gradient(model, model.init(jax.random.key(0), tools.x), tools.x)
  assert np.any(grads['hidden']['kernel'])


class Shared(nn.Module):
  """One layer, two nonlinearities."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(6, name='shared')
    return nn.Dense(3)(nn.relu(layer(nn.tanh(layer(x)))))


def test_ambiguous(tools):
  """Refused, and a name helps."""
  with pytest.raises(errors.ActivationError, match="'shared' is called more than once.*tanh"):
    bioprop.wrap(Shared(), 'hebb').init(jax.random.key(0), tools.x)
  named = {'shared': bioprop.make('hebb', activation='relu'), '*': 'bp'}
  model = bioprop.wrap(Shared(), named)
  grads = tools.gradient(model, model.init(jax.random.key(0), tools.x), tools.x)
  assert np.any(grads['shared']['kernel'])


def test_constants_tell_functions_apart(tools):
  """Two slopes are two functions, also under jit, where constants must stay constants."""

  class Slopes(nn.Module):

    @nn.compact
    def __call__(self, x):
      layer = nn.Dense(6, name='shared')
      return nn.Dense(3)(nn.leaky_relu(layer(nn.leaky_relu(layer(x), 0.1)), 0.2))

  with pytest.raises(errors.ActivationError, match='0.1.*0.2'):
    jax.jit(bioprop.wrap(Slopes(), 'hebb').init)(jax.random.key(0), tools.x)


def test_exponents_tell_functions_apart(tools):
  """An option of a primitive is part of its name."""

  class Powers(nn.Module):

    @nn.compact
    def __call__(self, x):
      layer = nn.Dense(6, name='shared')
      return nn.Dense(3)(layer(layer(x)**2)**3)

  with pytest.raises(errors.ActivationError, match=r'\(2\).*\(3\)'):
    bioprop.wrap(Powers(), 'hebb').init(jax.random.key(0), tools.x)
