"""examples/vae: the model is made anew inside the train step, and returns three arrays."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from flax.training import train_state

from bioprop.errors import FeedbackMissingError

BATCH = np.random.RandomState(0).rand(6, 784).round().astype(np.float32)


@pytest.fixture(scope='module')
def case(program, tools):
  """The VAE of their default configuration."""
  plain, patched = program('vae', 'train'), program('vae', 'main', patched=True).train
  latents, key = flags.FLAGS.config.latents, jax.random.key(3)

  def state(params):
    return tools.recording(train_state.TrainState.create(
        apply_fn=None, params=params, tx=tools.recorder))

  def gradient(apply, params):
    with pytest.MonkeyPatch.context() as context:
      context.setattr(plain.models, 'model', lambda _: types.SimpleNamespace(apply=apply))
      step = jax.jit(lambda state: plain.train_step(state, BATCH, key, latents))
      return step(state(params)).opt_state

  def plugged(rule):
    flags.FLAGS.rule = rule
    model = patched.models.model(latents)
    params = tools.filled(jax.eval_shape(lambda: model.init(key, BATCH, key))['params'])
    gradient, traces = tools.two_steps(
        lambda state: patched.train_step(state, BATCH, key, latents), state(params))
    return model, gradient, params, traces

  return tools.Case(
      plain.models.model(latents), (BATCH, key), (6, 784), gradient, plugged, output=0,
      readouts=('decoder/fc2', 'encoder/fc2_mean', 'encoder/fc2_logvar'),
      phi={'encoder/fc1': jax.nn.relu, 'decoder/fc1': jax.nn.relu})


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
def test_feedback_that_is_redrawn(case):
  """brsf wants a random stream, which this loop does not pass: the error has the line to type."""
  with pytest.raises(FeedbackMissingError, match=r"rngs=\{'feedback': jax.random.fold_in"):
    case.plugged('brsf')


@pytest.mark.slow
def test_the_model_of_each_step_is_one(case, program):
  """Their loop is not jitted: feedback must not be drawn again at every step."""
  models = program('vae', 'main', patched=True).train.models
  flags.FLAGS.rule = 'dfa'
  assert models.model(20) is models.model(20) is not models.model(19)
  flags.FLAGS.rule = 'bp'
  assert not hasattr(models.model(20), 'bioprop_plain')


@pytest.mark.slow
def test_their_loop(program):
  """Their init, step and evaluation, which binds the model; under kp, feedback is trained."""
  train = program('vae', 'main', patched=True).train
  flags.FLAGS.rule = 'kp'

  @jax.jit
  def loop(key):
    params = train.models.model(20).init(key, jnp.ones((6, 784)), key)['params']
    state = train_state.TrainState.create(
        apply_fn=train.models.model(20).apply, params=params, tx=optax.adam(0.001))
    state = train.train_step(state, BATCH, key, 20)
    return params, state.params, train.eval_f(state.params, BATCH, jnp.ones((64, 20)), key, 20)

  before, after, (metrics, _, _) = jax.device_get(loop(jax.random.key(0)))
  assert np.isfinite(metrics['loss'])
  for name in ('kernel', 'feedback_kernel'):
    assert np.any(before['encoder']['fc1'][name] != after['encoder']['fc1'][name])
