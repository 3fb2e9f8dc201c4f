"""What `bioprop sweep` cannot do, or has not done, is told, and nothing is lost."""
import json
import types

import pytest
from absl import flags

from bioprop.bench.sweep import __main__ as program
from bioprop.bench.sweep import asked, plan, saved, table, work
from bioprop.errors import CheckpointError, ConfigError, DivergedError, WorkdirError
from bioprop.training import loop, workdir

CONFIG = '''
from bioprop.training import base


def get_config():
  config = base()
  config.model_options.hidden = (8,)
  config.epochs = 1
  config.validation = 100
  return config
'''
EPOCH = '{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0}\n'


@pytest.fixture
def file(tmp_path):
  """The path of a configuration's file: digits, a small MLP."""
  (tmp_path / 'small.py').write_text(CONFIG)
  return str(tmp_path / 'small.py')


@pytest.fixture
def leave():
  """leave(one, test) makes what training leaves of a run: None of a divergence."""

  def make(one, test):
    one.path.mkdir(parents=True)
    (one.path / 'config.json').write_text(json.dumps(workdir.as_json(one.config)))
    if test is None:
      (one.path / table.DIVERGED).write_text('the loss is nan')
      return
    last = json.dumps({'test_loss': test, 'test_accuracy': test})
    (one.path / 'metrics.jsonl').write_text(f'{EPOCH}{last}\n')

  return make


@pytest.mark.parametrize('rules, option, words', [
    (['bp', 'fa'], 'roh', "no field 'rule_options.roh'.* mean 'rho' in place of 'roh'"),
    (['bp'], 'rho', '--tune has rule_options.rho, which .* none of the rules bp'),
    (['fa(rho=0.5)'], 'rho', r'none of the rules fa.rho=0.5.:')])
def test_an_option_that_is_tuned_for_no_rule_is_told(file, tmp_path, rules, option, words):
  """Misspelt, of other rules, or given already; with a rule that takes it, it is tuned there."""
  tune = {f'rule_options.{option}': [.25, 1]}
  with pytest.raises(ConfigError, match=words):
    plan.plan(tmp_path / 'runs', [file], rules, [0], tune=tune)
  runs = plan.plan(tmp_path / 'runs', [file], [*rules, 'fa'], [0],
                   tune={'rule_options.rho': [.25, 1]})
  assert [one.tuned for one in runs if one.rule == 'fa'] == [
      {'rule_options.rho': .25}, {'rule_options.rho': 1}]


def test_seeds_that_are_missing_are_counted_beside_the_others(file, tmp_path, leave):
  """Neither finished nor diverged: the caption says of how many seeds a mean would be."""
  runs = plan.plan(tmp_path / 'runs', [file], ['bp'], range(4))
  cell = lambda: table.table(runs).splitlines()[-1].split('|')[2].strip()
  assert cell() == 'not run'
  leave(runs[1], None)
  assert cell() == '1 diverged, 3 missing'
  leave(runs[0], .5)
  leave(runs[2], .5)
  assert cell() == '50.00 ± 0.00, 1 diverged, 1 missing'
  leave(runs[3], .5)
  assert cell() == '50.00 ± 0.00, 1 diverged'


def test_a_table_that_no_sweep_has_written_is_left_as_it_is(file, tmp_path):
  """It is the user's; that of a sweep before is replaced."""
  root = tmp_path / 'runs'
  root.mkdir()
  (root / 'table.md').write_text('mine')
  runs = plan.plan(root, [file], ['bp'], [0])
  with pytest.raises(WorkdirError, match=r'table.md would be replaced.*bioprop sweep .*runs/sweep'):
    saved.write(root, runs, 'test_accuracy')
  assert [path.name for path in root.iterdir()] == ['table.md']
  (root / 'table.md').unlink()
  saved.write(root, runs, 'test_accuracy')
  before = table.write(root, runs, 'test_accuracy').read_text()
  saved.write(root, runs, 'test_loss')
  assert table.write(root, runs, 'test_loss').read_text() != before


def test_no_seeds_are_no_sweep(monkeypatch):
  """An empty --seeds= is told, with what to type."""
  seeds = flags.ListParser().parse('')
  monkeypatch.setattr(flags, 'FLAGS', types.SimpleNamespace(rules='bp', seeds=seeds))
  with pytest.raises(ConfigError, match='--seeds is empty.*--seeds=0,1,2'):
    asked.rules_and_seeds()


