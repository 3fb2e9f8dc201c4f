"""Sweeps: the table is what the runs' own records say, and nothing is trained twice."""
import json
import sys

import jax
import numpy as np
import pytest

from bioprop.bench import sweep
from bioprop.errors import (
  ConfigError,
  DivergedError,
  RuleOptionError,
  UnknownRuleError,
  WorkdirError,
)
from bioprop.training import workdir
from bioprop.training.trainer import Trainer

CONFIG = '''
from bioprop.training import base


def get_config(epochs='EPOCHS'):
  config = base()
  config.model_options.hidden = (8,)
  config.validation = 0
  config.epochs = int(epochs)
  config.batch_size = 200
  config.loss = 'mse'
  config.learning_rate = RATE
  config.momentum = 0.0
  config.schedule = 'constant'
  return config
'''
RULES, SEEDS = ['bp', 'fa(rho=0.5,scale=1)'], [0, 1]


def _config(folder, name='small.py', epochs=1, rate=0.1):
  """The path of a configuration's file: digits, a small MLP, epochs of seven steps."""
  text = CONFIG.replace('EPOCHS', str(epochs)).replace('RATE', str(rate))
  (folder / name).write_text(text)
  return str(folder / name)


def _records(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def _files(root):
  """What lies there, byte for byte."""
  return {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}


def _cells(table):
  """The cells of a Markdown table of equally long lines, less the line below its head."""
  lines = table.splitlines()
  assert len({len(line) for line in lines}) == 1
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  assert all(set(cell) <= set('-:') for cell in rows[1])
  return [rows[0], *rows[2:]]


def _never(*args):
  raise AssertionError('a run was trained that was there')


def _recorded(test):
  """What training leaves behind, without training: test results by seed, None of a divergence."""

  def run(one, path, data_dir):
    with workdir.opened(path, one):
      if test[one.seed] is None:
        raise DivergedError('the loss is nan')
      record = {'test_loss': test[one.seed], 'test_accuracy': test[one.seed]}
      epoch = {'epoch': 1, 'train_loss': 1.0, 'train_accuracy': 0.5, 'seconds': 1.0}
      (path / 'metrics.jsonl').write_text(f'{json.dumps(epoch)}\n{json.dumps(record)}\n')

  return run


@pytest.fixture(scope='module', autouse=True)
def _quick():
  """What runs share is compiled once."""
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'clear_caches', lambda: None)
    yield
  jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Two rules, two seeds, and a file with and without an argument; the root and the plan."""
  folder = tmp_path_factory.mktemp('sweep')
  file = _config(folder)
  runs = sweep.plan(folder / 'runs', [file, f'{file}:2'], RULES, SEEDS)
  sweep.train(runs, None)
  return folder, runs


def test_each_run_is_where_and_what_was_asked(finished):
  """A directory for each, with the configuration that the file, the rule and the seed make."""
  folder, runs = finished
  found = {}
  for path in (folder / 'runs').glob('*/*'):
    config = json.loads((path / 'config.json').read_text())
    options = {name: value for name, value in config['rule_options'].items() if value is not None}
    found[str(path.relative_to(folder / 'runs'))] = (
        config['epochs'], config['rule'], options, config['seed'])
    assert len(_records(path)) == config['epochs'] + 1
  assert found == {
      f'{column}/{label}-seed{seed}': (epochs, rule, options, seed)
      for column, epochs in (('small', 1), ('small-2', 2)) for seed in SEEDS
      for label, rule, options in (('bp', 'bp', {}), ('fa-rho=0.5-scale=1', 'fa',
                                                     {'rho': 0.5, 'scale': 1.0}))}
  assert [one.config.seed for one in runs] == [0] * 4 + [1] * 4  # A part is a table already.


@pytest.mark.parametrize('metric, number', [
    ('test_accuracy', lambda last: 100 * last['test_accuracy']),
    ('test_error', lambda last: 100 - 100 * last['test_accuracy']),
    ('test_loss', lambda last: last['test_loss'])])
def test_mean_and_standard_deviation_are_those_of_the_records(finished, metric, number):
  """By numpy, with n - 1."""
  folder, runs = finished
  want, seen = [['rule', 'small', 'small-2']], set()
  for rule, label in zip(RULES, ('bp', 'fa-rho=0.5-scale=1')):
    want.append([rule])
    for column in want[0][1:]:
      values = [number(_records(folder / 'runs' / column / f'{label}-seed{seed}')[-1])
                for seed in SEEDS]
      seen.update(values)
      want[-1].append(f'{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}')
  assert _cells(sweep.table(runs, metric)) == want and len(seen) > 4
  if metric == 'test_accuracy':
    assert sweep.table(runs) == sweep.table(runs, metric)


def test_the_same_sweep_again_trains_nothing(finished, monkeypatch):
  """And leaves every file as it is."""
  folder, runs = finished
  before = _files(folder / 'runs')
  monkeypatch.setattr(sweep, 'run', _never)
  sweep.train(runs, None)
  assert _files(folder / 'runs') == before


def test_more_seeds_train_only_those(finished, monkeypatch):
  """The rows of before and the new seed; a column of a configuration that was not begun."""
  folder, runs = finished
  trained = []
  monkeypatch.setattr(sweep, 'run', lambda config, path, data_dir: trained.append(path.name))
  file = str(folder / 'small.py')
  more = sweep.plan(folder / 'runs', [file, f'{file}:3'], ['bp'], [0, 1, 2])
  sweep.train([one for one in more if one.column == 'small'], None)
  assert trained == ['bp-seed2']
  (row,) = _cells(sweep.table(more))[1:]
  assert row[1:] == [_cells(sweep.table(runs))[1][1], 'not run']


def test_from_the_command_line(finished, python):
  """The same table, and commas between brackets do not part rules."""
  folder, runs = finished
  before = _files(folder / 'runs')
  done = python(folder / 'runs', folder / 'small.py', f'{folder / "small.py"}:2',
                f'--rules={",".join(RULES)}', '--seeds=0,1', '--metric=test_error',
                module='bioprop.bench.sweep')
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == sweep.table(runs, 'test_error')
  assert _files(folder / 'runs') == before


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch, capsys):
  """The run that was done stays as it is, and the other begins after its last checkpoint."""
  runs = sweep.plan(tmp_path / 'runs', [_config(tmp_path, epochs=2)], ['bp', 'fa'], [0])
  plain, epochs = Trainer.epoch, []

  def counted(self, state, number, *args):
    epochs.append(number)
    if len(epochs) == 4:
      raise KeyboardInterrupt
    return plain(self, state, number, *args)

  monkeypatch.setattr(Trainer, 'epoch', counted)
  with pytest.raises(KeyboardInterrupt):
    sweep.train(runs, None)
  assert epochs == [1, 2, 1, 2]
  before = _files(runs[0].path)
  (bp, fa) = _cells(sweep.table(runs))[1:]
  assert bp[1] == f'{100 * _records(runs[0].path)[-1]["test_accuracy"]:.4g}'  # Of one, no ±.
  assert fa[1] == 'not run'
  capsys.readouterr()
  sweep.train(runs, None)
  assert epochs == [1, 2, 1, 2, 2] and _files(runs[0].path) == before
  assert capsys.readouterr().out.splitlines() == ['small fa seed 0']
  assert [record.get('epoch') for record in _records(runs[1].path)] == [1, 2, None]
  assert _cells(sweep.table(runs))[2][1] == (
      f'{100 * _records(runs[1].path)[-1]["test_accuracy"]:.4g}')


def test_a_run_that_diverges_is_counted_and_not_trained_again(tmp_path, monkeypatch, capsys):
  """What training said is printed, and kept beside it."""
  runs = sweep.plan(tmp_path / 'runs', [_config(tmp_path, rate=1e30), _config(tmp_path, 'b.py')],
                    ['bp'], [0])
  sweep.train(runs[:1], None)
  said = next(line for line in capsys.readouterr().out.splitlines() if 'epoch 1, step' in line)
  assert any(said in path.read_text() for path in runs[0].path.glob('*.txt'))
  assert not list(runs[0].path.glob('metrics.jsonl'))
  monkeypatch.setattr(sweep, 'run', _recorded([0.5]))
  sweep.train(runs, None)
  assert capsys.readouterr().out.splitlines() == ['b bp seed 0']
  assert _cells(sweep.table(runs))[1] == ['bp', '1 diverged', '50']


def test_runs_that_diverged_are_counted_beside_the_mean_of_the_others(tmp_path, monkeypatch):
  """Of five seeds two."""
  test = [0.5, None, 0.625, None, 0.25]
  runs = sweep.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp'], range(5))
  monkeypatch.setattr(sweep, 'run', _recorded(test))
  sweep.train(runs, None)
  values = [50, 62.5, 25]
  mean = f'{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}'
  assert _cells(sweep.table(runs))[1] == ['bp', f'{mean}, 2 diverged']
  assert mean == '45.83 ± 19'


def test_a_directory_with_another_configuration_is_left_as_it_is(tmp_path, monkeypatch):
  """Whether its run is finished or diverged."""
  monkeypatch.setattr(sweep, 'run', _recorded([0.5, None]))
  file = _config(tmp_path)
  sweep.train(sweep.plan(tmp_path / 'runs', [file], ['bp'], [0, 1]), None)
  monkeypatch.undo()
  _config(tmp_path, rate=0.2)
  before = _files(tmp_path / 'runs')
  for one in sweep.plan(tmp_path / 'runs', [file], ['bp'], [0, 1]):
    with pytest.raises(WorkdirError, match='learning_rate is 0.1 there and 0.2 here'):
      sweep.train([one], None)
  assert _files(tmp_path / 'runs') == before


def test_the_folder_of_the_data_is_handed_on(tmp_path, monkeypatch):
  """To every run."""
  seen = []
  monkeypatch.setattr(sweep, 'run', lambda config, path, data_dir: seen.append(data_dir))
  sweep.train(sweep.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', 'fa'], [0]), 'there')
  assert seen == ['there', 'there']


@pytest.mark.parametrize('rule, want', [
    ('bp', ('bp', {})),
    ('fa(rho=0.5,scale=1)', ('fa', {'rho': 0.5, 'scale': 1})),
    ('fa( rho = -2e-3 )', ('fa', {'rho': -0.002})),
    ('align_ada()', ('align_ada', {})),
    ('dfa(spatial=shared,max_gib=None)', ('dfa', {'spatial': 'shared', 'max_gib': None}))])
def test_a_rule_and_its_options(rule, want):
  """Numbers are numbers, and words need no quotes."""
  assert sweep.parse(rule) == want


@pytest.mark.parametrize('rule', [
    '', 'fa(', 'fa)', 'fa(rho)', 'fa(rho=0.5', 'fa(rho=0.5)x', 'fa(rho=0.5=1)', 'fa dfa',
    'fa(rho=0.5,)', '(rho=0.5)'])
def test_what_is_no_rule(tmp_path, rule):
  """It is shown as it was typed, with how one is."""
  with pytest.raises(ConfigError) as caught:
    sweep.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', rule], [0])
  assert f'--rules has {rule!r}' in str(caught.value)
  assert "'fa(rho=0.5,scale=1)'" in str(caught.value)
  assert not (tmp_path / 'runs').exists()


def test_an_option_that_no_rule_has(tmp_path):
  """With those that there are; one of another rule is an error of the run."""
  file = _config(tmp_path)
  with pytest.raises(ConfigError, match=r"'fa\(roh=0.5\)'.*no option|option 'roh'.*Valid:.* rho"):
    sweep.plan(tmp_path / 'runs', [file], ['fa(roh=0.5)'], [0])
  with pytest.raises(RuleOptionError, match="'bp'.*'rho'"):
    sweep.train(sweep.plan(tmp_path / 'runs', [file], ['bp(rho=0.5)'], [0]), None)
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('name, words', [
    ('nope.py', 'there is no configuration .*nope.py'),
    ('nope.py:8', 'there is no configuration .*nope.py. '),
    ('small.py:many', 'small.py:many cannot be loaded: ValueError: .*many'),
    ('empty.py', "empty.py cannot be loaded: KeyError: 'get_config'"),
    ('text.py', 'text.py cannot be loaded: SyntaxError'),
    ('none.py:8', 'none.py:8 cannot be loaded: TypeError')])
def test_a_configuration_that_cannot_be_read(tmp_path, name, words):
  """Before anything is trained."""
  _config(tmp_path)
  (tmp_path / 'empty.py').write_text('')
  (tmp_path / 'text.py').write_text('a configuration')
  (tmp_path / 'none.py').write_text('def get_config():\n  return {}\n')
  with pytest.raises(ConfigError, match=words):
    sweep.plan(tmp_path / 'runs', [str(tmp_path / name)], ['bp'], [0])


def test_a_command_with_nothing_to_compare(monkeypatch):
  """One paragraph, with one to type."""
  monkeypatch.setattr(sys, 'argv', ['sweep'])
  for argv in (['sweep'], ['sweep', 'runs']):
    with pytest.raises(SystemExit, match='nothing to compare.*python -m bioprop.bench.sweep'):
      sweep.main(argv)


def test_seeds_that_are_no_numbers(python, tmp_path):
  """One paragraph, and no directory."""
  done = python(tmp_path / 'runs', _config(tmp_path), '--rules=bp', '--seeds=0,one',
                module='bioprop.bench.sweep')
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert '--seeds is 0,one' in done.stderr and '--seeds=0,1,2' in done.stderr
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('rule, error', [
    ('fa(rho=half)', ConfigError), ('fa(rho=[1])', ConfigError), ('daf', UnknownRuleError),
    ('bp(scale=1)', RuleOptionError), ('fa(rho=2)', RuleOptionError),
    ('fa(rho=0.1,rho=0.2)', ConfigError)])
def test_rules_that_cannot_be_are_told_before_anything_is_trained(tmp_path, rule, error):
  """Wrong values, unknown rules, options of other rules, one option twice."""
  with pytest.raises(error):
    sweep.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', rule], [0])


def test_nothing_is_counted_twice(tmp_path):
  """What is named twice runs once; two runs in one directory are refused."""
  config = _config(tmp_path)
  assert len(sweep.plan(tmp_path, [config, config], ['bp', 'fa', 'bp'], [0, 0, 1])) == 4
  (tmp_path / 'other').mkdir()
  with pytest.raises(ConfigError, match='both be written'):
    sweep.plan(tmp_path, [config, _config(tmp_path / 'other')], ['bp'], [0])
  paths = {one.path for one in sweep.plan(tmp_path, [config], ['fa(scale=1e+3)', 'fa(scale=1e-3)'],
                                          [0])}
  assert len(paths) == 2


@pytest.mark.filterwarnings('ignore:invalid value')
def test_losses_that_are_not_finite_are_shown():
  """A table is printed all the same."""
  assert sweep.summary([1.0, float('inf')]) == 'inf ± nan'
