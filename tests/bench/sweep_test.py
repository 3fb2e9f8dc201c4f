"""Sweeps: the table is what the runs' own records say, and nothing is trained twice."""
import concurrent.futures
import json
import os
import sys
import time

import jax
import numpy as np
import pytest

from bioprop.bench import statistics
from bioprop.bench.sweep import __main__ as program
from bioprop.bench.sweep import plan, saved, table, work
from bioprop.errors import (
  ConfigError,
  DivergedError,
  RuleOptionError,
  UnknownRuleError,
  WorkdirError,
)
from bioprop.training import loop
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


def _mean_and_deviation(values):
  return str(statistics.Summary(np.mean(values), np.std(values, ddof=1), len(values)))


def _records(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def _files(root):
  """What runs have left there, byte for byte."""
  return {path: path.read_bytes() for path in root.rglob('*')
          if path.is_file() and path.name not in ('sweep.json', 'table.md', '.sweep.lock')}


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

  def run_held(trainers, directories, board, limit_gib):
    return [leave(trainer.config, path) for trainer, path in zip(trainers, directories)]

  def leave(one, path):
    if test[one.seed] is None:
      return DivergedError('the loss is nan')
    record = {'test_loss': test[one.seed], 'test_accuracy': test[one.seed]}
    epoch = {'epoch': 1, 'train_loss': 1.0, 'train_accuracy': 0.5, 'seconds': 1.0}
    (path / 'metrics.jsonl').write_text(f'{json.dumps(epoch)}\n{json.dumps(record)}\n')

  return run_held


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
  runs = plan.plan(folder / 'runs', [file, f'{file}:2'], RULES, SEEDS)
  work.train(runs, None)
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
      want[-1].append(_mean_and_deviation(values))
  assert _cells(table.table(runs, metric)) == want and len(seen) > 4
  if metric == 'test_accuracy':
    assert table.table(runs) == table.table(runs, metric)


def test_the_same_sweep_again_trains_nothing(finished, monkeypatch):
  """And leaves every file as it is."""
  folder, runs = finished
  before = _files(folder / 'runs')
  monkeypatch.setattr(loop, 'run_held', _never)
  work.train(runs, None)
  assert _files(folder / 'runs') == before


def test_what_is_done_is_done_wherever_it_would_compute(tmp_path, monkeypatch):
  """Devices are not what a run is: it is not taken again and again."""
  monkeypatch.setattr(loop, 'run_held', _recorded([0.5]))
  file = _config(tmp_path)
  work.train(plan.plan(tmp_path / 'runs', [file], ['bp'], [0]), None)
  (one,) = plan.plan(tmp_path / 'runs', [file], ['bp'], [0])
  one.config.mesh = 'data=1'
  monkeypatch.setattr(loop, 'run_held', _never)
  assert table.is_done(one) and work.train([one], None) == {}


def test_processes_that_end_together_write_one_table(tmp_path, monkeypatch):
  """They share the new file's name: who comes second waits."""
  runs = plan.plan(tmp_path, [_config(tmp_path)], ['bp'], [0])
  sync = os.fsync
  monkeypatch.setattr(os, 'fsync', lambda file: time.sleep(.1) or sync(file))
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    paths = list(pool.map(lambda _: table.write(tmp_path, runs, 'test_accuracy'), range(3)))
  assert 'not run' in paths[0].read_text() and not list(tmp_path.glob('*.new'))


def test_more_seeds_train_only_those(finished, monkeypatch):
  """The rows of before and the new seed; a column of a configuration that was not begun."""
  folder, runs = finished
  trained = []
  leave = _recorded([None, None, 0.5])

  def run_held(trainers, paths, *rest):
    trained.extend(path.name for path in paths)
    return leave(trainers, paths, *rest)

  monkeypatch.setattr(loop, 'run_held', run_held)
  file = str(folder / 'small.py')
  more = plan.plan(folder / 'runs', [file, f'{file}:3'], ['bp'], [0, 1, 2])
  work.train([one for one in more if one.column == 'small'], None)
  assert trained == ['bp-seed2']
  (row,) = _cells(table.table(more))[1:]
  two = [100 * _records(one.path)[-1]['test_accuracy'] for one in runs
         if (one.column, one.rule) == ('small', 'bp')]
  values = [*two, 50.]
  assert row[1:] == [_mean_and_deviation(values), 'not run']


@pytest.mark.slow
def test_from_the_command_line(finished, python):
  """The same table, and commas between brackets do not part rules."""
  folder, runs = finished
  before = _files(folder / 'runs')
  done = python(folder / 'runs', folder / 'small.py', f'{folder / "small.py"}:2',
                f'--rules={",".join(RULES)}', '--seeds=0,1', '--metric=test_error',
                module='bioprop.bench.sweep')
  assert done.returncode == 0, done.stderr
  assert table.table(runs, 'test_error') in done.stdout
  assert 'Test error in %. Mean ± standard deviation over 2 seeds.' in done.stdout
  assert (folder / 'runs' / 'table.md').read_text() in done.stdout
  assert _files(folder / 'runs') == before


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch, capsys):
  """The run that was done stays as it is, and the other begins after its last checkpoint."""
  runs = plan.plan(tmp_path / 'runs', [_config(tmp_path, epochs=2)], ['bp', 'fa'], [0])
  plain, epochs = Trainer.epoch, []

  def counted(self, state, number, *args):
    epochs.append(number)
    if len(epochs) == 4:
      raise KeyboardInterrupt
    return plain(self, state, number, *args)

  monkeypatch.setattr(Trainer, 'epoch', counted)
  with pytest.raises(KeyboardInterrupt):
    work.train(runs, None)
  assert epochs == [1, 2, 1, 2]
  before = _files(runs[0].path)
  (bp, fa) = _cells(table.table(runs))[1:]
  assert bp[1] == f'{100 * _records(runs[0].path)[-1]["test_accuracy"]:.4g}'  # Of one, no ±.
  assert fa[1] == 'not run'
  capsys.readouterr()
  work.train(runs, None)
  assert epochs == [1, 2, 1, 2, 2] and _files(runs[0].path) == before
  assert capsys.readouterr().out.splitlines() == ['training small fa seed 0']
  assert [record.get('epoch') for record in _records(runs[1].path)] == [1, 2, None]
  assert _cells(table.table(runs))[2][1] == (
      f'{100 * _records(runs[1].path)[-1]["test_accuracy"]:.4g}')


