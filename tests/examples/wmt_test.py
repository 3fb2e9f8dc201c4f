"""examples/wmt: an encoder and a decoder that share one embedding with the readout, under pmap."""
import types

import jax
import numpy as np
import pytest
from absl import flags

DRAW = np.random.RandomState(0)
BATCH = {name: DRAW.randint(1, 17, size=(1, 3, 6)) for name in ('inputs', 'targets')}
SAMPLE = (BATCH['inputs'][0], BATCH['targets'][0])


def config_of(models):
  """A small network; what is shared is what their default configuration shares."""
  shared = flags.FLAGS.config
  return models.TransformerConfig(
      vocab_size=17, output_vocab_size=17, emb_dim=8, num_heads=2, num_layers=1, qkv_dim=8,
      mlp_dim=16, max_len=6, share_embeddings=shared.share_embeddings,
      logits_via_embedding=shared.logits_via_embedding)


@pytest.fixture(scope='module')
def case(program, tools):
  """The translation model, dropout included."""
  plain, patched = program('wmt', 'train'), program('wmt', 'main', patched=True).train
  key = jax.random.key(3)

  def compiled(train, config):
    rate = train.create_learning_rate_schedule(0.1, 10)

    def compiled(step):
      mapped = jax.pmap(
          lambda state, batch: step(state, batch, config, rate, 0.1, dropout_rng=key),
          in_axes=(None, 0), out_axes=(None, 0), axis_name='batch')
      return lambda state: mapped(state, BATCH)[0]

    return compiled

  def state(train, params):
    return tools.recording(train.TrainState.create(
        apply_fn=None, params=params, tx=tools.recorder, dynamic_scale=None))

  def gradient(apply, params):
    with pytest.MonkeyPatch.context() as context:
      run = compiled(plain, config_of(plain.models))(plain.train_step)
      context.setattr(plain.models, 'Transformer', lambda _: types.SimpleNamespace(apply=apply))
      return run(state(plain, params)).opt_state

  def plugged(rule):
    flags.FLAGS.rule = rule
    config = config_of(patched.models)
    model = patched.bioprop.flags.plug(patched.models.Transformer(config), *SAMPLE)
    params = tools.filled(jax.eval_shape(lambda: model.init(key, *SAMPLE))['params'])
    gradient, traces = tools.two_steps(
        patched.train_step, tools.placed(state(patched, params)), compiled(patched, config))
    return model, gradient, params, traces

  model = plain.models.Transformer(config_of(plain.models))
  return tools.Case(model, SAMPLE, (3, 6, 17), gradient, plugged)


@pytest.mark.slow
def test_every_parameter_is_covered(case):
  rules = case.describe('fa')
  assert all(rule == ('local' if 'Norm' in path or 'norm' in path else 'fa')
             for path, rule in rules.items())


@pytest.mark.slow
def test_symmetric_feedback_is_backprop(case):
  case.check_symmetric()


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'usf', 'frsf'])
def test_rule(case, rule):
  case.check_rule(rule)
