"""Runs with a probe of type theory: what it predicts, when it can, and what has no limit."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.bench import pictures
from bioprop.errors import TheoryError
from bioprop.models import MODELS
from bioprop.models.mlp import MLP
from bioprop.training import base, metrics, probing, run
from bioprop.training.trainer import Trainer

SIZE = 40


def make_config(**values):
  """Forty digits in whole-batch steps by feedback alignment, lazily, with the probe."""
  config = base()
  config.model_options.update(hidden=(512,), activation='relu', parametrization='ntk',
                              use_bias=False)
  config.rule_options.update(rho=0.5, scale=1.0)
  config.update(validation=0, epochs=12, learning_rate=6.0, momentum=0.0, examples=SIZE,
                batch_size=SIZE)
  config.update(**values)
  config.probes.own = {'type': 'theory', 'every': 1, 'batch': SIZE}
  return config


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run's directory, configuration and files, by step."""
  config, path = make_config(), tmp_path_factory.mktemp('run') / 'run'
  run(config, path, progress=False)
  return path, config, probing.read(path, 'own')


@pytest.mark.slow
def test_the_kernel_is_that_of_infinite(whole):
  """Of the run's own model, rule and normalised examples; at all steps."""
  _, config, found = whole
  trainer = Trainer(config)
  images = np.asarray(trainer.train_data.images)
  order = probing.balanced(np.asarray(trainer.train_data.labels), SIZE, config.seed, 'own')
  x = trainer.task.normalise(jnp.asarray(images[order]))
  model = MLP(classes=10, hidden=(512,), activation='relu', parametrization='ntk',
              use_bias=False)
  want = bioprop.theory.infinite(model, x, rule=bioprop.make('fa', rho=0.5, scale=1.0)).entk
  assert [one['step'] for one in found] == [*range(13)]
  for one in found:
    np.testing.assert_array_equal(one['infinite_kernel'], want)
    np.testing.assert_array_equal(one['labels'], np.sort(one['labels']))
  assert found[0]['distance'] < 0.2


@pytest.mark.slow
def test_losses_follow_the_prediction(whole):
  """Of cross-entropy under a cosine schedule, in NumPy from the kernel; the wide network too."""
  path, _, found = whole
  labels, kernel = found[0]['labels'], np.asarray(found[0]['infinite_kernel'], np.float64)
  trainer = Trainer(make_config())
  order = probing.balanced(np.asarray(trainer.train_data.labels), SIZE, 0, 'own')
  x = trainer.task.normalise(jnp.asarray(np.asarray(trainer.train_data.images)[order]))
  state = trainer.init()
  f = np.asarray(trainer.task.model.apply({'params': state.params, **state.model_state}, x),
                 np.float64)
  for step, one in enumerate(found):
    shares = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    want = -np.log(shares[np.arange(SIZE), labels]).mean()
    np.testing.assert_allclose(one['infinite_loss'], want, rtol=1e-3)
    np.testing.assert_allclose(one['loss'], want, rtol=0.1)
    rate = 6.0 * (1 + np.cos(np.pi * step / 12)) / 2
    f = f - rate / SIZE * kernel @ (shares - np.eye(10)[labels])
  assert want < 0.8 * found[0]['loss']  # It learned.
  for record in metrics.read(path)[:12]:
    assert 'own/infinite_loss' in record and 'own/distance' in record
  assert [file.name for file in pictures.draw(path, path)] == ['theory.png']


@pytest.mark.slow
@pytest.mark.parametrize('values', [
    {'batch_size': 20}, {'momentum': 0.5}, {'optimizer': 'adam'}, {'weight_decay': 1e-3},
    {'clip_norm': 1.0}, {'examples': 60}], ids=str)
def test_other_training_predicts_no_loss(values):
  """But the kernel."""
  config = make_config(**{'epochs': 1, 'learning_rate': 1e-3, **values})
  config.model_options.hidden = (8,)
  trainer = Trainer(config)
  (found,) = probing.measure(trainer.probes, trainer.init(), 0)
  assert 'infinite_kernel' in found.found and 'infinite_loss' not in found.found


class Normed(nn.Module):
  """BatchNorm, unless one evaluates."""
  classes: int = 10

  @nn.compact
  def __call__(self, x, train=True):
    x = nn.Dense(4)(x.reshape((x.shape[0], -1)))
    return nn.Dense(self.classes)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))


class Dropped(nn.Module):
  """Dropout, unless one evaluates."""
  classes: int = 10

  @nn.compact
  def __call__(self, x, train=True):
    x = nn.relu(nn.Dense(4)(x.reshape((x.shape[0], -1))))
    return nn.Dense(self.classes)(nn.Dropout(0.2, deterministic=not train)(x))


class Largest(nn.Module):
  """Max pooling."""
  classes: int = 10

  @nn.compact
  def __call__(self, x, train=True):
    del train
    x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
    return nn.Dense(self.classes)(x.reshape((x.shape[0], -1)))


@pytest.mark.parametrize('model, words', [
    (Normed, r'Normed/BatchNorm_0 \(probing_theory_test.py:\d+\).*BatchNorm in training'),
    (Dropped, 'probing_theory_test'), (Largest, 'max pooling')])
@pytest.mark.some(2)
def test_no_limit_is_said_before_the_run(tmp_path, monkeypatch, model, words):
  """As it is trained, not as it is evaluated; with the probe's name, and no directory is made."""
  monkeypatch.setitem(MODELS, 'own', model)
  config = make_config(model='own', rule='bp')
  for options in (config.model_options, config.rule_options):
    options.update(dict.fromkeys(options, None))
  with pytest.raises(TheoryError, match=f'(?s)config.probes.own compares.*{words}.*leave out'):
    run(config, tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_rules_without_a_limit_are_said_too():
  """By name."""
  config = make_config(rule='brsf')
  config.rule_options.update(dict.fromkeys(config.rule_options, None))
  with pytest.raises(TheoryError, match="rule='brsf' has no lazy limit"):
    Trainer(config)
