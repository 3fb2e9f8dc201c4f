"""Streams: the sum of what each step credits is the rule's gradient of the whole sequence."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

F = jnp.float64
N, T, INPUTS, WIDTH, OUTPUTS = 3, 7, 4, 5, 2
draw = np.random.RandomState(0).standard_normal
X, Y = draw((N, T, INPUTS)), draw((N, T, OUTPUTS))
Dense = functools.partial(nn.Dense, param_dtype=F)


class Cell(nn.RNNCellBase):
  """What our own cells share."""

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], WIDTH))

  num_feature_axes = 1


class Joined(Cell):
  """One matrix of input and state, a bias added later, and a gain of each neuron."""

  @nn.compact
  def __call__(self, h, x):
    gain = self.param('gain', nn.initializers.normal(1.0), (WIDTH,), F)
    h = 0.9 * h + gain[None] * jnp.tanh(Dense(WIDTH)(jnp.concatenate([x, h], -1)))
    return h, h


class Diagonal(Cell):
  """Neurons that remember by themselves, each with a decay of its own; two input matrices."""

  @nn.compact
  def __call__(self, h, x):
    decay = self.param('decay', nn.initializers.normal(1.0), (WIDTH,), F)
    bias = self.param('bias', nn.initializers.normal(1.0), (WIDTH,), F)
    gate = nn.sigmoid(Dense(WIDTH, use_bias=False)(x) + bias[None] + jnp.exp(decay)[None] * h)
    h = gate * h + (1 - gate) * jnp.tanh(Dense(WIDTH)(x) + 0.3 * h)
    return h, h


class Normalised(Cell):
  """Neurons that hear each other's mean."""

  @nn.compact
  def __call__(self, h, x):
    h = jnp.tanh(Dense(WIDTH)(x) + Dense(WIDTH)(h))
    h = h - jnp.mean(h, -1, keepdims=True)
    return h, h


class Deep(Cell):
  """A layer between the input and the state."""

  @nn.compact
  def __call__(self, h, x):
    h = jnp.tanh(Dense(WIDTH)(nn.relu(Dense(6)(x))) + Dense(WIDTH)(h))
    return h, h


class Learned(Cell):
  """A first state that is learned."""

  @nn.compact
  def __call__(self, h, x):
    h = jnp.tanh(Dense(WIDTH)(x) + Dense(WIDTH)(h))
    return h, h


class Net(nn.Module):
  """A recurrent layer, and readouts of each step outside of the loop."""
  cells: tuple[nn.Module, ...]
  after: str = 'all'
  outputs: int = OUTPUTS

  @nn.compact
  def __call__(self, x):
    first = None
    if self.after == 'below':
      x = nn.tanh(Dense(INPUTS)(x))
    if self.after == 'first':
      first = jnp.broadcast_to(self.param('first', nn.initializers.normal(), (1, WIDTH), F),
                               (x.shape[0], WIDTH))
    for cell in self.cells:
      back = {'reverse': True, 'keep_order': True} if self.after == 'backwards' else {}
      x = nn.RNN(cell, **back)(x, initial_carry=first)
    if self.after == 'last':
      x = x[:, -1]
    if self.after == 'mean':
      x = x.mean(1)
    return Dense(self.outputs)(nn.relu(Dense(6)(x)))


def halves(out, y):
  """Half the summed square."""
  return 0.5 * jnp.sum((out - y)**2)


def streamed(stream, variables, jit=jax.jit):
  """Outputs, and the sum of the gradients of all steps."""
  state = stream.init(variables, jnp.asarray(X[:, 0]))
  step = jit(lambda v, state, x, y: stream.step(v, state, x, lambda out: halves(out, y)))
  total, outs = None, []
  for t in range(T):
    loss, out, grads, state = step(variables, state, jnp.asarray(X[:, t]), jnp.asarray(Y[:, t]))
    np.testing.assert_allclose(loss, halves(out, Y[:, t]))
    total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    outs.append(out)
  return np.stack(outs, 1), total


