"""bioprop probe: what a run would have measured by itself, found from what it left."""
import shutil

import numpy as np
import pytest

from bioprop.bench import pictures
from bioprop.errors import ConfigError, WorkdirError
from bioprop.training import afterwards, base, metrics, probing, run, workdir
from bioprop.training.trainer import Trainer

ENTK = {'type': 'entk', 'batch': 20}
STEPS = [0, 14, 21]  # The start, and the two checkpoints of three epochs of seven steps.


def make_config(**probes):
  """Digits, a small MLP, feedback alignment."""
  config = base()
  config.model_options.hidden = (16,)
  config.update(validation=0, epochs=3, batch_size=200, learning_rate=0.1, seed=5)
  config.probes.update(probes)
  return config


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """A run that measured while it trained."""
  path = tmp_path_factory.mktemp('measured') / 'run'
  run(make_config(kernel={**ENTK, 'every': 100}, turns={'type': 'angles', 'batch': 30, 'every': 7}),
      path, progress=False)
  return path


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
  """The same run without probes."""
  path = tmp_path_factory.mktemp('bare') / 'run'
  run(make_config(), path, progress=False)
  return path


@pytest.fixture
def copied(bare, tmp_path):
  """The run without probes, for one test."""
  return shutil.copytree(bare, tmp_path / 'run')


