"""rflo and eprop against the online algorithm with eligibility traces; tbptt against its sum."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.rules import OF_TIME

F = jnp.float64
BATCH, STEPS, INPUTS, WIDTH, OUTPUTS = 3, 9, 4, 5, 2
LEAK = 0.3
GATES = {'leaky': ('u',), 'gru': ('r', 'z', 'n', 'm'), 'lstm': ('i', 'f', 'g', 'o')}
RULES = {
    'rflo': ({}, 0.0), 'rflo with a leak': ({'leak': LEAK}, LEAK),
    'rflo symmetric': ({'feedback': 'symmetric'}, 0.0),
    'rflo learned': ({'feedback': 'learned', 'scale': 0.5}, 0.0),
    'eprop': ({}, None), 'eprop symmetric': ({'feedback': 'symmetric'}, None),
    'eprop adaptive': ({'feedback': 'adaptive', 'scale': 2.0}, None),
}

draw = np.random.RandomState(0).standard_normal
X, TARGETS = draw((BATCH, STEPS, INPUTS)), draw((BATCH, STEPS, OUTPUTS))


def sigmoid(u):
  """The logistic function."""
  return 1 / (1 + np.exp(-u))


def leaky(states, u):
  """h' = .8 h + .2 tanh(u): the state, its derivatives in states, and in what the gates receive."""
  phi = np.tanh(u['u'])
  return [0.8 * states[0] + 0.2 * phi], [[0.8 + 0 * phi]], {'u': [0.2 * (1 - phi**2)]}


def gru(states, u):
  """h' = (1 - z) n + z h ,  n = tanh(u_n + r u_m)."""
  h, r, z = states[0], sigmoid(u['r']), sigmoid(u['z'])
  n = np.tanh(u['n'] + r * u['m'])
  of_n = (1 - z) * (1 - n**2)
  return [(1 - z) * n + z * h], [[z]], {
      'r': [of_n * u['m'] * r * (1 - r)], 'z': [(h - n) * z * (1 - z)], 'n': [of_n],
      'm': [of_n * r]}


def lstm(states, u):
  """c' = f c + i g ,  h' = o tanh(c')."""
  c, i, f, g, o = states[0], *(sigmoid(u[k]) for k in 'if'), np.tanh(u['g']), sigmoid(u['o'])
  new = f * c + i * g
  through = o * (1 - np.tanh(new)**2)
  of_c = {'i': g * i * (1 - i), 'f': c * f * (1 - f), 'g': i * (1 - g**2), 'o': 0 * c}
  slopes = {k: [own, through * own] for k, own in of_c.items()}
  slopes['o'][1] = np.tanh(new) * o * (1 - o)
  return [new, o * np.tanh(new)], [[f, 0 * f], [through * f, 0 * f]], slopes


def online(cell, of_x, of_h, bias, readout, feedback, itself):
  """Gradients by eligibility traces, forward in time.

  Args:
    cell: of those above; its last state is h.
    of_x, of_h: matrices by the name of the gate that they feed; `bias`: vectors.
    readout: matrix [n, outputs], and its bias.
    feedback: matrix [n, outputs].
    itself: what a neuron sends itself through recurrent weights, by gate.

  Returns:
    Gradients of of_x, of_h and bias, by gate, and the readout's.
  """
  count = 2 if cell is lstm else 1
  gates = {*of_x, *of_h}
  grads = [{k: np.zeros_like(w) for k, w in own.items()} for own in (of_x, of_h, bias)]
  out = np.zeros_like(readout[0])
  for x, target in zip(X, TARGETS):
    states = [np.zeros(WIDTH) for _ in range(count)]
    traces = [{k: [np.zeros_like(w) for _ in range(count)] for k, w in own.items()}
              for own in (of_x, of_h, bias)]
    for x_t, target_t in zip(x, target):
      h = states[-1]
      u = {k: x_t @ of_x.get(k, np.zeros((INPUTS, WIDTH))) + bias.get(k, 0)
              + h @ of_h.get(k, np.zeros((WIDTH, WIDTH))) for k in gates}
      states, carried, slopes = cell(states, u)
      for to in range(count):  # The last state is h, which every gate hears of its own neuron.
        carried[to][-1] = carried[to][-1] + sum(slopes[k][to] * itself.get(k, 0) for k in gates)
      for own, before in zip(traces, (x_t, h, 1.0)):
        for k, trace in own.items():
          own[k] = [sum(d * p for d, p in zip(carried[to], trace))
                    + np.multiply.outer(before, slopes[k][to]) for to in range(count)]
      e = states[-1] @ readout[0] + readout[1] - target_t
      for total, own in zip(grads, traces):
        for k in total:
          total[k] += own[k][-1] * (feedback @ e)
      out += np.outer(states[-1], e)
  return *grads, out


