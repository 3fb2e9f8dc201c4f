"""Which ops are found on cycles through time, and what rules of time do with them."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.network.layered import trace
from bioprop.network.recurrence import entries, recurrent_ops
from bioprop.rules import OF_TIME

N, T, M = 3, 6, 4
X = jnp.asarray(np.random.RandomState(0).standard_normal((T, N, M)), jnp.float32)


def draw(*shape, seed=1):
  """A matrix."""
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32) / 2


W = {'rec': draw(M, M), 'inp': draw(M, M, seed=2), 'out': draw(M, 2, seed=3),
     'top': draw(M, M, seed=4), 'up': draw(M, M, seed=5)}
ZERO = jnp.zeros((N, M))


def scan(step, x=X, start=ZERO, **options):
  """What a step stacks."""
  return jax.lax.scan(step, start, x, **options)[1]


def simple(p, x, wrap=lambda step: step, **options):
  """One layer, and a readout inside of the loop."""

  def step(h, x):
    h = jnp.tanh(h @ p['rec'] + x @ p['inp'])
    return h, h @ p['out']

  return scan(wrap(step), x, **options)


def stacked(p, x):
  """Two layers in one loop."""

  def step(state, x):
    low, high = state
    low = 0.5 * low + jnp.tanh(x @ p['inp'])
    high = jnp.tanh(high @ p['rec'] + low @ p['up'])
    return (low, high), high @ p['out']

  return scan(step, x, (ZERO, ZERO))


def top_down(p, x):
  """The second layer speaks to the first, one step later."""

  def step(state, x):
    low, high = state
    low = jnp.tanh(x @ p['inp'] + high @ p['top'])
    high = jnp.tanh(low @ p['up'])
    return (low, high), high @ p['out']

  return scan(step, x, (ZERO, ZERO))


def across(p, x):
  """Two layers that hear each other, each one step later: the cycle takes two steps."""

  def step(state, x):
    low, high = state
    return (jnp.tanh(x @ p['inp'] + high @ p['top']), jnp.tanh(low @ p['up'])), high @ p['out']

  return scan(step, x, (ZERO, ZERO))


def joined(p, x):
  """One matrix for input and state, as Haiku's LSTM has it."""

  def step(h, x):
    both = jnp.concatenate([p['inp'], p['rec']])
    h = jnp.tanh(jnp.concatenate([x, h], 1).astype(x.dtype) @ both)
    return h, h @ p['out']

  return scan(step, x)


def chunks(p, x):
  """A loop over time in a loop over parts of it."""

  def part(h, x):
    def step(h, x):
      h = jnp.tanh(h @ p['rec'] + x @ p['inp'])
      return h, h @ p['out']
    return jax.lax.scan(step, h, x)

  return jax.lax.scan(part, ZERO, x.reshape((2, T // 2, N, M)))[1].reshape((T, N, 2))


def branching(p, x):
  """A branch that holds the recurrent product."""

  def step(h, x):
    move = jax.lax.cond(x[0, 0] > 0, lambda h: h @ p['rec'], lambda h: 0 * h, h)
    h = jnp.tanh(move + x @ p['inp'])
    return h, h @ p['out']

  return scan(step, x)


def counted(p, x):
  """The number of the step is carried too, and read by all."""

  def step(state, x):
    t, h = state
    h = jnp.tanh(h @ p['rec'] + jnp.where(t > 0, x, 0.0) @ p['inp'])
    return (t + 1, h), h @ p['out']

  return scan(step, x, (jnp.int32(0), ZERO))


def layers(p, x):
  """A loop over layers, each with weights of its own."""
  return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x[0],
                      jnp.stack([p['rec'], p['up']]))[0] @ p['out']


def shared(p, x):
  """A loop over layers that share their weights, which is time."""
  return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p['rec']), None), x[0], length=3)[0] @ p['out']


def cut(p, x):
  """No error travels back in time anyhow."""

  def step(h, x):
    h = jnp.tanh(jax.lax.stop_gradient(h) @ p['rec'] + x @ p['inp'])
    return h, h @ p['out']

  return scan(step, x)


@pytest.mark.parametrize('network, want', [
    (simple, {'rec'}), (lambda p, x: simple(p, x, reverse=True), {'rec'}),
    (lambda p, x: simple(p, x, jax.checkpoint), {'rec'}), (stacked, {'rec'}),
    (top_down, {'top', 'up'}), (across, {'top', 'up'}), (chunks, {'rec'}), (branching, {'rec'}),
    (counted, {'rec'}), (layers, set()), (shared, {'rec'}), (cut, set())])
