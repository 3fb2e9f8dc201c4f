"""Which directories a run may enter, and that nothing in them is lost."""
import json

import pytest

from bioprop.errors import WorkdirError
from bioprop.training import workdir


def _enter(path, config):
  with workdir.opened(path, config):
    pass


def test_a_new_directory_holds_the_resolved_configuration(config, tmp_path):
  _enter(tmp_path / 'a' / 'b', config)
  saved = json.loads((tmp_path / 'a' / 'b' / 'config.json').read_text())
  assert saved['learning_rate'] == 0.1 and saved['model_options']['hidden'] == [16]
  _enter(tmp_path / 'a' / 'b', config)


def test_foreign_files_are_refused_and_left(config, tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(WorkdirError, match='thesis.tex'):
    _enter(tmp_path, config)
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_file_and_a_place_that_cannot_be_written(config, tmp_path):
  (tmp_path / 'file').write_text('x')
  for path in (tmp_path / 'file', '/proc/run'):
    with pytest.raises(WorkdirError, match='--workdir'):
      _enter(path, config)
  assert (tmp_path / 'file').read_text() == 'x'


def test_a_damaged_configuration_is_not_taken_for_a_new_run(config, tmp_path):
  _enter(tmp_path / 'run', config)
  (tmp_path / 'run' / 'config.json').write_text('{"seed": ')
  with pytest.raises(WorkdirError, match='damaged'):
    _enter(tmp_path / 'run', config)


@pytest.mark.parametrize('content', [b'7', b'[]', b'"\xff"', b'[' * 10**5, b''])
def test_whatever_damage_the_configuration_has(config, tmp_path, content):
  _enter(tmp_path / 'run', config)
  (tmp_path / 'run' / 'config.json').write_bytes(content)
  for use in (lambda path: _enter(path, config), workdir.config_of):
    with pytest.raises(WorkdirError, match='config.json is damaged.*--workdir'):
      use(tmp_path / 'run')
  assert workdir.fresh(tmp_path, 'run', config).name == 'run-2'


def test_a_reader_says_what_it_needs_of_a_configuration(config, tmp_path):
  _enter(tmp_path / 'run', config)
  assert workdir.config_of(tmp_path / 'run', 'epochs')['epochs'] == 3
  for damaged, words in (('{"epochs": "3"}', "epochs is '3'"), ('{}', 'epochs is None')):
    (tmp_path / 'run' / 'config.json').write_text(damaged)
    with pytest.raises(WorkdirError, match=words):
      workdir.config_of(tmp_path / 'run', 'epochs')
  with pytest.raises(WorkdirError, match='holds no run'):
    workdir.config_of(tmp_path / 'run' / 'config.json', 'epochs')


def test_the_directory_of_a_sweep_is_no_run_and_one_of_its_own_is_named(config, tmp_path):
  for name in ('mnist/fa-seed0', 'mnist/bp-seed0'):
    _enter(tmp_path / name, config)
  for above in (tmp_path, tmp_path / 'mnist'):
    with pytest.raises(WorkdirError, match=f'one of the 2 below it.* {tmp_path}/mnist/bp-seed0.$'):
      workdir.config_of(above)
  with pytest.raises(WorkdirError, match='Give the --workdir of bioprop train'):
    workdir.config_of(tmp_path / 'nothing')


@pytest.mark.parametrize('name', ['metrics.jsonl', 'curves.png', '.lock', 'config.json.new'])
def test_links_are_not_followed(config, tmp_path, name):
  run, other = tmp_path / 'run', tmp_path / 'thesis'
  other.write_text('years of work')
  run.mkdir()
  if name == 'config.json.new':  # It goes, as what a kill left does.
    (run / name).symlink_to(other)
    _enter(run, config)
    assert not (run / 'config.json').is_symlink()
  else:
    _enter(run, config)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(other)
    with pytest.raises(WorkdirError, match=f'{name} is a symbolic link.*mv {run}/{name} '):
      _enter(run, config)
  assert other.read_text() == 'years of work'


@pytest.mark.parametrize('name, make, words', [
    ('curves.png', 'mkdir', 'is a directory'), ('metrics.jsonl', 'mkdir', 'is a directory'),
    ('checkpoints', 'touch', 'is no directory'), ('probes', 'touch', 'is no directory')])
def test_what_stands_in_the_way_is_told_before_training(config, tmp_path, name, make, words):
  _enter(tmp_path, config)
  getattr(tmp_path / name, make)()
  with pytest.raises(WorkdirError, match=f'{name} {words}.*mv {tmp_path}/{name} '):
    _enter(tmp_path, config)


def test_a_kill_before_the_configuration_was_there_leaves_a_usable_directory(config, tmp_path):
  (tmp_path / '.lock').touch()
  (tmp_path / 'config.json.new').write_text('{"se')
  _enter(tmp_path, config)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 0


def test_one_process_at_a_time(config, tmp_path):
  with workdir.opened(tmp_path / 'run', config), pytest.raises(WorkdirError, match='another'):
    _enter(tmp_path / 'run', config)


def test_what_cannot_be_locked_is_not_held(config, tmp_path):
  """It is told why by who wants to enter, and is no traceback of who only asks."""
  _enter(tmp_path / 'run', config)
  assert not workdir.is_held(tmp_path / 'run') and not workdir.is_held(tmp_path / 'nothing')
  with workdir.opened(tmp_path / 'run', config):
    assert workdir.is_held(tmp_path / 'run')
  (tmp_path / 'run' / '.lock').unlink()
  (tmp_path / 'run' / '.lock').symlink_to(tmp_path / 'elsewhere')
  assert not workdir.is_held(tmp_path / 'run')
  with pytest.raises(WorkdirError, match='a symbolic link'):
    _enter(tmp_path / 'run', config)


def test_an_error_in_the_run_is_not_taken_for_one_of_the_directory(config, tmp_path):
  with pytest.raises(OSError, match='mine'), workdir.opened(tmp_path / 'run', config):
    raise OSError('mine')


def test_a_run_cannot_be_made_longer_and_the_line_to_type_is_told(config, tmp_path):
  _enter(tmp_path / 'run', config)
  config.epochs = 7
  with pytest.raises(WorkdirError, match=f'epochs is 3 there and 7 .*--workdir={tmp_path}/run-7$'):
    _enter(tmp_path / 'run', config)
  config.seed = 1
  with pytest.raises(WorkdirError, match='Give the same values'):
    _enter(tmp_path / 'run', config)


def test_differences_go_key_by_key():
  old = {'a': 1, 'b': {'c': 2, 'd': 3}, 'gone': 1}
  assert workdir.differences(old, {'a': 1, 'b': {'c': 2, 'd': 4}, 'new': None, 'gone': 1}) == [
      'b.d is 3 there and 4 here']
  assert workdir.differences(old, {'a': 1, 'b': {'c': 2, 'd': 3}}) == [
      'gone is 1 there and None here']


def test_the_default_resumes_what_is_unfinished_and_the_same_and_else_counts_on(config, tmp_path):
  fresh = lambda: workdir.fresh(tmp_path, 'run', config).name
  assert fresh() == 'run'
  _enter(tmp_path / 'run', config)
  assert fresh() == 'run'
  with workdir.opened(tmp_path / 'run', config):  # In use.
    assert fresh() == 'run-2'
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{"epoch": 1}\n{"test_loss": 1.0}\n')
  assert fresh() == 'run-2'
  (tmp_path / 'run-2').mkdir()
  (tmp_path / 'run-2' / 'mine').touch()
  assert fresh() == 'run-3'
  (tmp_path / 'run' / 'metrics.jsonl').unlink()
  config.seed = 1
  assert fresh() == 'run-3'