@pytest.mark.parametrize('found', [
    '{"runs": {"a": 1}}', '{"version": 1, "runs": [{"a": 1}]}', '{"version": 7, "runs": []}', '[]',
    '{'])
def test_a_sweep_json_of_something_else_is_left_as_it_is(file, tmp_path, found):
  """One paragraph, by the same check as a report has, and no run is added to it."""
  (tmp_path / 'sweep.json').write_text(found)
  with pytest.raises(WorkdirError, match='sweep.json is damaged.*Move it away'):
    saved.write(tmp_path, plan.plan(tmp_path, [file], ['bp'], [0]), 'test_accuracy')
  assert (tmp_path / 'sweep.json').read_text() == found


@pytest.mark.parametrize('limit', [0.0, -1.0, float('inf'), float('nan')])
def test_a_limit_of_memory_that_is_none(file, tmp_path, monkeypatch, limit):
  """Told before anything is made."""
  monkeypatch.setattr(flags, 'FLAGS', types.SimpleNamespace(
      rules='bp', seeds=['0', '1'], over=[], tune=[], metric='test_accuracy', replicas=None,
      data_dir=None, max_gib=limit))
  monkeypatch.setattr(work, 'train', lambda *args, **options: {})
  with pytest.raises(SystemExit, match=f'--max_gib is {limit}, .*--max_gib=8'):
    program.main(['sweep', str(tmp_path / 'runs'), file])
  assert not (tmp_path / 'runs').exists()


def test_pictures_are_of_what_was_trained_last(file, tmp_path, leave, monkeypatch):
  """Drawn anew where a run was tried again, and not where it has failed."""
  runs = plan.plan(tmp_path / 'runs', [file], ['bp'], [0, 1, 2])
  outcomes = [None, DivergedError('the loss is nan'), CheckpointError('it is damaged')]

  def run_held(trainers, directories, *rest):
    for path in directories:
      (path / 'curves.png').write_text('old')
      (path / 'metrics.jsonl').write_text(EPOCH)
    return outcomes

  monkeypatch.setattr(loop, 'run_held', run_held)
  monkeypatch.setattr(work, 'is_done', lambda one: (one.path / 'curves.png').exists())
  assert list(work.train(runs, None)) == [runs[2].path]
  assert [(one.path / 'curves.png').read_bytes() == b'old' for one in runs] == [False, False, True]


def test_classes_and_targets_have_the_loss_in_common(file, tmp_path, leave):
  """Which is advised where both are there; where one of them is, a score of its own."""
  runs = plan.plan(tmp_path / 'runs', [file], ['bp', 'fa'], [0])
  leave(runs[0], .5)
  with pytest.raises(WorkdirError, match='are classes.*--metric=test_accuracy'):
    table.table(runs, 'test_r2')
  leave(runs[1], .5)
  records = (runs[1].path / 'metrics.jsonl').read_text().replace('test_accuracy', 'test_r2')
  (runs[1].path / 'metrics.jsonl').write_text(records)
  for metric, kind in (('test_r2', 'classes'), ('test_accuracy', 'numbers')):
    with pytest.raises(WorkdirError, match=f'are {kind}.*--metric=test_loss'):
      table.table(runs, metric)
  assert 'bp' in table.table(runs, 'test_loss')


def test_a_group_of_settings_is_no_field(file, tmp_path):
  """Its name and what is in it are told, in one paragraph."""
  with pytest.raises(ConfigError) as caught:
    plan.plan(tmp_path, [file], ['fa'], [0], tune={'rule_options': [.5]})
  assert 'rule_options is a group of settings, and cannot be 0.5. ' in str(caught.value)
  assert 'such as rule_options.' in str(caught.value) and '\n' not in str(caught.value)


def test_a_sweep_has_no_workdir_to_be_advised(file, tmp_path, leave):
  """A run of another configuration, and what is no run."""
  runs = plan.plan(tmp_path / 'runs', [file], ['bp', 'fa'], [0])
  leave(runs[0], .5)
  runs[0].config.learning_rate = .25
  runs[1].path.mkdir()
  (runs[1].path / 'mine').touch()
  for one in runs:
    with pytest.raises(WorkdirError, match=r'sweep into another directory, bioprop sweep OTHER \.'):
      work.train([one], None)