def _files(path):
  return {file: file.read_bytes() for file in path.rglob('*') if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize('kept, name, options', [
    ('kernel', 'kernel', ENTK), ('turns', 'other', {'type': 'angles', 'batch': 30, 'block': 7})])
def test_it_is_what_the_run_would_have_written(measured, copied, kept, name, options):
  """At the same steps the same arrays; blocks change the order of sums."""
  before = _files(copied)
  moments = list(afterwards.measure(copied, name, options))
  assert [(moment.epoch, moment.step) for moment in moments] == [(0, 0), (2, 14), (3, 21)]
  want = {found['step'].item(): found for found in probing.read(measured, kept)}
  found = probing.read(copied, name)
  assert [one['step'].item() for one in found] == STEPS
  for one in found:
    assert set(one) == set(want[one['step'].item()])
    for key, value in one.items():
      np.testing.assert_allclose(value, want[one['step'].item()][key], rtol=2e-4, atol=1e-5)
  # It is drawn, although config.json does not know it, and nothing that was there has changed.
  assert [one['step'].item() for one in probing.read_all(copied)[options['type']]] == STEPS
  assert pictures.draw(copied, copied)
  after = _files(copied)
  assert {file: after[file] for file in before} == before


@pytest.mark.slow
def test_again_it_writes_nothing(copied):
  """Only what is missing; another measurement of the name is refused."""
  list(afterwards.measure(copied, 'kernel', ENTK))
  before = _files(copied)
  assert [moment.measured for moment in afterwards.measure(copied, 'kernel', ENTK)] == [None] * 3
  for options, words in (({**ENTK, 'batch': 30}, 'batch is 20 there and 30 here'),
                         ({**ENTK, 'type': 'angles'}, "type is 'entk' there and 'angles' here")):
    with pytest.raises(WorkdirError, match=f'{words}.*--name=kernel-2'):
      list(afterwards.measure(copied, 'kernel', options))
  assert _files(copied) == before
  lost = probing.path_of(copied, 'kernel', 14)
  lost.unlink()
  moments = list(afterwards.measure(copied, 'kernel', ENTK))
  assert [moment.measured is None for moment in moments] == [True, False, True]
  with np.load(lost) as new:
    assert new['step'] == 14


def test_the_probes_of_the_run_itself(measured, tmp_path):
  """What the run measured at these steps is there already; another of its names is refused."""
  copied = shutil.copytree(measured, tmp_path / 'run')
  before = _files(copied)
  assert all(moment.measured is None for moment in afterwards.measure(copied, 'kernel', ENTK))
  with pytest.raises(WorkdirError, match='batch is 20 there and 10 here'):
    list(afterwards.measure(copied, 'kernel', {**ENTK, 'batch': 10}))
  assert _files(copied) == before


@pytest.mark.slow
def test_an_interrupted_run_goes_on_afterwards(bare, tmp_path, monkeypatch):
  """To the numbers of the run that was not."""
  path, epoch = tmp_path / 'run', Trainer.epoch

  def interrupted(self, state, number, *args):
    if number == 3:
      raise KeyboardInterrupt
    return epoch(self, state, number, *args)

  monkeypatch.setattr(Trainer, 'epoch', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(make_config(), path, progress=False)
  monkeypatch.undo()
  assert [moment.step for moment in afterwards.measure(path, 'entk', ENTK)] == [0, 7, 14]
  run(make_config(), path, progress=False)
  numbers = lambda path: [record['train_loss'] for record in metrics.read(path, 3)[:3]]
  assert numbers(path) == numbers(bare)
  again = list(afterwards.measure(path, 'entk', ENTK))
  assert [(moment.step, moment.measured is None) for moment in again] == [
      (0, True), (14, True), (21, False)]


def test_a_run_that_is_being_trained_is_left_alone(copied):
  before = _files(copied)
  with workdir.opened(copied, make_config()):
    with pytest.raises(WorkdirError, match='another process'):
      list(afterwards.measure(copied, 'entk', ENTK))
  assert _files(copied) == before


def test_files_that_nothing_explains(copied):
  """Measurements without a note, and a note that is damaged."""
  list(afterwards.measure(copied, 'entk', ENTK))
  note = probing.path_of(copied, 'entk', 0).with_name('probe.json')
  note.write_text('{"batch": 3}')
  with pytest.raises(WorkdirError, match='probe.json is damaged'):
    list(afterwards.measure(copied, 'entk', ENTK))
  note.unlink()
  with pytest.raises(WorkdirError, match='nothing says of what'):
    list(afterwards.measure(copied, 'entk', ENTK))


def test_more_examples_than_there_are(copied):
  with pytest.raises(ConfigError, match='--batch is 2000, and the run has 1437 .*--batch=64'):
    list(afterwards.measure(copied, 'entk', {**ENTK, 'batch': 2000}))


def test_a_configuration_comes_back(bare):
  """From its JSON, where tuples are lists."""
  config = afterwards.as_config(workdir.config_of(bare))
  assert config.to_dict() == make_config().to_dict()
  assert config.model_options.hidden == (16,)


@pytest.mark.slow
def test_from_the_command_line(copied, python):
  """It says what there is, and what of the network was found."""
  done = python('probe', copied, '--type=angles', '--batch=30', module='bioprop')
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  (found,) = [one for one in probing.read(copied, 'angles') if one['step'] == 14]
  assert lines[1] == (f'{copied}: epoch 2, step 14: cosine {found["cosine"]:.4g}, '
                      f'ratio {found["ratio"]:.4g}')
  assert 'checkpoints of epochs 2, 3' in lines[3] and lines[4:] == [f'{copied}/angles.png']
  again = python('probe', copied, '--type=angles', '--batch=30', module='bioprop')
  assert 'epoch 2, step 14 is measured already' in again.stdout


OWN = '''
import flax.linen as nn
import bioprop
from bioprop.models import MODELS
from bioprop.rules.feedback import FeedbackAlignment
from bioprop.training import base


class Own(nn.Module):
  classes: int = 10
  units: int = 12

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(self.classes)(nn.tanh(nn.Dense(self.units)(x.reshape(len(x), -1))))


class Half(FeedbackAlignment):
  pass


MODELS['own'] = Own
bioprop.RULES['half'] = Half


def get_config():
  config = base()
  config.update(model='own', rule='half', validation=0, epochs=1, batch_size=200)
  config.model_options.units = 8
  return config
'''


@pytest.mark.slow
def test_of_a_rule_and_a_model_that_a_configuration_adds(python, tmp_path):
  """Trained by that file, and measured with it; without it the file is asked for."""
  (tmp_path / 'own.py').write_text(OWN)
  done = python('train', '--config=own.py', '--workdir=run', module='bioprop', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  refused = python('probe', 'run', module='bioprop', cwd=tmp_path)
  assert "the rule 'half', and bioprop has none" in refused.stderr
  assert '--config=half.py' in refused.stderr and len(refused.stderr.splitlines()) == 1
  done = python('probe', 'run', '--config=own.py', '--type=alignment', module='bioprop',
                cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert [set(found) >= {'cosine/Dense_0/kernel'} for found in probing.read(
      tmp_path / 'run', 'alignment')] == [True, True]


@pytest.mark.parametrize('argv, words', [
    ([], 'bioprop probe runs/one'), (['nowhere'], 'nowhere holds no run'),
    (['x', '--name=a/b'], "--name is 'a/b'"), (['x', '--type=ntk'], 'features'),
    (['x', '--batch=0'], 'positive integer')])
def test_mistakes_are_one_paragraph(python, tmp_path, argv, words):
  done = python('probe', *argv, module='bioprop', cwd=tmp_path)
  assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())
