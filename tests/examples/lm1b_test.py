"""examples/lm1b: partitioned parameters, dropout, and a model made anew inside the train step."""
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags
from flax.training import train_state

TOKENS = np.random.RandomState(0).randint(1, 17, size=(3, 6))
TOKENS[0, 4:] = 0  # Padding.


def config_of(models):
  """A small network, made as train_and_evaluate makes it."""
  return models.TransformerConfig(
      vocab_size=17, output_vocab_size=17, emb_dim=8, num_heads=2, num_layers=1, qkv_dim=8,
      mlp_dim=16, max_len=6, kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6))


@pytest.fixture(scope='module')
def case(program, tools):
  """The language model, dropout included."""
  plain, patched = program('lm1b', 'train'), program('lm1b', 'main', patched=True).train
  key = jax.random.key(3)

  def step_of(train, config):
    rate = train.create_learning_rate_schedule(0.1, 10)
    return lambda state: train.train_step(state, {'inputs': TOKENS}, config, rate, 0.0, key)[0]

  def state(params):
    return tools.recording(train_state.TrainState.create(
        apply_fn=None, params=params, tx=tools.recorder))

  def gradient(apply, params):
    with pytest.MonkeyPatch.context() as context:
      step = step_of(plain, config_of(plain.models))
      context.setattr(
          plain.models, 'TransformerLM', lambda _: types.SimpleNamespace(apply=apply))
      return jax.jit(step)(state(params)).opt_state

  def plugged(rule):
    flags.FLAGS.rule = rule
    config = config_of(patched.models)
    model = patched.bioprop.flags.plug(patched.models.TransformerLM(config), TOKENS)
    params = tools.filled(jax.eval_shape(lambda: model.init(key, TOKENS))['params'])
    gradient, traces = tools.two_steps(step_of(patched, config), state(params))
    return model, gradient, params, traces

  block = 'decoder/encoderdecoderblock_0'
  return tools.Case(
      plain.models.TransformerLM(config_of(plain.models)), (TOKENS,), (3, 6, 17), gradient, plugged,
      readouts=('decoder/logitdense',),
      phi={f'{block}/MultiHeadDotProductAttention_0/query': lambda h: h / 2,  # Heads of four.
           f'{block}/MultiHeadDotProductAttention_0/out': lambda h: h / 0.9,  # Dropout divides
           f'{block}/MlpBlock_0/Dense_0': lambda h: jax.nn.relu(h) / 0.9,     # before it masks.
           f'{block}/MlpBlock_0/Dense_1': lambda h: h / 0.9})


@pytest.mark.slow
def test_every_parameter_is_covered(case):
  rules = case.describe('fa')
  assert all(rule == ('local' if 'Norm' in path or 'norm' in path else 'fa')
             for path, rule in rules.items())


@pytest.mark.slow
def test_symmetric_feedback_is_backprop(case):
  case.check_symmetric()


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'usf', 'frsf', 'hebb'])
def test_rule(case, rule):
  case.check_rule(rule)


@pytest.mark.slow
def test_their_state(program):
  """On their mesh, with their annotations: feedback that learns is a parameter like the rest."""
  train = program('lm1b', 'main', patched=True).train
  flags.FLAGS.rule = 'kp'
  config = flags.FLAGS.config.copy_and_resolve_references()
  config.update(per_device_batch_size=3, max_target_length=6)
  model = train.bioprop.flags.plug(train.models.TransformerLM(config_of(train.models)))
  mesh = jax.sharding.Mesh(train.utils.create_device_mesh(config), config.mesh_axes)
  tx = train.optax.adamw(0.1, weight_decay=config.weight_decay)
  state, specs = train.utils.setup_initial_state(model, tx, config, jax.random.key(0), mesh)
  mlp = state.params['decoder']['encoderdecoderblock_0']['MlpBlock_0']['Dense_0']
  assert mlp['feedback_kernel'].shape == mlp['kernel'].shape == (8, 16)
  spec = specs.params['decoder']['encoderdecoderblock_0']['MlpBlock_0']['Dense_0']
  assert spec['feedback_kernel'] == spec['kernel']
