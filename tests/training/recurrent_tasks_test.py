"""configs/*_rnn.py: tasks with targets, and with labels that do not count, up to the numbers."""
import json
import pathlib
import runpy

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop import data
from bioprop.bench import plots
from bioprop.bench.report import runs, tables
from bioprop.bench.sweep import plan, table
from bioprop.errors import ConfigError, WorkdirError
from bioprop.training import loss, probing, run, step
from bioprop.training.average import Average, average, spread
from bioprop.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures('as_users_run')
ROOT = pathlib.Path(__file__).resolve().parents[2]
# Slow: those that other tests here train.
CONFIGS = ('copy', 'mnist_rows', 'sine', *(pytest.param(name, marks=pytest.mark.slow) for name in (
    'cue_accumulation', 'delayed_match', 'flip_flop', 'linear_teacher')))


@pytest.fixture
def as_users_run():
  """JAX's own promotion of dtypes, which optax's Adam needs."""
  with jax.numpy_dtype_promotion('standard'):
    yield


def load(name, rule='bp'):
  """The configuration, narrow, for two short epochs; rows are of images that are embedded."""
  config = runpy.run_path(str(ROOT / 'configs' / f'{name}_rnn.py'))['get_config']()
  config.model_options.width = 6
  config.rule, config.epochs, config.examples, config.checkpoint_every = rule, 2, 100, 1
  config.batch_size = min(config.batch_size, 50)
  if name == 'mnist_rows':
    config.dataset, config.validation = 'digits_rows', 100
  return config


def outputs(params, x, tau=None):
  """The network in numpy, [n, T, outputs]; linear without tau, else leaky tanh units."""
  flat = {path[-2:]: np.asarray(w, np.float64)
          for path, w in flax.traverse_util.flatten_dict(params).items()}
  add = lambda name: flat.get((name, 'bias'), 0)
  state, found = np.zeros((len(x), len(flat['recurrent', 'kernel']))), []
  for t in range(x.shape[1]):
    u = x[:, t] @ flat['input', 'kernel'] + add('input') + state @ flat['recurrent', 'kernel']
    state = (1 - 1 / tau) * state + np.tanh(u) / tau if tau else u
    found.append(state @ flat['Dense_0', 'kernel'] + add('Dense_0'))
  return np.stack(found, 1)


