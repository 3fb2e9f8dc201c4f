"""rflo in models of several recurrent layers, beside backprop in the same models with stops."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.network.layered import trace
from bioprop.network.recurrence import own_entries, recurrent_ops

N, T, WIDTH = 3, 6, 4
X = jax.random.normal(jax.random.key(0), (N, T, WIDTH))
RFLO = bioprop.make('rflo', feedback='symmetric')
stop = jax.lax.stop_gradient
as_it_is = lambda h: h


class Cell(nn.RNNCellBase):
  """A leaky cell; `seen` decides what errors travel back from its recurrent matrix."""
  seen: object = as_it_is

  @nn.compact
  def __call__(self, h, x):
    h = 0.7 * h + jnp.tanh(nn.Dense(WIDTH)(self.seen(h)) + nn.Dense(WIDTH)(x))
    return h, h

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], WIDTH))

  num_feature_axes = 1


class Stacked(nn.Module):
  """Two layers, a loop each."""
  seen: object = as_it_is

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.RNN(Cell(self.seen))(x)
    return nn.Dense(2)(x)


class Bidirectional(nn.Module):
  """Two layers over the same steps, one backwards."""
  seen: object = as_it_is

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(nn.Bidirectional(nn.RNN(Cell(self.seen)), nn.RNN(Cell(self.seen)))(x))


class InOneLoop(nn.Module):
  """Two layers in one loop, each step rematerialised."""
  seen: object = as_it_is

  @nn.compact
  def __call__(self, x):

    class Both(nn.Module):
      seen: object

      @nn.compact
      def __call__(self, state, x):
        low, x = Cell(self.seen)(state[0], x)
        high, x = Cell(self.seen)(state[1], x)
        return (low, high), nn.Dense(2)(x)

    loop = nn.scan(nn.remat(Both), variable_broadcast='params', split_rngs={'params': False},
                   in_axes=1, out_axes=1)
    first = jnp.zeros((x.shape[0], WIDTH))
    return loop(self.seen)((first, first), x)[1]


@pytest.mark.parametrize('model', [Stacked, Bidirectional, InOneLoop])
@pytest.mark.some(3)
def test_linen(model):
  """Errors stay at their time in recurrent matrices, and pass all others and the leak."""
  plugged, stopped = bioprop.plug(model(), RFLO), model(stop)
  variables = plugged.init(jax.random.key(1), X)
  objective = lambda own: lambda p: jnp.sum(jnp.sin(own.apply({'params': p}, X)))
  got, want = (jax.jit(jax.grad(objective(own)))(variables['params'])
               for own in (plugged, stopped))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


class Scanned(nnx.Module):
  """A loop of the user's own in NNX."""

  def __init__(self, seen):
    make = lambda size, seed: nnx.Linear(WIDTH, size, rngs=nnx.Rngs(seed))
    self.recurrent, self.input, self.readout = make(WIDTH, 0), make(WIDTH, 1), make(2, 2)
    self.seen = seen

  def __call__(self, x):

    @nnx.scan(in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
    def step(own, h, x):
      h = 0.7 * h + jnp.tanh(own.recurrent(own.seen(h)) + own.input(x))
      return h, own.readout(h)

    return step(self, jnp.zeros((x.shape[0], WIDTH)), x)[1]


def test_nnx():
  """The same of nnx.scan."""
  plugged, stopped = bioprop.plug(Scanned(as_it_is), RFLO, None, X), Scanned(stop)
  gradient = nnx.jit(nnx.grad(lambda model: jnp.sum(jnp.sin(model(X)))))
  got, want = (nnx.to_pure_dict(gradient(model)) for model in (plugged, stopped))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.slow
def test_a_kernels_own_entries_are_its_centre():
  """Of the four gates of a convolutional LSTM: each channel with itself, at its own place."""
  cell = nn.RNN(nn.ConvLSTMCell(3, (3, 5)))
  x = jnp.zeros((2, 4, 6, 7, 2))
  params = {'/'.join(entry.key for entry in path): leaf for path, leaf in (
      jax.tree_util.tree_leaves_with_path(cell.init(jax.random.key(0), x)['params']))}
  nested = lambda flat: {'cell': {name: {
      leaf: flat[f'cell/{name}/{leaf}'] for leaf in ('kernel', 'bias')} for name in ('hh', 'ih')}}
  seen = trace(lambda p, _, x: cell.apply({'params': nested(p)}, x), params, (), x).network
  (number, _), = recurrent_ops(seen).items()
  want = np.zeros((3, 5, 3, 12), bool)
  for channel in range(12):
    want[1, 2, channel % 3, channel] = True
  np.testing.assert_array_equal(own_entries(seen.ops[number], True), want)