def test_a_run_that_diverges_is_counted_and_not_trained_again(tmp_path, monkeypatch, capsys):
  """What training said is printed, and kept beside it."""
  runs = plan.plan(tmp_path / 'runs', [_config(tmp_path, rate=1e30), _config(tmp_path, 'b.py')],
                    ['bp'], [0])
  work.train(runs[:1], None)
  assert 'epoch 1, step' in (runs[0].path / 'diverged.txt').read_text()
  capsys.readouterr()
  assert not list(runs[0].path.glob('metrics.jsonl'))
  monkeypatch.setattr(loop, 'run_held', _recorded([0.5]))
  work.train(runs, None)
  assert capsys.readouterr().out.splitlines() == ['training b bp seed 0']
  assert _cells(table.table(runs))[1] == ['bp', '1 diverged', '50']


def test_runs_that_diverged_are_counted_beside_the_mean_of_the_others(tmp_path, monkeypatch):
  """Of five seeds two."""
  test = [0.5, None, 0.625, None, 0.25]
  runs = plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp'], range(5))
  monkeypatch.setattr(loop, 'run_held', _recorded(test))
  work.train(runs, None)
  values = [50, 62.5, 25]
  mean = _mean_and_deviation(values)
  assert _cells(table.table(runs))[1] == ['bp', f'{mean}, 2 diverged']
  assert mean == '46 ± 19'


