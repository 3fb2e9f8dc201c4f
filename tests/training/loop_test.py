"""Whole runs on digits: one interrupted anywhere is the one that was not, bit for bit."""
import flax.linen as nn
import jax
import numpy as np
import pytest

from bioprop import data
from bioprop.errors import ConfigError, DataError, DivergedError, WorkdirError
from bioprop.models import MODELS
from bioprop.training import metrics, run, step
from bioprop.training.trainer import Average, Trainer

TIMES = ('seconds', 'steps_per_second')


class Noisy(nn.Module):
  """BatchNorm and dropout: a state beside the parameters, and random numbers."""
  classes: int = 10

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(16)(x.reshape((x.shape[0], -1)))
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.classes)(x)


@pytest.fixture
def noisy(config, monkeypatch):
  monkeypatch.setitem(MODELS, 'noisy', Noisy)
  config.model = 'noisy'
  config.model_options.hidden = None
  config.rule = 'brsf'  # Draws its feedback in every step.
  config.augment = 'shift_flip'
  return config


def _records(path):
  return [{name: value for name, value in record.items() if name not in TIMES}
          for record in metrics.read(path)]


def _same_bits(a, b):
  leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
  assert len(leaves) == len(others)
  for leaf, other in zip(leaves, others):
    assert leaf.dtype == other.dtype
    np.testing.assert_array_equal(leaf, other)


def _interrupt_in(monkeypatch, epoch):
  """Ctrl-C while the given epoch runs, once."""
  plain = Trainer.epoch

  def interrupted(self, state, number, *args):
    out = plain(self, state, number, *args)
    if number == epoch:
      monkeypatch.setattr(Trainer, 'epoch', plain)
      raise KeyboardInterrupt
    return out
  monkeypatch.setattr(Trainer, 'epoch', interrupted)


@pytest.mark.slow
@pytest.mark.parametrize('epoch,every', [(1, 1), (3, 1), (3, 2)])
def test_an_interrupted_run_goes_on_to_the_same_bits(noisy, tmp_path, monkeypatch, epoch, every):
  noisy.checkpoint_every = every
  whole = run(noisy, tmp_path / 'whole', progress=False)
  _interrupt_in(monkeypatch, epoch)
  with pytest.raises(KeyboardInterrupt):
    run(noisy, tmp_path / 'cut', progress=False)
  assert len(_records(tmp_path / 'cut')) == epoch - 1
  resumed = run(noisy, tmp_path / 'cut', progress=False)
  _same_bits(whole.state, resumed.state)
  assert _records(tmp_path / 'whole') == _records(tmp_path / 'cut')
  assert len(_records(tmp_path / 'cut')) == 4  # Three epochs and the final result.


@pytest.mark.slow
def test_a_finished_run_gives_its_results_again_and_trains_nothing(config, tmp_path, monkeypatch):
  first = run(config, tmp_path / 'run', progress=False)
  before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}
  monkeypatch.delattr(Trainer, 'epoch')
  monkeypatch.delattr(Trainer, 'test')
  again = run(config, tmp_path / 'run', progress=False)
  assert again.table() == first.table()
  _same_bits(first.state, again.state)
  assert before == {p: p.read_bytes() for p in (tmp_path / 'run').rglob('*') if p.is_file()}


@pytest.mark.slow
def test_the_numbers_logged_are_those_of_the_state(config, tmp_path):
  results = run(config, tmp_path / 'run', progress=False)
  trainer = Trainer(config)
  logits = trainer.task.model.apply(
      {'params': results.state.params, **results.state.model_state},
      trainer.task.normalise(jax.numpy.asarray(trainer.data.test.images)), train=False)
  accuracy = np.mean(np.asarray(logits).argmax(-1) == trainer.data.test.labels)
  assert results.test_accuracy == pytest.approx(accuracy, abs=1e-12)
  *epochs, final = _records(tmp_path / 'run')
  assert [record['epoch'] for record in epochs] == [1, 2, 3]
  assert set(epochs[0]) == {'epoch', 'train_loss', 'train_accuracy', 'validation_loss',
                            'validation_accuracy', 'learning_rate'}
  assert final == {'test_loss': results.test_loss, 'test_accuracy': results.test_accuracy}
  assert epochs[2]['train_loss'] < epochs[0]['train_loss']


def test_the_step_is_traced_once_and_the_test_split_seen_once(config, tmp_path, monkeypatch):
  traces, tests = [], []
  plain_step, plain_test = step.train_step, Trainer.test
  monkeypatch.setattr(step, 'train_step', lambda *args: traces.append(1) or plain_step(*args))
  monkeypatch.setattr(Trainer, 'test', lambda *args: tests.append(1) or plain_test(*args))
  run(config, tmp_path / 'run', progress=False)
  assert (len(traces), len(tests)) == (1, 1)