def same(got, want):
  """Trees of equal structure and values."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)


CELLS = {name: functools.partial(cell, WIDTH, param_dtype=F) for name, cell in {
    'simple': nn.SimpleCell, 'gru': nn.GRUCell, 'lstm': nn.LSTMCell, 'mgu': nn.MGUCell,
    'optimised lstm': nn.OptimizedLSTMCell}.items()} | {'joined': Joined, 'diagonal': Diagonal}
CASES = [
    ('joined', bioprop.make('rflo', leak=0.5)), ('simple', 'rflo'), ('diagonal', 'bp'),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ('gru', bioprop.make('rflo', leak=0.3, feedback='learned')), ('gru', 'eprop'),
        ('joined', 'eprop'), ('optimised lstm', 'rflo'), ('lstm', 'eprop'),
        ('optimised lstm', bioprop.make('eprop', feedback='symmetric')),
        ('mgu', bioprop.make('eprop', feedback='adaptive'))))]


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('cell, rule', CASES, ids=lambda row: str(row)[:40])
def test_is_the_gradient_of_the_sequence(cell, rule):
  """Of every cell; under bp of neurons that remember by themselves it is exact RTRL."""
  stream = bioprop.online(Net((CELLS[cell](),)), rule)
  variables = stream.model.init(jax.random.key(0), jnp.asarray(X))
  outs, got = streamed(stream, variables)
  want = jax.jit(jax.grad(lambda p: halves(stream.model.apply(
      {**variables, 'params': p}, jnp.asarray(X)), Y)))(variables['params'])
  same(got, want)
  np.testing.assert_allclose(outs, stream.model.apply(variables, jnp.asarray(X)), rtol=1e-10)


class Nnx(nnx.Module):
  """A recurrent layer and a readout in NNX."""

  def __init__(self, cell):
    self.rnn = nnx.RNN(cell(INPUTS, WIDTH, param_dtype=F, rngs=nnx.Rngs(0)))
    self.readout = nnx.Linear(WIDTH, OUTPUTS, param_dtype=F, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.readout(self.rnn(x))


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('cell, rule', [
    (nnx.GRUCell, 'eprop'), (nnx.LSTMCell, bioprop.make('rflo', feedback='learned'))],
    ids=['gru', 'lstm'])
def test_nnx_models(cell, rule):
  """Gradients as nnx.grad gives them, for an optimiser of NNX."""
  model = bioprop.plug(Nnx(cell), rule, nnx.Rngs(2), jnp.asarray(X))
  _, got = streamed(bioprop.online(model), model, nnx.jit)
  want = nnx.jit(nnx.grad(lambda model: halves(model(jnp.asarray(X)), Y)))(model)
  same(nnx.to_pure_dict(got), nnx.to_pure_dict(want))


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('outputs', [1, 2])
def test_an_output_at_the_last_step(outputs):
  """A model that returns its last output gives that of each step; the last credit is its own."""
  stream = bioprop.online(Net((CELLS['simple'](),), 'last', outputs), 'eprop')
  variables = stream.model.init(jax.random.key(0), jnp.asarray(X))
  state = stream.init(variables, jnp.asarray(X[:, 0]))
  step = jax.jit(lambda state, x: stream.step(
      variables, state, x, lambda out: halves(out, Y[:, -1, :outputs])))
  for t in range(T):
    _, _, got, state = step(state, jnp.asarray(X[:, t]))
  want = jax.grad(lambda p: halves(stream.model.apply(
      {**variables, 'params': p}, jnp.asarray(X)), Y[:, -1, :outputs]))(variables['params'])
  same(got, want)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_the_state_does_not_grow():
  """Nor is a second step traced."""
  stream, traces = bioprop.online(Net((CELLS['gru'](),)), 'rflo'), []
  x = jnp.asarray(X[:, 0])
  variables = stream.model.init(jax.random.key(0), x[:, None])

  @jax.jit
  def step(state, x):
    traces.append(1)
    return stream.step(variables, state, x, jnp.sum).state

  state = stream.init(variables, x)
  after = step(step(state, x), x)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state) and len(traces) == 1


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('model, rule, words', [
    (Net((CELLS['simple'](), CELLS['simple']())), 'rflo', '2 loops over time'),
    (Net((CELLS['simple'](),), 'backwards'), 'rflo', 'another than step by step'),
    (Net((CELLS['simple'](),), 'below'), 'rflo', "weight 'cells_0/i/kernel' changes.*below"),
    (Net((Deep(),)), 'eprop', 'nothing that learns may lie below'),
    (Net((CELLS['simple'](),), 'first'), 'rflo', 'begins with something that depends'),
    (Net((Normalised(),)), 'rflo', 'neurons hear each other elsewhere'),
    (Net((CELLS['simple'](),), 'mean'), 'rflo', 'another than step by step'),
    (Net((CELLS['simple'](),)), 'bp', "recurrent weight 'cells_0/h/kernel'"),
    (Net((CELLS['simple'](),)), bioprop.make('tbptt'), 'learn by TruncatedBackprop'),
    (Net((CELLS['simple'](),)), 'dfa', 'learn by DirectFeedback'),
    (Net(()), 'bp', 'no loop over time'),
    (Net((CELLS['simple'](),)), bioprop.make('rflo', recurrent='cells_0/i'), 'to count as'),
])
def test_what_cannot_be_told_forward(model, rule, words):
  """Refused by name, in one paragraph, before the first step."""
  variables = bioprop.plug(model, rule).init(jax.random.key(0), jnp.asarray(X))
  with pytest.raises(errors.RecurrenceError, match=words) as raised:
    bioprop.online(model, rule).init(variables, jnp.asarray(X[:, 0]))
  assert '\n' not in str(raised.value)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_convolutions_and_plain_nnx_models_are_refused():
  """The first has traces of pairs of places; the second must be installed first."""
  images = jnp.zeros((2, 1, 4, 4, 3))

  class Images(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.RNN(nn.ConvLSTMCell(2, (3, 3), dtype=F, param_dtype=F))(x)

  stream = bioprop.online(Images(), 'rflo')
  with pytest.raises(errors.RecurrenceError, match=r'arrays of shapes \(2, 4, 4, 2\)'):
    stream.init(stream.model.init(jax.random.key(0), images), images[:, 0])
  with pytest.raises(TypeError, match='bioprop.plug'):
    bioprop.online(Nnx(nnx.GRUCell), 'rflo')