def lines(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_a_configuration_trains(name):
  """One epoch of it, by a rule other than bp, at its own width."""
  config = load(name, 'fa')
  config.model_options.width = None
  trainer = Trainer(config)
  state = trainer.init()
  before = trainer.test(state)
  state, train = trainer.epoch(state, 1)
  after = trainer.test(state)
  assert train.loss > 0 and np.isfinite([before.loss, after.loss]).all()
  if name in ('sine', 'flip_flop', 'linear_teacher'):
    assert config.loss == 'mse' and after.accuracy is None and after.r2 < 1 and after.mse > 0
  else:
    assert 0 <= after.accuracy <= 1 and after.r2 is None and after.mse is None


def test_the_numbers_of_targets_are_those_of_the_state(tmp_path):
  """Half squares, mean squares of one output, and the share of the variance; in every report."""
  results = run(load('linear_teacher'), tmp_path / 'run', progress=False)
  teacher = data.load('linear_teacher', validation=200)
  found = {}
  for split in ('validation', 'test'):
    x, y = (array.astype(np.float64) for array in getattr(teacher, split))
    error = outputs(results.state.params, x) - y
    found[split] = ((error**2).sum(-1).mean() / 2, (error**2).mean(),
                    1 - (error**2).sum() / ((y - y.mean((0, 1)))**2).sum())
  np.testing.assert_allclose(
      (results.test_loss, results.test_mse, results.test_r2), found['test'], rtol=1e-4)
  np.testing.assert_allclose(
      (results.validation_loss, results.validation_r2), found['validation'][::2], rtol=1e-4)
  assert results.test_accuracy is results.train_accuracy is results.validation_accuracy is None
  first, last, final = lines(tmp_path / 'run')
  assert final == {'test_loss': results.test_loss, 'test_mse': results.test_mse,
                   'test_r2': results.test_r2}
  assert set(last) == {
      'epoch', 'train_loss', 'train_mse', 'train_r2', 'validation_loss', 'validation_mse',
      'validation_r2', 'learning_rate', 'steps_per_second', 'seconds'}
  assert last['train_loss'] < first['train_loss'] and last['train_r2'] == results.train_r2
  heads, numbers = results.table().splitlines()
  assert 'accuracy' not in heads and 'test R^2' in heads and 'test MSE' in heads
  assert f'{results.test_r2:.4f}' in numbers and f'{results.test_mse:.3g}' in numbers
  again = run(load('linear_teacher'), tmp_path / 'run', progress=False)  # From the record.
  assert again.test_r2 == results.test_r2 and again.train_r2 == results.train_r2


@pytest.mark.slow
def test_only_responses_count(tmp_path):
  """Cross-entropy and accuracy of the five steps of each trial that ask, and no other."""
  config = load('delayed_match')
  results = run(config, tmp_path / 'run', progress=False)
  for split, got in (('test', (results.test_loss, results.test_accuracy)),
                     ('validation', (results.validation_loss, results.validation_accuracy))):
    x, labels = getattr(data.load('delayed_match', validation=200), split)
    logits = outputs(results.state.params, x.astype(np.float64), config.model_options.tau)
    total, right = [], []
    for trial, label in zip(logits, labels):
      for t in np.flatnonzero(label >= 0):
        total.append(np.log(np.exp(trial[t]).sum()) - trial[t, label[t]])
        right.append(trial[t].argmax() == label[t])
    assert len(right) == 5 * len(labels)
    assert got[0] == pytest.approx(np.mean(total), rel=1e-4)
    assert got[1] == pytest.approx(np.mean(right), abs=1e-3)
  assert results.test_r2 is None and 'test accuracy' in results.table()


def test_training_sees_what_counts_and_nothing_else():
  """The mean over labels that count, of each batch; their number makes the epoch's accuracy."""
  config = load('cue_accumulation')
  config.learning_rate = 1e-9  # What is averaged over an epoch stands still.
  trainer = Trainer(config)
  state = trainer.init()
  order = np.asarray(step.batch_indices(trainer.task, 100, 1))
  x, labels = (np.asarray(array)[order.ravel()] for array in trainer.train_data)
  logits = outputs(state.params, x.astype(np.float64), config.model_options.tau)
  there = labels >= 0
  chosen = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
  wanted = (np.log(np.exp(logits).sum(-1)) - chosen)[there].mean()
  _, train = trainer.epoch(state, 1)
  assert there.sum() == 300 and train.loss == pytest.approx(wanted, rel=1e-4)
  assert train.accuracy == pytest.approx((logits.argmax(-1) == labels)[there].mean(), abs=4e-3)


@pytest.mark.parametrize('name', ['mse', 'mse_centred', 'cross_entropy'])
def test_a_label_that_does_not_count_has_no_loss_and_no_gradient(name):
  """The other losses are what they are without the mask."""
  logits = jnp.asarray(np.random.RandomState(0).randn(3, 4, 5), jnp.float32)
  labels = jnp.asarray([[0, 1, -1, 4], [-1, -1, 2, 3], [-1, -1, -1, -1]])
  masked = loss.make_loss(name, masked=True)
  losses, plain = masked(logits, labels), loss.make_loss(name)(logits, jnp.maximum(labels, 0))
  np.testing.assert_array_equal(losses, np.where(labels < 0, 0, plain))
  gradient = jax.grad(lambda logits: masked(logits, labels).sum())(logits)
  np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, labels >= 0)


def test_a_target_that_is_not_asked_for_has_no_loss_and_no_gradient():
  """Half squares of the others; NaN reaches nothing."""
  out = np.random.RandomState(0).randn(2, 3, 2).astype(np.float32)
  targets = np.random.RandomState(1).randn(2, 3, 2).astype(np.float32)
  targets[0, 1] = targets[1] = np.nan
  of = loss.make_loss('mse', targets=True)
  there = np.array([[True, False, True], [False] * 3])
  np.testing.assert_array_equal(loss.counted(targets), there)
  np.testing.assert_allclose(
      of(jnp.asarray(out), jnp.asarray(targets)),
      np.where(there, np.nan_to_num((out - targets)**2).sum(-1) / 2, 0), rtol=1e-6)
  gradient = jax.grad(lambda out: of(out, jnp.asarray(targets)).sum())(jnp.asarray(out))
  np.testing.assert_allclose(
      gradient, np.where(there[..., None], np.nan_to_num(out - targets), 0), rtol=1e-6)
  assert loss.make_decision(targets=True) is None


def test_what_is_reported_of_targets():
  """Of what counts; targets that are all equal have no variance to explain."""
  targets = np.array([[[1, 2], [3, 6]], [[np.nan, np.nan], [5, 10]]], np.float32)
  found = spread(targets)
  assert found.outputs == 2 and found.variance == pytest.approx(8 / 3 + 32 / 3)
  got = average(2.0, 0, 3, found)
  assert got == Average(2.0, None, 2.0, pytest.approx(1 - 4 / (40 / 3)))
  assert got.named('test') == {'test_loss': 2.0, 'test_mse': 2.0, 'test_r2': got.r2}
  assert average(1.0, 0, 3, spread(np.ones((3, 1), np.float32))).r2 == 0
  assert average(1.0, 3, 4, spread(np.ones((3, 1), np.int32))) == Average(1.0, 0.75)