def test_a_directory_with_another_configuration_is_left_as_it_is(tmp_path, monkeypatch):
  """Whether its run is finished or diverged."""
  monkeypatch.setattr(loop, 'run_held', _recorded([0.5, None]))
  file = _config(tmp_path)
  work.train(plan.plan(tmp_path / 'runs', [file], ['bp'], [0, 1]), None)
  monkeypatch.undo()
  _config(tmp_path, rate=0.2)
  before = _files(tmp_path / 'runs')
  for one in plan.plan(tmp_path / 'runs', [file], ['bp'], [0, 1]):
    with pytest.raises(WorkdirError, match='learning_rate is 0.1 there and 0.2 here'):
      work.train([one], None)
  assert _files(tmp_path / 'runs') == before


def test_the_folder_of_the_data_is_handed_on(tmp_path, monkeypatch):
  """To every run."""
  seen = []

  def make(config, data_dir, like=None):
    seen.append(data_dir)
    return Trainer(config, like=like)

  monkeypatch.setattr(work, 'Trainer', make)
  monkeypatch.setattr(loop, 'run_held', _recorded([0.5]))
  work.train(plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', 'fa'], [0]), 'there')
  assert seen == ['there', 'there']


@pytest.mark.parametrize('rule, want', [
    ('bp', ('bp', {})),
    ('fa(rho=0.5,scale=1)', ('fa', {'rho': 0.5, 'scale': 1})),
    ('fa( rho = -2e-3 )', ('fa', {'rho': -0.002})),
    ('align_ada()', ('align_ada', {})),
    ('dfa(spatial=shared,max_gib=None)', ('dfa', {'spatial': 'shared', 'max_gib': None}))])
def test_a_rule_and_its_options(rule, want):
  """Numbers are numbers, and words need no quotes."""
  assert plan.parse_rule(rule) == want


@pytest.mark.parametrize('rule', [
    '', 'fa(', 'fa)', 'fa(rho)', 'fa(rho=0.5', 'fa(rho=0.5)x', 'fa(rho=0.5=1)', 'fa dfa',
    'fa(rho=0.5,)', '(rho=0.5)'])
def test_what_is_no_rule(tmp_path, rule):
  """It is shown as it was typed, with how one is."""
  with pytest.raises(ConfigError) as caught:
    plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', rule], [0])
  assert f'--rules has {rule!r}' in str(caught.value)
  assert "'fa(rho=0.5,scale=1)'" in str(caught.value)
  assert not (tmp_path / 'runs').exists()


def test_what_no_run_can_be_is_told_before_anything_is_written(tmp_path):
  """And not once for each seed."""
  with pytest.raises(ConfigError, match='config.epochs is 0'):
    plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp'], [0, 1], {'epochs': [1, 0]})
  with pytest.raises(ConfigError, match='experiment of theory.*bioprop theory'):
    plan.plan(tmp_path / 'runs', [_config(tmp_path), 'theory_relu'], ['bp'], [0])
  with pytest.raises(ConfigError, match=r"model_options.hidden cannot be 3.*such as \(\d+,\)"):
    plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp'], [0], {'model_options.hidden': [3]})


@pytest.mark.parametrize('where', ['file', 'file/runs', '/proc/runs'])
def test_a_directory_that_cannot_be_written(tmp_path, where):
  (tmp_path / 'file').write_text('x')
  runs = plan.plan(tmp_path / where, [_config(tmp_path)], ['bp'], [0])
  with pytest.raises(WorkdirError, match=f'{tmp_path / where}.*bioprop sweep RUNS'):
    saved.write(tmp_path / where, runs, 'test_accuracy')


@pytest.mark.slow
def test_the_directory_of_the_runs_was_forgotten(python):
  done = python('mnist_mlp', '--rules=bp', module='bioprop.bench.sweep')
  assert done.returncode == 1 and 'bioprop sweep runs/mnist_mlp mnist_mlp ' in done.stderr


def test_seeds_that_fail_alike_are_told_once(tmp_path, python):
  """rflo is no rule of a network without time."""
  done = python(tmp_path / 'runs', _config(tmp_path), '--rules=rflo', '--seeds=0,1',
                module='bioprop.bench.sweep')
  assert done.returncode == 1 and done.stdout.count(' failed: ') == 1
  one, other = (f'{tmp_path}/runs/small/rflo-seed{seed}' for seed in (0, 1))
  assert f'{one}, {other} failed: ' in done.stdout


def test_an_option_that_no_rule_has(tmp_path):
  """With those that there are; one of another rule is an error of the run."""
  file = _config(tmp_path)
  with pytest.raises(ConfigError, match=(
      r"'fa\(roh=0.5\)'.*option 'roh'. Did you mean 'rho'. Valid:.* rho")):
    plan.plan(tmp_path / 'runs', [file], ['fa(roh=0.5)'], [0])
  with pytest.raises(RuleOptionError, match="'bp'.*'rho'"):
    work.train(plan.plan(tmp_path / 'runs', [file], ['bp(rho=0.5)'], [0]), None)
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
    plan.plan(tmp_path / 'runs', [str(tmp_path / name)], ['bp'], [0])


def test_a_command_with_nothing_to_compare(monkeypatch):
  """One paragraph, with one to type."""
  monkeypatch.setattr(sys, 'argv', ['sweep'])
  for argv in (['sweep'], ['sweep', 'runs']):
    with pytest.raises(SystemExit, match='nothing to compare.*bioprop sweep'):
      program.main(argv)


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
    plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', rule], [0])


def test_nothing_is_counted_twice(tmp_path):
  """What is named twice runs once; two runs in one directory are refused."""
  config = _config(tmp_path)
  assert len(plan.plan(tmp_path, [config, config], ['bp', 'fa', 'bp'], [0, 0, 1])) == 4
  (tmp_path / 'other').mkdir()
  with pytest.raises(ConfigError, match='both be written'):
    plan.plan(tmp_path, [config, _config(tmp_path / 'other')], ['bp'], [0])
  paths = {one.path for one in plan.plan(tmp_path, [config], ['fa(scale=1e+3)', 'fa(scale=1e-3)'],
                                          [0])}
  assert len(paths) == 2


def test_fields_are_crossed_and_the_best_is_chosen_by_validation(tmp_path, monkeypatch):
  """Widths that are run all; rates, of which the table has the one that validates best."""
  scores = {(0.1, 8): (.5, .9), (0.2, 8): (.6, .1), (0.1, 4): (.3, .2), (0.2, 4): (.2, .8)}

  def run_held(trainers, directories, board, limit_gib):
    for trainer, path in zip(trainers, directories):
      config = trainer.config
      validation, test = scores[config.learning_rate, config.model_options.hidden[0]]
      epoch = {'epoch': 1, 'train_loss': 1.0, 'train_accuracy': 0.5, 'seconds': 1.0,
               'validation_accuracy': validation + .01 * config.seed}
      final = {'test_loss': 1.0, 'test_accuracy': test}
      (path / 'metrics.jsonl').write_text(f'{json.dumps(epoch)}\n{json.dumps(final)}\n')
    return [None] * len(trainers)

  monkeypatch.setattr(loop, 'run_held', run_held)
  over = plan.parse_fields(['model_options.hidden:(8,),(4,)', 'validation:100'], 'over')
  assert over == {'model_options.hidden': [(8,), (4,)], 'validation': [100]}
  tune = plan.parse_fields(['learning_rate:.1,.2', 'rule_options.rho:0,1'], 'tune')
  runs = plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp', 'fa'], [0, 1], over, tune)
  assert len(runs) == 8 + 16  # bp has no rho.
  runs = [one for one in runs if one.rule == 'bp']
  work.train(runs, None)
  rows = _cells(table.table(runs))
  assert rows == [['rule', 'small hidden=(8,) validation=100', 'small hidden=(4,) validation=100'],
                  ['bp', '10.00 ± 0.00 (learning_rate 0.2)', '20.00 ± 0.00 (learning_rate 0.1)']]
  assert 'learning_rate: chosen by the validation split' in table.caption(runs, 'test_accuracy')
  saved.write(tmp_path / 'runs', runs, 'test_accuracy')
  saved.write(tmp_path / 'runs', runs[:1], 'test_accuracy')
  assert len(saved.read(tmp_path / 'runs')['runs']) == 8
  with pytest.raises(ConfigError, match='chooses by the validation split.*--over=validation'):
    plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp'], [0], tune=tune)


@pytest.mark.parametrize('over, words', [
    (['learning_rat:.1'], "no field 'learning_rat'.*mean 'learning_rate'"),
    (['learning_rate:fast'], "learning_rate cannot be 'fast'"),
    (['learning_rate:{1}'], "learning_rate cannot be '.1.'"),
    (['model_options.hidden:{"a":8}'], "hidden cannot be"),
    (['learning_rate'], '--over is .learning_rate., and must be'),
    (['epochs:1', 'epochs:2'], 'each field once'),
    (['seed:1,2'], '--seeds=0,1,2'),
    (['model_options.hiden:(8,)'], "'hidden' in place of 'hiden'")])
def test_fields_that_are_none(tmp_path, over, words):
  """Before anything is trained."""
  with pytest.raises(ConfigError, match=words):
    plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['bp'], [0],
              plan.parse_fields(over, 'over'))


