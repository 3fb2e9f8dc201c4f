"""The cells of the rnn: ours are loops over time in numpy, Flax's are Flax's."""
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.models import RNN
from bioprop.models.cells import FLAX, LeakyCell, LinearCell


def made(**options):
  """A small network with parameters ~ N(0, 1), its layers by name, and x [4, 6, 2]."""
  model = RNN(classes=3, width=5, **options)
  random = np.random.RandomState(0)
  x = random.randn(4, 6, 2).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda w: random.randn(*w.shape).astype(np.float32), shapes)
  flat = flax.traverse_util.flatten_dict(variables['params'])
  return model, variables, {path[-2:]: w.astype(np.float64) for path, w in flat.items()}, x


STEPS = {
    'leaky': lambda state, u, tau: (1 - 1 / tau) * state + np.tanh(u) / tau,
    'linear': lambda state, u, tau: u,
    'simple': lambda state, u, tau: np.maximum(u, 0),
}


@pytest.mark.parametrize('use_bias', [True, False])
@pytest.mark.parametrize('cell, tau', [('leaky', 4.0), ('leaky', 1.0), ('linear', None),
                                       ('simple', None)])
def test_our_cells_are_loops_over_time(cell, tau, use_bias):
  """From a first state of 0.3, with and without biases."""
  model, variables, w, x = made(cell=cell, tau=tau, use_bias=use_bias, initial_state=0.3)
  kernels = {('input', 'kernel'), ('recurrent', 'kernel'), ('Dense_0', 'kernel')}
  biases = {('input', 'bias'), ('Dense_0', 'bias')} if use_bias else set()
  assert set(w) == kernels | biases
  bias = lambda name: w.get((name, 'bias'), 0)
  state, want = np.full((4, 5), 0.3), []
  for t in range(6):
    u = x[:, t] @ w['input', 'kernel'] + bias('input') + state @ w['recurrent', 'kernel']
    state = STEPS[cell](state, u, tau)
    want.append(state @ w['Dense_0', 'kernel'] + bias('Dense_0'))
  np.testing.assert_allclose(model.apply(variables, x), np.stack(want, 1), rtol=1e-3, atol=1e-3)


def test_without_a_word_tau_is_ten_and_the_leaky_cell_has_a_tanh():
  """And another function if it is asked for."""
  model, variables, _, x = made(cell='leaky')
  same = made(cell='leaky', tau=10.0, gain=1.0, activation='tanh')[0]
  np.testing.assert_array_equal(model.apply(variables, x), same.apply(variables, x))
  other = made(cell='leaky', activation='relu')[0]
  assert np.abs(model.apply(variables, x) - other.apply(variables, x)).max() > 0.01


@pytest.mark.parametrize('name, cls', [
    ('gru', nn.GRUCell), ('lstm', nn.LSTMCell), ('mgu', nn.MGUCell),
    ('optimized_lstm', nn.OptimizedLSTMCell), ('simple_flax', nn.SimpleCell)])
def test_flax_cells_are_those_of_flax(name, cls):
  """The outputs are the readout of what nn.RNN gives with that cell."""
  model, variables, w, x = made(cell=name)
  inner, = (part for key, part in variables['params'].items() if key != 'Dense_0')
  assert cls.__name__ in str(list(variables['params']))
  states = np.asarray(nn.RNN(cls(5)).apply({'params': {'cell': inner}}, x), np.float64)
  want = states @ w['Dense_0', 'kernel'] + w['Dense_0', 'bias']
  np.testing.assert_allclose(model.apply(variables, x), want, rtol=1e-4, atol=1e-5)
  assert name in FLAX and len(FLAX) == 5