def test_batches_are_filled_with_what_does_not_count():
  """Whole numbers with -1, targets with NaN."""
  x = np.zeros((3, 2, 1), np.float32)
  assert step.in_batches(x, np.zeros((3, 2), np.int32), 2).labels[1, 1].tolist() == [-1, -1]
  labels = step.in_batches(x, np.zeros((3, 2, 1), np.float32), 2).labels
  assert np.isnan(labels[1, 1]).all() and not np.isnan(labels[1, 0]).any()


@pytest.mark.parametrize('name, values, words', [
    ('sine', {'loss': 'cross_entropy'}, "'cross_entropy'.*quantities.*--config.loss=mse"),
    ('flip_flop', {'model': 'transformer'}, 'quantities to predict.*--config.model=rnn'),
    ('copy', {'model': 'transformer'}, 'reads tokens, and copy gives 9 numbers.*model=rnn'),
    ('mnist_rows', {'augment': 'shift_flip'}, 'digits_rows are sequences.*augment=none'),
    ('sine', {'batch_size': 101}, 'only 100 training examples')])
def test_what_does_not_fit_is_refused(name, values, words):
  """Before anything is trained."""
  config = load(name)
  config.update(values)
  with pytest.raises(ConfigError if 'batch_size' not in values else Exception, match=words):
    Trainer(config)


@pytest.mark.parametrize('name', ['copy', 'cue_accumulation', 'delayed_match', 'flip_flop',
                                  'mnist_rows', 'sine'])
def test_another_cell_stands_after_the_colon(name):
  """Without what is another's: the model can be built."""
  config = load(name)
  file = ROOT / 'configs' / f'{name}_rnn.py'
  config.model_options = runpy.run_path(str(file))['get_config']('gru').model_options
  config.model_options.width = 6
  shapes = jax.eval_shape(Trainer(config).init).params
  assert 'GRUCell' in str(list(shapes))


@pytest.mark.parametrize('name, options, words', [
    ('copy', {'cell': 'grue'}, "ValueError: there is no cell 'grue'. Valid: simple, leaky"),
    ('copy', {'tau': 3.0}, "the cell 'simple' has no tau"),
    ('flip_flop', {'tau': 0.0}, 'tau=0.0 must be at least 1')])
def test_cells_that_cannot_be_are_refused(name, options, words):
  config = load(name)
  config.model_options.update(options)
  with pytest.raises(ConfigError, match=words):
    Trainer(config).init()


@pytest.mark.parametrize('name', ['flip_flop', 'copy'])
def test_a_model_of_one_answer_is_refused(name):
  """It is told which model has one for each step."""
  config = load(name)
  config.model, config.model_options = 'mlp', {'hidden': (4,)}
  steps = {'flip_flop': 50, 'copy': 20}[name]
  with pytest.raises(ConfigError, match=rf'labels \[{steps}\].*--config.model=rnn'):
    Trainer(config).init()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['linear_teacher', 'delayed_match'])
def test_probes_measure(name):
  """Kernels and angles where labels are targets, and where some do not count."""
  config = load(name)
  config.probes = {kind: dict(type=kind, every=10, batch=4) for kind in ('entk', 'angles')}
  trainer = Trainer(config)
  state, _ = trainer.epoch(trainer.init(), 1)
  found = {one.name: one for one in probing.measure(trainer.probes, state, None)}
  assert set(found) == {'entk', 'angles'}
  assert all(np.isfinite(list(one.scalars.values())).all() for one in found.values())


@pytest.mark.slow
def test_runs_side_by_side(tmp_path, monkeypatch):
  """Tables and curves say R^2 where there is no accuracy, and what to type where it was asked."""
  config = load('flip_flop')
  config.epochs = 1
  results = run(config, tmp_path / 'targets', progress=False)
  one = plan.Run('flip', 'bp', tmp_path / 'targets', config)
  for metric in ('test_r2', 'test_mse'):  # R^2 of one epoch may be below zero, with a minus sign.
    told = f'{getattr(results, metric):.4g}'.replace('-', '−')
    assert f' {told} ' in table.table([one], metric)
  for metric in ('test_accuracy', 'test_error'):
    with pytest.raises(WorkdirError, match=f'has no {metric}.*numbers.*--metric=test_r2'):
      table.table([one], metric)
  head, row = tables.runs('', runs.find([tmp_path]).runs).rows
  assert head[-1] == 'test r2' and row[-2:] == [tables.NOTHING, f'{results.test_r2:.4f}']
  figures = []
  monkeypatch.setattr(plots, 'save', lambda figure, path: figures.append(figure))
  plots.curves(tmp_path / 'targets', tmp_path / 'curves.png')
  assert [axes.get_ylabel() for axes in figures[0].axes] == ['loss', '$R^2$']
  assert len(figures[0].axes[1].lines) == 3  # Train, validation and test.
