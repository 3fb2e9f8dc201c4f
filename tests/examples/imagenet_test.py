"""examples/imagenet: batch statistics under pmap, and a TrainState with no room for feedback."""
import functools

import jax
import numpy as np
import pytest
from absl import flags

SIZE, CLASSES = 32, 10
# Of their networks two blocks, the second with strides and a projection: ops of each kind, once.
BLOCKS = ('ResNetBlock', 'BottleneckResNetBlock')
DRAW = np.random.RandomState(0)
BATCH = {'image': DRAW.randn(1, 4, SIZE, SIZE, 3).astype(np.float32),
         'label': DRAW.randint(CLASSES, size=(1, 4))}


@pytest.fixture(scope='module')
def make(program, tools):
  """A Case of one of their networks or blocks, on small images, with few channels and classes."""
  plain, patched = program('imagenet', 'train'), program('imagenet', 'main', patched=True).train
  plain.NUM_CLASSES = patched.NUM_CLASSES = CLASSES
  config = flags.FLAGS.config

  def start(train, network):
    """Their TrainState, and their step as they compile it."""
    made = getattr(train.models, network)
    if network in BLOCKS:
      made = functools.partial(train.models.ResNet, stage_sizes=[1, 1], block_cls=made)
    model = train.create_model(
        model_cls=made, num_filters=8, half_precision=config.half_precision)
    rate = train.create_learning_rate_fn(config, 0.1, 10)
    state = jax.eval_shape(
        lambda key: train.create_train_state(key, config, model, SIZE, rate), jax.random.key(0))
    state = state.replace(step=0, params=tools.filled(state.params),
                          batch_stats=tools.filled(state.batch_stats))

    def compiled(step):
      mapped = jax.pmap(functools.partial(step, learning_rate_fn=rate), in_axes=(None, 0),
                        out_axes=(None, 0), axis_name='batch')
      return lambda state: mapped(state, BATCH)[0]

    return model, tools.recording(state), compiled

  @functools.cache
  def make(network):
    model, first, compiled = start(plain, network)

    def gradient(apply, params):
      state = tools.recording(first.replace(apply_fn=apply, params=params))
      return compiled(plain.train_step)(state).opt_state

    def plugged(rule):
      flags.FLAGS.rule = rule
      _, state, compiled = start(patched, network)
      gradient, traces = tools.two_steps(patched.train_step, tools.placed(state), compiled)
      return state.apply_fn.__self__, gradient, state.params, traces

    return tools.Case(model, (BATCH['image'][0],), (4, CLASSES), gradient, plugged,
                      readouts=('Dense_0',))

  return make


@pytest.mark.slow
@pytest.mark.parametrize('network', ['ResNet18', 'ResNet50'])
def test_every_parameter_is_covered(make, network):
  """Weights learn by the rule; scales and shifts of the norms by what reaches them."""
  rules = make(network).describe('fa')
  assert all(rule == ('local' if 'bn_' in path or 'BatchNorm' in path or 'norm_proj' in path
                      else 'fa') for path, rule in rules.items())


@pytest.mark.slow
@pytest.mark.parametrize('block', BLOCKS)
def test_symmetric_feedback_is_backprop(make, block):
  make(block).check_symmetric()


@pytest.mark.slow
@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'usf', 'frsf', 'hebb'])
def test_rule(make, block, rule):
  make(block).check_rule(rule)


@pytest.mark.slow
def test_a_whole_network(make):
  make('ResNet50').check_rule('fa')


@pytest.mark.slow
def test_their_evaluation(make, program):
  """It runs the plugged model, under pmap and with nothing mutable."""
  train = program('imagenet', 'main', patched=True).train
  case, flags.FLAGS.rule = make(BLOCKS[0]), 'dfa'
  state = train.create_train_state(
      jax.random.key(0), flags.FLAGS.config, case.model, SIZE, learning_rate_fn=0.1)
  step = jax.pmap(train.eval_step, in_axes=(None, 0), axis_name='batch')
  got, want = step(state, BATCH), step(state.replace(apply_fn=case.model.apply), BATCH)
  np.testing.assert_allclose(got['loss'], want['loss'], rtol=1e-5)