class Leaky(nn.RNNCellBase):
  """A leaky tanh cell that knows nothing of rules."""

  @nn.compact
  def __call__(self, h, x):
    dense = functools.partial(nn.Dense, WIDTH, use_bias=False, param_dtype=F)
    h = 0.8 * h + 0.2 * jnp.tanh(dense(name='recurrent')(h) + dense(name='input')(x))
    return h, h

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], WIDTH))

  num_feature_axes = 1


class Linen(nn.Module):
  """A recurrent layer and a readout."""
  cell: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.Dense(OUTPUTS, param_dtype=F, name='readout')(nn.RNN(self.cell, name='rnn')(x))


class Nnx(nnx.Module):
  """The same."""

  def __init__(self, cell):
    make = lambda seed: cell(INPUTS, WIDTH, param_dtype=F, rngs=nnx.Rngs(seed))
    self.rnn = nnx.RNN(make(0))
    self.readout = nnx.Linear(WIDTH, OUTPUTS, param_dtype=F, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.readout(self.rnn(x))


def loss(y):
  """Half the summed square."""
  return 0.5 * jnp.sum((y - TARGETS)**2)


def linen(cell, rule):
  """Parameters, gradients and feedback of the cell and of the readout."""
  model = bioprop.plug(Linen(cell), rule)
  variables = model.init(jax.random.key(0), jnp.asarray(X))
  grads = jax.jit(jax.grad(lambda p: loss(model.apply({**variables, 'params': p}, X))))(
      variables['params'])
  stored = variables.get('feedback', {}).get('readout')
  return *_parted(variables['params']), *_parted(grads), stored


def modern(cell, rule):
  """As `linen`, of an NNX model."""
  model = bioprop.plug(Nnx(cell), rule, nnx.Rngs(2), jnp.asarray(X))
  grads = nnx.to_pure_dict(nnx.jit(nnx.grad(lambda model: loss(model(jnp.asarray(X)))))(model))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  frozen = nnx.to_pure_dict(nnx.state(model, bioprop.fronts.nnx.Feedback))
  inner = lambda tree: (tree['rnn']['cell'], tree['readout'])
  stored = frozen.get('bioprop_feedback', {}).get('readout')
  return *inner(params), *inner(grads), stored


def _parted(params):
  cell, = (own for name, own in params.items() if name != 'readout')
  return cell, params['readout']


def plain(params):
  """Kernels and biases by the gate that they feed, of a cell of Flax: of x, of h, and biases."""
  if 'recurrent' in params:
    return {'u': params['input']['kernel']}, {'u': params['recurrent']['kernel']}, {}
  if 'dense_i' in params:  # Side by side.
    own = GATES['gru'][:3] if params['dense_h']['kernel'].shape[1] == 3 * WIDTH else GATES['lstm']
    of_x, of_h = (dict(zip(own, np.split(params[name]['kernel'], len(own), 1)))
                  for name in ('dense_i', 'dense_h'))
    bias = dict(zip(own, np.split(params['dense_h' if own == GATES['lstm'] else 'dense_i']['bias'],
                                  len(own))))
  else:
    of_x, of_h = ({name[1:].strip('_'): own['kernel'] for name, own in params.items()
                   if name[0] == side} for side in 'ih')
    bias = {name[1:].strip('_'): own['bias'] for name, own in params.items()
            if 'bias' in own and name != 'hn'}
    if 'hn' in params:
      bias['m'] = params['hn']['bias']
  if 'n' in of_h:  # A GRU's reset gate is between.
    of_h['m'] = of_h.pop('n')
  return of_x, of_h, bias


CASES = {
    'leaky': (leaky, linen, Leaky), 'gru': (gru, linen, lambda: nn.GRUCell(WIDTH, param_dtype=F)),
    'lstm': (lstm, linen, lambda: nn.LSTMCell(WIDTH, param_dtype=F)),
    'optimised lstm': (lstm, linen, lambda: nn.OptimizedLSTMCell(WIDTH, param_dtype=F)),
    'nnx gru': (gru, modern, lambda: nnx.GRUCell), 'nnx lstm': (lstm, modern, lambda: nnx.LSTMCell),
    'nnx optimised lstm': (lstm, modern, lambda: nnx.OptimizedLSTMCell)}


def test_every_rule_of_time_is_here():
  """A rule that is not listed is not checked, so it may not exist."""
  assert {name.split()[0] for name in RULES} | {'tbptt'} == set(OF_TIME)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('case, rule', [
    (case, rule) if case == 'leaky' or rule == 'eprop' and 'optimised' not in case else
    pytest.param(case, rule, marks=pytest.mark.slow) for case in CASES for rule in RULES])
@pytest.mark.some(2)
def test_is_the_online_algorithm(case, rule):
  """The gradient through the scan is the sum over steps of signal times trace, to rounding."""
  cell, front, make = CASES[case]
  options, leak = RULES[rule]
  made = bioprop.make(rule.split()[0], **options)
  params, readout, grads, of_readout, stored = jax.tree.map(np.asarray, front(make(), made))
  weights = plain(params)
  feedback = readout['kernel'] if made.feedback == 'symmetric' else (
      readout['feedback_kernel'] if made.learns else stored['kernel'])
  diagonal = {k: np.diag(w) if leak is None else leak for k, w in weights[1].items()}
  *want, out = online(cell, *weights, (readout['kernel'], readout['bias']), feedback, diagonal)
  got = plain(grads)
  for mine, theirs in zip(got, want):
    assert mine.keys() == theirs.keys()
    for name in mine:
      np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(of_readout['kernel'], out, rtol=1e-10)
  if made.learns:
    np.testing.assert_array_equal(of_readout['feedback_kernel'], of_readout['kernel'])


def sums(steps, chunked=False):
  """The gradient of a leaky network whose every output sees its last steps, written out."""
  model = Linen(Leaky())
  params = model.init(jax.random.key(0), jnp.asarray(X))['params']

  def total(params):
    cell, readout = _parted(params)
    states = [jnp.zeros((BATCH, WIDTH))]
    step = lambda h, t: 0.8 * h + 0.2 * jnp.tanh(
        h @ cell['recurrent']['kernel'] + X[:, t] @ cell['input']['kernel'])
    for t in range(STEPS):
      states.append(step(states[-1], t))
    outs = []
    for s in range(STEPS):
      first = s - s % steps if chunked else max(0, s + 1 - steps)
      h = jax.lax.stop_gradient(states[first])
      for t in range(first, s + 1):
        h = step(h, t)
      outs.append(h @ readout['kernel'] + readout['bias'][None])
    return loss(jnp.stack(outs, 1))

  return jax.jit(jax.grad(total))(params)


def close(got, want, rtol=1e-10):
  """Trees of equal structure and values."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), got, want)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('steps, chunked', [(1, False), (3, False), (8, False), (4, True)])
@pytest.mark.some(2)
def test_truncated(steps, chunked):
  """Exactly the last terms of every output's error; or those since the last cut."""
  rule = bioprop.make('tbptt', steps=steps, chunked=chunked)
  _, _, cell, readout, _ = linen(Leaky(), rule)
  close((cell, readout), _parted(sums(steps, chunked)))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('steps', [STEPS, STEPS + 5])
@pytest.mark.parametrize('case', ['leaky', 'gru', 'nnx optimised lstm'])
@pytest.mark.some(3)
def test_long_enough_is_not_truncated(case, steps):
  """All of it is backprop through time."""
  _, front, make = CASES[case]
  close(front(make(), bioprop.make('tbptt', steps=steps))[2:4], front(make(), 'bp')[2:4])


@pytest.mark.usefixtures('x64')
def test_linear_networks_without_a_leak():
  """There rflo through the network's own weights is tbptt of one step."""
  cell = nn.SimpleCell(WIDTH, param_dtype=F, activation_fn=lambda u: u)
  one = linen(cell, bioprop.make('rflo', feedback='symmetric'))[2:4]
  close(one, linen(cell, bioprop.make('tbptt'))[2:4])


@pytest.mark.usefixtures('x64')
def test_plain_functions():
  """The same rule of a network that is no module: equal to the module's."""
  module = bioprop.plug(Linen(Leaky()), 'eprop')
  variables = module.init(jax.random.key(0), jnp.asarray(X))

  def network(params, x):
    cell, readout = _parted(params)

    def step(h, x):
      u = h @ cell['recurrent']['kernel'] + x @ cell['input']['kernel']
      h = 0.8 * h + 0.2 * jnp.tanh(u)
      return h, h

    _, states = jax.lax.scan(step, jnp.zeros((BATCH, WIDTH)), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(states, 0, 1) @ readout['kernel'] + readout['bias'][None, None]

  plugged = bioprop.plug(network, 'eprop')
  shapes = jax.tree.map(jnp.shape, plugged.init_feedback(
      jax.random.key(0), variables['params'], jnp.asarray(X)))
  assert shapes == jax.tree.map(jnp.shape, variables['feedback'])
  got = jax.grad(lambda p: loss(plugged.apply(p, variables['feedback'], jnp.asarray(X))))
  want = jax.grad(lambda p: loss(module.apply({**variables, 'params': p}, jnp.asarray(X))))
  close(got(variables['params']), want(variables['params']))