def test_what_is_recurrent(network, want):
  """Ops on a cycle, as one reads them off the network."""
  seen = trace(lambda p, _, x: network(p, x), W, (), X).network
  found = {seen.ops[number].path: entries(loops) for number, loops in recurrent_ops(seen).items()}
  assert found == dict.fromkeys(want, True)


def gradient(network, rule, feedback=None):
  """Of a sum of squares, by a rule."""
  plugged = bioprop.plug(network, rule)
  stored = plugged.init_feedback(jax.random.key(0), W, X) if feedback is None else feedback
  return jax.jit(jax.grad(lambda p: jnp.sum(plugged.apply(p, stored, X)**2)))(W)


def same(got, want):
  """Trees of equal structure and values."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


@pytest.mark.parametrize('rule', [
    bioprop.make('rflo'), bioprop.make('eprop', feedback='symmetric'),
    bioprop.make('rflo', leak=0.4), bioprop.make('tbptt', steps=2)], ids=str)
def test_one_matrix_of_input_and_state(rule):
  """Rows that multiply the input send in space, rows that multiply the state in time."""
  feedback = {} if not rule.keeps_feedback else {
      'inp': draw(M, M, seed=7), 'out': draw(M, 2, seed=8), 'rec': draw(M, M, seed=9)}
  apart = {name: own for name, own in feedback.items() if name != 'rec'}
  same(gradient(joined, rule, feedback), gradient(simple, rule, apart))


@pytest.mark.parametrize('rule', [
    'rflo', bioprop.make('tbptt', steps=2), bioprop.make('tbptt', steps=4, chunked=True)], ids=str)
@pytest.mark.some(2)
def test_loops_that_are_written_otherwise(rule):
  """Under remat, unrolled in part, backwards over reversed inputs, with a counter beside."""
  want = gradient(simple, rule)
  same(gradient(lambda p, x: simple(p, x, jax.checkpoint), rule), want)
  same(gradient(lambda p, x: simple(p, x, unroll=2), rule), want)
  same(gradient(lambda p, x: simple(p, x[::-1], reverse=True), rule), want)
  first = lambda p, x: simple(p, x.at[0].set(0.0))
  same(gradient(counted, rule), gradient(first, rule))


def test_ensembles():
  """vmap of a truncated gradient is a loop over it."""
  plugged = bioprop.plug(simple, bioprop.make('tbptt', steps=2))
  one = jax.grad(lambda p: jnp.sum(plugged.apply(p, {}, X)**2))
  several = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), W)
  same(jax.tree.map(lambda a: a[1], jax.jit(jax.vmap(one))(several)),
       jax.jit(one)(jax.tree.map(lambda w: 2 * w, W)))


def test_errors_that_are_broadcast_pass_a_loop_that_is_cut():
  """dfa's beside tbptt's: where errors have not travelled in time, those beside backprop's."""
  samples_first = lambda p, x: jnp.swapaxes(stacked(p, jnp.swapaxes(x, 0, 1)), 0, 1)

  def gradient(rest):
    plugged = bioprop.plug(samples_first, {'up': 'dfa', '*': rest})
    x = jnp.swapaxes(X, 0, 1)
    stored = plugged.init_feedback(jax.random.key(0), W, x)
    return jax.jit(jax.grad(lambda p: jnp.sum(plugged.apply(p, stored, x)**2)))(W)

  full, long, short = map(gradient, ('bp', *(
      bioprop.make('tbptt', steps=steps) for steps in (T - 1, 1))))
  same(short['out'], full['out'])
  assert np.abs(long['rec'] - full['rec']).max() < np.abs(short['rec'] - full['rec']).max()
  # Below, dfa's error is the sum of all times' at each, and the leak carries it back in time.
  by_hand = jnp.zeros((M, M))
  e = 2 * jnp.swapaxes(samples_first(W, jnp.swapaxes(X, 0, 1)), 0, 1)
  b = bioprop.plug(samples_first, {'up': 'dfa', '*': 'bp'}).init_feedback(
      jax.random.key(0), W, jnp.swapaxes(X, 0, 1))['up_error']
  signal = jnp.swapaxes(e, 0, 1).reshape((N, -1)) @ b
  for t in range(T):
    slope = 1 - jnp.tanh(X[t] @ W['inp'])**2
    by_hand += X[t].T @ (slope * signal)
  same(short['inp'], by_hand)