def test_the_state_that_goes_in_is_used_up_and_its_memory_reused(config):
  trainer = Trainer(config)
  state = trainer.init()
  trainer.epoch(state, 1)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_another_configuration_is_refused_key_by_key(config, tmp_path):
  run(config, tmp_path / 'run', progress=False)
  before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}
  config.learning_rate = 0.2
  config.rule_options.rho = 0.5
  with pytest.raises(WorkdirError) as error:
    run(config, tmp_path / 'run', progress=False)
  assert 'learning_rate is 0.1 there and 0.2 here' in str(error.value)
  assert 'rule_options.rho is None there and 0.5 here' in str(error.value)
  assert 'epochs' not in str(error.value)
  assert before == {p: p.read_bytes() for p in (tmp_path / 'run').rglob('*') if p.is_file()}


@pytest.mark.parametrize('values,error,words', [
    ({'model': 'lenet', 'model_options': {'hidden': None}}, ConfigError, r'inputs \[8, 8, 1\]'),
    ({'model_options': {'features': (1,)}}, ConfigError, 'hidden, activation'),
    ({'batch_size': 1338}, DataError, '1337 training examples'),
    ({'validation': 1437}, DataError, '1436'),
    ({'model': 'mpl'}, ConfigError, "Did you mean 'mlp'"),
    ({'examples': 0}, ConfigError, 'config.examples is 0'),
    ({'examples': 1338}, DataError, '1338 examples.*1 to 1337'),
    ({'examples': 150}, DataError, 'batch_size is 200, but only 150 training examples'),
])
def test_what_cannot_work_is_said_before_anything_is_written(
    config, tmp_path, values, error, words):
  config.update(values)
  with pytest.raises(error, match=words):
    run(config, tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_divergence_names_step_and_layer_and_leaves_checkpoints_alone(
    config, tmp_path, monkeypatch):
  config.epochs = 4
  plain = step.apply_train

  def poisoned(task, params, model_state, images, number, capture=False):
    # From the ninth step on (the third of the second epoch) the first layer's bias is infinite.
    bias = params['Dense_0']['bias'] + jax.numpy.where(number >= 8, np.float32(np.inf), 0)
    params = {**params, 'Dense_0': {**params['Dense_0'], 'bias': bias}}
    return plain(task, params, model_state, images, number, capture)

  monkeypatch.setattr(step, 'apply_train', poisoned)
  config.model_options.activation = 'relu'
  with pytest.raises(DivergedError) as error:
    run(config, tmp_path / 'run', progress=False)
  assert 'epoch 2, step 3 of 6 (step 9 in all' in str(error.value)
  assert 'the output of Dense_0' in str(error.value)
  assert '--config.rule_options.scale (it is its default)' in str(error.value)
  assert [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['1']
  assert [record['epoch'] for record in _records(tmp_path / 'run')] == [1]


def test_a_run_without_validation_examples(config, tmp_path):
  config.validation = 0
  results = run(config, tmp_path / 'run', progress=False)
  assert results.validation_accuracy is None and 0 <= results.test_accuracy <= 1


def test_a_validation_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch):
  monkeypatch.setattr(Trainer, 'validate', lambda self, state: Average(float('inf'), 0.1))
  plain, epochs = Trainer.epoch, []
  monkeypatch.setattr(Trainer, 'epoch', lambda self, state, number, *rest: (
      epochs.append(number) or plain(self, state, number, *rest)))
  with pytest.raises(DivergedError, match='validation loss is inf'):
    run(config, tmp_path / 'run', progress=False)
  assert epochs == [1]
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_run_on_fewer_examples_sees_exactly_these(config, tmp_path):
  """As if there were no others; the run's seed chooses them, and no example is held out anew."""
  config.update(examples=200, batch_size=50, epochs=1, seed=3)
  few = data.choose(data.load('digits', validation=100), 200, seed=3)
  trainer = Trainer(config)
  assert trainer.steps == 4
  results = run(config, tmp_path / 'run', progress=False)
  config.examples = None
  alone = Trainer(config, data=few)
  state, train = alone.epoch(alone.init(), 1)
  _same_bits(results.state, state)
  assert results.train_loss == train.loss
  assert results.validation_accuracy == alone.validate(state).accuracy
  assert Trainer(config).steps == 1337 // 50


def test_fewer_examples_are_chosen_from_the_data_that_are_given(config):
  """And the loaded are no part of it."""
  config.update(examples=60, batch_size=20, validation=100)
  given = data.choose(data.load('digits', validation=100), 80, seed=1)
  assert Trainer(config, data=given).steps == 3
  config.examples = 81
  with pytest.raises(DataError, match='81 examples.*1 to 80'):
    Trainer(config, data=given)
