"""examples/seq2seq: LSTMs in nn.RNN, a decoder that samples, and two outputs."""
import jax
import numpy as np
import pytest
from absl import flags


@pytest.fixture(scope='module')
def case(program, tools):
  """The model of their flags, with fewer units."""
  plain, patched = program('seq2seq', 'train'), program('seq2seq', 'train', patched=True)
  flags.FLAGS.hidden_size = 8
  table = plain.CTable('0123456789+= ')
  batch = table.get_batch(5)
  key = jax.random.key(3)

  def start(train):
    state = jax.eval_shape(lambda: train.get_train_state(key, table))
    return state.replace(step=0, params=tools.filled(state.params))

  def step_of(train):
    return lambda state: train.train_step(state, batch, key, table.eos_id)[0]

  def gradient(apply, params):
    state = start(plain).replace(apply_fn=apply, params=params)
    return step_of(plain)(tools.recording(state)).opt_state

  def plugged(rule):
    flags.FLAGS.rule = rule
    state = tools.recording(start(patched))
    gradient, traces = tools.two_steps(step_of(patched), state)
    return state.apply_fn.__self__, gradient, state.params, traces

  return tools.Case(plain.get_model(table), (batch['query'], batch['answer']),
                    batch['answer'][:, 1:].shape, gradient, plugged, output=0,
                    readouts=('DecoderLSTMCell_0/Dense_0',))


@pytest.mark.slow
def test_every_parameter_is_covered(case):
  assert set(case.describe('fa').values()) == {'fa'}


@pytest.mark.slow
def test_symmetric_feedback_is_backprop(case):
  case.check_symmetric()


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'hebb', 'usf', 'frsf'])
def test_rule(case, rule):
  case.check_rule(rule)


@pytest.mark.slow
def test_their_decoding(program):
  """The plain model decodes with the plugged model's parameters, as `decode` does."""
  train = program('seq2seq', 'train', patched=True)
  flags.FLAGS.rule, flags.FLAGS.hidden_size = 'kp', 8
  table = train.CTable('0123456789+= ')
  state = train.get_train_state(jax.random.key(0), table)
  batch = table.get_batch(2)
  guesses = train.decode(state.params, batch['query'], jax.random.key(1), table)
  assert guesses.shape == (2, table.max_output_len - 1, table.vocab_size)
  assert np.all(np.sum(guesses, -1) == 1)