def test_top_down_loops_are_told_apart_by_patterns():
  """Only what is named is cut: the rest sends through feedback, around the loop."""
  symmetric = {'feedback': 'symmetric'}
  none = gradient(top_down, bioprop.make('rflo', **symmetric))
  top = gradient(top_down, bioprop.make('rflo', recurrent='top', **symmetric))

  def stopped(p, x):
    def step(state, x):
      low = jnp.tanh(x @ p['inp'] + jax.lax.stop_gradient(state[1]) @ p['top'])
      high = jnp.tanh(low @ p['up'])
      return (low, high), high @ p['out']
    return scan(step, x, (ZERO, ZERO))

  same(top, gradient(stopped, 'bp'))
  assert np.any(top['inp']) and not np.any(none['inp'])
  assert np.any(gradient(top_down, 'bp')['inp'] - top['inp'])


def test_describe_says_what_is_recurrent():
  """In a column of its own, which networks without time do not have."""
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2)(nn.RNN(nn.SimpleCell(M), name='rnn')(x))

  report = bioprop.describe(Net(), 'fa', X)
  assert [row.path for row in report if row.time == 'recurrent'] == ['SimpleCell_0/h/kernel']
  assert 'time' in str(report).splitlines()[0]
  assert 'time' not in str(bioprop.describe(nn.Dense(2), 'fa', X)).splitlines()[0]
  chosen = bioprop.describe(Net(), bioprop.make('rflo', recurrent='SimpleCell_0/i'), X)
  assert [row.path for row in chosen if row.time] == ['SimpleCell_0/i/kernel']


@pytest.mark.parametrize('network, rule, error, words', [
    (lambda p, x: x[0] @ p['rec'], 'rflo', errors.RecurrenceError, 'RFLO is .* it runs no scan'),
    (layers, 'tbptt', errors.RecurrenceError, 'the scan runs over layers'),
    (lambda p, x: scan(lambda h, x: (h + x @ p['inp'], h), x), 'eprop', errors.RecurrenceError,
     'meets no weight'),
    (chunks, 'tbptt', errors.RecurrenceError, "'rec' is used in 2 loops over time"),
    (top_down, {'top': bioprop.make('tbptt', steps=2), '*': 'fa'}, errors.RecurrenceError,
     "'up' of the same loop learns by"),
    (lambda p, x: scan(lambda h, x: (jnp.tanh(h @ jnp.zeros((M, 3)) + x @ p['out'] @ jnp.ones(
        (2, 3))) @ p['narrow'], h), x), bioprop.make('eprop', recurrent='out'),
     errors.RecurrenceError, 'no neuron meets itself'),
    (simple, bioprop.make('tbptt', recurrent='inp'), errors.RecurrenceError,
     "recurrent='inp', and none of these weights lies on a cycle"),
    (simple, bioprop.make('rflo', recurrent='rek'), errors.PatternError, "'rek' matches none"),
])
def test_what_cannot_be(network, rule, error, words):
  """One paragraph each, where feedback is made."""
  params = {**W, 'narrow': draw(3, M)}
  with pytest.raises(error, match=words) as raised:
    bioprop.plug(network, rule).init_feedback(jax.random.key(0), params, X)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('options, words', [
    ({'steps': 0}, 'steps=0.*at least 1'), ({'steps': 2.0}, r'steps=2\.0'),
    ({'steps': True}, 'steps=True'), ({'chunked': 1.5}, 'chunked=1.5'),
    ({'recurrent': 3}, 'recurrent=3')])
def test_options(options, words):
  """What is out of range."""
  with pytest.raises(errors.RuleOptionError, match=words):
    bioprop.make('tbptt', **options)
  for name, own in (('rflo', {'leak': 2.0}), ('rflo', {'feedback': 'adaptive'}),
                    ('eprop', {'feedback': 'learned'}), ('eprop', {'scale': -1.0})):
    with pytest.raises(errors.RuleOptionError, match=next(iter(own))):
      bioprop.make(name, **own)


@pytest.mark.parametrize('rule', OF_TIME)
def test_models_without_time_are_refused_by_every_front(rule):
  """linen's; nothing is learned by backprop in silence."""
  with pytest.raises(errors.RecurrenceError, match='recurrent networks'):
    bioprop.plug(nn.Dense(2), rule).init(jax.random.key(0), X)