def test_a_first_state_is_every_number_of_the_carry():
  """Of an lstm both its parts."""
  model, variables, w, x = made(cell='lstm', initial_state=0.2)
  inner, = (part for key, part in variables['params'].items() if key != 'Dense_0')
  first = (jnp.full((4, 5), 0.2),) * 2
  states = np.asarray(nn.RNN(nn.LSTMCell(5)).apply(
      {'params': {'cell': inner}}, x, initial_carry=first), np.float64)
  want = states @ w['Dense_0', 'kernel'] + w['Dense_0', 'bias']
  np.testing.assert_allclose(model.apply(variables, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('cell', ['leaky', 'linear'])
def test_scales_at_the_start(cell):
  """W ~ gain N(0, 1 / n), and the readout uniform within its scale over sqrt(n)."""
  model = RNN(classes=40, width=100, cell=cell, gain=1.5, readout_scale=0.1)
  params = model.init(jax.random.key(0), jnp.zeros((1, 2, 3)))['params']
  flat = {path[-2:]: np.asarray(w, np.float64)
          for path, w in flax.traverse_util.flatten_dict(params).items()}
  recurrent, out = flat['recurrent', 'kernel'], flat['Dense_0', 'kernel']
  assert recurrent.std() == pytest.approx(1.5 / 10, rel=0.03)  # Four standard errors of 10^4.
  assert np.abs(recurrent).max() > 3 * 0.15  # Not cut off at two standard deviations.
  assert 0.0099 < np.abs(out).max() <= 0.01 and abs(out.mean()) < 4 * 0.01 / 3**0.5 / 4000**0.5


@pytest.mark.parametrize('options, words', [
    ({'cell': 'grue'}, "no cell 'grue'. Valid: simple, leaky, linear, gru"),
    ({'cell': 'gru', 'activation': 'tanh'}, "'gru' has no activation, which is 'tanh'.*: none"),
    ({'cell': 'linear', 'activation': 'tanh'}, "'linear' has no activation"),
    ({'cell': 'linear', 'tau': 2.0}, "'linear' has no tau, which is 2.0.*takes: gain, use_bias"),
    ({'tau': 2.0}, "'simple' has no tau"),
    ({'gain': 2.0}, "'simple' has no gain"),
    ({'cell': 'leaky', 'parametrization': 'ntk'}, "'leaky' has no parametrization"),
    ({'parametrization': 'mup', 'readout_scale': 0.1}, 'readout_scale=0.1 has no meaning'),
    ({'cell': 'leaky', 'tau': 0.5}, 'tau=0.5 must be at least 1.*tau=10'),
    ({'cell': 'leaky', 'tau': float('inf')}, 'tau=inf must be at least 1 and finite'),
    ({'cell': 'leaky', 'tau': float('nan')}, 'tau=nan must be')])
def test_what_has_no_meaning_is_refused(options, words):
  """In one line, and not ignored."""
  with pytest.raises(ValueError, match=words) as caught:
    RNN(width=4, **options).init(jax.random.key(0), jnp.zeros((1, 2, 3)))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('cell', [LeakyCell(5), LinearCell(5)])
def test_cells_work_in_flax_alone(cell):
  """With nn.RNN's own first state, zero."""
  x = jnp.asarray(np.random.RandomState(0).randn(4, 6, 2), jnp.float32)
  model = nn.RNN(cell)
  variables = model.init(jax.random.key(0), x)
  want = model.apply(variables, x, initial_carry=jnp.zeros((4, 5)))
  np.testing.assert_array_equal(model.apply(variables, x), want)


@pytest.mark.parametrize('cell', ['leaky', 'linear', 'gru', 'lstm', 'optimized_lstm', 'mgu'])
def test_every_weight_of_every_cell_has_a_rule(cell):
  """describe leaves nothing out; the readout's error comes back to the recurrent weights."""
  model = RNN(classes=3, width=5, cell=cell)
  report = bioprop.describe(model, 'fa', jnp.zeros((2, 4, 2)))
  assert not report.left_out
  kernels = [row for row in report if row.path.endswith('kernel')]
  assert len(kernels) >= 3 and all(row.rule == 'fa' for row in kernels)
