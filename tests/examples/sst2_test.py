"""examples/sst2: an nn.scan of their own, an embedding made by self.param, attention."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

DRAW = np.random.RandomState(0)
BATCH = {'token_ids': DRAW.randint(2, 11, size=(4, 5)), 'length': np.array([5, 4, 2, 5]),
         'label': DRAW.randint(2, size=4).astype(np.float32)}


def choose(rule):
  """The flags for a rule."""
  flags.FLAGS.rule_options = ''
  flags.FLAGS.rule = rule
  if rule == 'dfa':  # Their batches have several lengths.
    flags.FLAGS.rule_options = 'spatial=shared'


@pytest.fixture(scope='module')
def case(program, tools):
  """The classifier, made from a configuration as theirs."""
  plain, patched = program('sst2', 'train'), program('sst2', 'main', patched=True).train
  config = flags.FLAGS.config.copy_and_resolve_references()
  config.update(vocab_size=11, embedding_size=6, hidden_size=8)
  key = jax.random.key(3)

  def start(train):
    model = train.model_from_config(config)
    state = jax.eval_shape(lambda: train.create_train_state(key, config, model))
    return state.replace(step=0, params=tools.filled(state.params))

  def step_of(train):
    return lambda state: train.train_step(state, BATCH, {'dropout': key})[0]

  def gradient(apply, params):
    state = start(plain).replace(apply_fn=apply, params=params)
    return jax.jit(step_of(plain))(tools.recording(state)).opt_state

  def plugged(rule):
    choose(rule)
    state = tools.recording(start(patched))
    gradient, traces = tools.two_steps(step_of(patched), state)
    return state.apply_fn.__self__, gradient, state.params, traces

  sample = (BATCH['token_ids'], BATCH['length'])
  return tools.Case(
      plain.model_from_config(config), sample, (4, 1), gradient, plugged,
      options={'deterministic': True}, readouts=('classifier/mlp/output_layer',),
      phi={'embedder': lambda h: h / 0.5,  # A dropout's constant is a part of phi.
           'classifier/mlp/intermediate_layer': lambda h: jnp.tanh(h) / 0.5,
           'classifier/keys_only_mlp_attention/keys': jnp.tanh})


@pytest.mark.slow
def test_every_parameter_is_covered(case):
  """The embedding too, which is no layer: a matrix of their own, in which they look tokens up."""
  assert set(case.describe('fa').values()) == {'fa'}


@pytest.mark.slow
def test_symmetric_feedback_is_backprop(case):
  case.check_symmetric()


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'usf', 'frsf', 'hebb'])
def test_rule(case, rule):
  case.check_rule(rule)


@pytest.mark.slow
def test_their_evaluation(program, case):
  """It runs the plugged model, without a random stream, on batches of another size and length."""
  train = program('sst2', 'main', patched=True).train
  choose('dfa')
  config = flags.FLAGS.config.copy_and_resolve_references()
  config.update(vocab_size=11, embedding_size=6, hidden_size=8)
  state = train.create_train_state(jax.random.key(0), config, train.model_from_config(config))
  batch = {name: value[:3] for name, value in BATCH.items()}
  batch['token_ids'] = np.pad(batch['token_ids'], ((0, 0), (0, 3)))
  got = train.eval_step(state, batch, None)
  want = train.eval_step(state.replace(apply_fn=case.model.apply), batch, None)
  np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)
