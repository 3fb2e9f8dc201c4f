"""B = W gives backprop's gradient through recurrent cells and the scans inside flax."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

F = jnp.float64
CELLS = {cell.__name__: functools.partial(cell, param_dtype=F) for cell in (
    nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell)}


class Recurrent(nn.Module):
  """A cell over time between two dense layers."""
  cell: object
  kind: str = 'rnn'

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4, param_dtype=F)(x)
    if self.kind == 'bidirectional':
      x = nn.Bidirectional(nn.RNN(self.cell(5)), nn.RNN(self.cell(5)))(x)
    else:
      options = {'reversed': dict(reverse=True, keep_order=True), 'time_major': dict(
          time_major=True), 'unrolled': dict(unroll=3)}.get(self.kind, {})
      x = nn.RNN(self.cell(5), **options)(x)
    return nn.Dense(3, param_dtype=F)(x)


class Images(nn.Module):
  """A convolutional LSTM over two frames."""

  @nn.compact
  def __call__(self, x):
    h = nn.RNN(nn.ConvLSTMCell(2, (2, 2), param_dtype=F))(nn.Dense(3, param_dtype=F)(x))
    return nn.Dense(3, param_dtype=F)(h[:, -1].reshape((h.shape[0], -1)))


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.some(2)
def test_cell(x64, tools, cell):
  """Every gate's kernels have feedback of their own, one for all steps."""
  with jax.numpy_dtype_promotion('standard'):
    tools.check_exact(Recurrent(CELLS[cell]), draw(2, 5, 3))


@pytest.mark.parametrize('kind', ['bidirectional', 'reversed', 'time_major', 'unrolled'])
@pytest.mark.some(2)
def test_scan(x64, tools, kind):
  """The ways in which nn.RNN runs."""
  with jax.numpy_dtype_promotion('standard'):
    tools.check_exact(Recurrent(CELLS['SimpleCell'], kind), draw(2, 5, 3))


def test_convolutional_cell(x64, tools):
  """Convolutions inside a cell."""
  with jax.numpy_dtype_promotion('standard'):
    tools.check_exact(Images(), draw(2, 2, 3, 3, 2))


@pytest.mark.parametrize('rule', ['dfa', 'hebb', 'brsf', 'kp'])
@pytest.mark.some(2)
def test_other_rules_reach_into_the_cell(x64, tools, rule):
  """The cell learns under every kind of rule, and its scan keeps the fields it had."""
  model = bioprop.plug(Recurrent(CELLS['SimpleCell']), rule)
  x = draw(2, 5, 3)
  with jax.numpy_dtype_promotion('standard'):
    variables = tools.fill(jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0)))
    grads = jax.jit(lambda v: tools.gradient(model, v, x))(variables)
  cell = grads['SimpleCell_0']
  assert all(np.any(cell[name]['kernel']) for name in ('i', 'h'))