def test_lists_are_tuples():
  """However they are typed, nested or twice."""
  found = plan.parse_fields(['model_options.hidden:[8],(8,),[4,2]', 'step_epochs:[1,2]'], 'over')
  assert found == {'model_options.hidden': [(8,), (4, 2)], 'step_epochs': [(1, 2)]}


def test_a_run_that_cannot_be_made_is_told_and_stops_no_other(tmp_path, monkeypatch):
  """dfa's feedback is too large; bp is trained."""
  monkeypatch.setattr(loop, 'run_held', _recorded([0.5]))
  runs = plan.plan(tmp_path / 'runs', [_config(tmp_path)], ['dfa(max_gib=0.0)', 'bp'], [0])
  failed = work.train(runs, None)
  assert list(failed) == [runs[0].path] and 'max_gib' in failed[runs[0].path]
  assert _cells(table.table(runs))[1:] == [['dfa(max_gib=0.0)', 'not run'], ['bp', '50']]
  assert not runs[0].path.exists()


def test_a_run_that_cannot_be_made_stops_none_that_is_alike(tmp_path, monkeypatch):
  """A number alone may be too small: the first of the group could be made, the second cannot."""
  monkeypatch.setattr(loop, 'run_held', _recorded([0.5]))
  runs = plan.plan(tmp_path / 'runs', [_config(tmp_path)],
                   ['dfa(max_gib=1.0)', 'dfa(max_gib=0.0)', 'dfa(max_gib=2.0)'], [0])
  failed = work.train(runs, None)
  assert list(failed) == [runs[1].path] and not runs[1].path.exists()
  assert [table.is_done(one) for one in runs] == [True, False, True]


def test_a_home_directory_that_the_shell_did_not_write_out(tmp_path, monkeypatch):
  """As in quotes, or from Python."""
  monkeypatch.setenv('HOME', str(tmp_path))
  one, = plan.plan('~/runs', [_config(tmp_path)], ['bp'], [0])
  assert one.path == tmp_path / 'runs' / 'small' / 'bp-seed0'
  saved.write('~/runs', [one], 'test_accuracy')
  assert [run['path'] for run in saved.read('~/runs')['runs']] == ['small/bp-seed0']
