"""train.py as a user runs it: each mistake is one paragraph, and no interruption costs anything."""
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bioprop.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = ('--config.epochs=2', '--config.model_options.hidden=8')


def _command(*flags):
  return [sys.executable, str(ROOT / 'train.py'), *flags]


@pytest.fixture(scope='module')
def train(python):
  """train(cwd, *flags) runs train.py to its end."""
  return lambda cwd, *flags: python(ROOT / 'train.py', *flags, cwd=cwd)


def _paragraph(done):
  """The one paragraph on stderr, below whatever the progress bar left."""
  assert done.returncode == 1, done.stderr
  assert 'Traceback' not in done.stderr
  lines = [line for line in done.stderr.replace('\r', '\n').splitlines()
           if line.strip() and 'step/s' not in line]
  assert len(lines) == 1, done.stderr
  return lines[0]


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
  """Where train.py was started by nothing but Python, and how it ended."""
  path = tmp_path_factory.mktemp('bare')
  return path, subprocess.run(
      _command(*SMALL), cwd=path, capture_output=True, text=True, timeout=200, check=False)


def test_bare_it_trains(bare):
  path, done = bare
  assert done.returncode == 0, done.stderr
  header, row = done.stdout.splitlines()[:2]
  assert header.split()[:2] == ['rule', 'epochs'] and row.split()[:2] == ['fa', '2']
  run = path / 'runs' / 'digits_mlp-fa-seed0'
  assert {path.name.split('.')[0] for path in run.iterdir()} == {
      '', 'config', 'environment', 'metrics', 'events', 'checkpoints', 'curves'}
  assert (run / 'curves.png').read_bytes().startswith(b'\x89PNG')
  assert json.loads((run / 'config.json').read_text())['model_options']['hidden'] == [8]


@pytest.mark.slow
def test_again_it_trains_anew_beside_it(bare, train):
  path, _ = bare
  run = path / 'runs' / 'digits_mlp-fa-seed0'
  before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
  assert 'digits_mlp-fa-seed0-2' in train(path, *SMALL, '--config.learning_rate=0.01').stdout
  assert 'digits_mlp-fa-seed0-3' in train(path, *SMALL).stdout
  assert before == {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}


@pytest.mark.parametrize('flags,words', [
    (['--config.rul=dfa'], ['--config.rule', 'learning_rate']),
    (['--config.rule=daf'], ["'dfa'", 'fa, dfa, usf']),
    (['--config.rule_options.roh=0.5'], ['--config.rule_options.rho']),
    (['--config.rule_options.rho=half'], ['rho=half']),
    (['--config.rule_options.rho=1.5'], ['rho']),
    (['--config.rule=dfa', '--config.rule_options.max_gib=1e-9'],
     ["'Dense_0'", 'GiB', '--config.rule_options.max_gib=1']),
    (['--config.epochs=many'], ['epochs=many']),
    (['--workdr=x'], ['Did you mean --workdir=x?', '--data_dir']),
    (['--rule=dfa'], ['Did you mean --config.rule=dfa?']),
    (['--config.rule=DFA'], ["Did you mean 'dfa'?"]),
    (['--config.Rule=dfa'], ['Did you mean --config.rule?']),
    (['--config=configs/nope.py'], ['configs/nope.py, seen from', ' --config=mnist_lenet']),
    ([f'--config={ROOT}/LICENSE'], ['LICENSE', 'cannot be loaded']),
    ([f'--config={ROOT}/configs/theory_fa.py'],
     ['bioprop theory --config=', 'bioprop train --config=mnist_lenet']),
    (['dfa'], ["'dfa'", '--config']),
    (['--config.dataset=digts'], ["'digits'"]),
    (['--config.warmup_epochs=29.999'], ['29.999', '--config.warmup_epochs=3.']),
    (['--config.schedule=step', '--config.step_factor=-1'], ['--config.step_factor=0.1']),
    (['--config.batch_size=2000'], ['--config.batch_size=64']),
    (['--workdir=/proc/run'], ['/proc/run', '--workdir']),
    ([f'--workdir={ROOT}/configs'], ['characters_transformer.py']),
    (['--config.model=lenet', '--config.model_options.hidden=3'], ['features, dense']),
])
@pytest.mark.some(2)
def test_a_mistake_is_one_paragraph_and_leaves_nothing(train, tmp_path, flags, words):
  paragraph = _paragraph(train(tmp_path, *flags))
  for word in words:
    assert word in paragraph
  assert list(tmp_path.iterdir()) == []


def test_a_file_that_raises_is_one_paragraph_without_its_traceback(train, tmp_path):
  """Of a TypeError, which ml_collections shows with all of its frames."""
  (tmp_path / 'own.py').write_text(
      'from bioprop.training import base\n\n\ndef get_config():\n  config = base()\n'
      '  config.model = dict\n  return config\n')
  paragraph = _paragraph(train(tmp_path, '--config=own.py'))
  assert 'own.py cannot be loaded: TypeError: ' in paragraph and "'model'" in paragraph
  assert 'Traceback' not in paragraph and 'File "' not in paragraph


def _add_a_line(run):
  with open(run / 'metrics.jsonl', 'a') as file:
    file.write('garbage\n')


def _only_the_last_line(run):
  lines = (run / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (run / 'metrics.jsonl').write_text(lines[-1])


def _a_directory_of_curves(run):
  (run / 'curves.png').unlink()
  (run / 'curves.png').mkdir()


@pytest.mark.parametrize('damage, words', [
    (_add_a_line, 'metrics.jsonl is not as training wrote it: line 4 follows'),
    (_only_the_last_line, 'line 1 is the final result, after 0 of 2 epochs'),
    (_a_directory_of_curves, 'curves.png is a directory')])
def test_a_finished_run_that_was_damaged_is_one_paragraph(bare, train, tmp_path, damage, words):
  shutil.copytree(bare[0] / 'runs' / 'digits_mlp-fa-seed0', tmp_path / 'run')
  damage(tmp_path / 'run')
  files = lambda: {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  before = files()
  assert words in _paragraph(train(tmp_path, *SMALL, '--workdir=run'))
  assert files() == before


@pytest.mark.slow
def test_divergence_is_one_paragraph(train, tmp_path):
  paragraph = _paragraph(train(
      tmp_path, '--config.loss=mse', '--config.learning_rate=30.', '--config.rule=bp'))
  assert 'epoch 1, step' in paragraph and '--config.learning_rate=3' in paragraph


def _numbers(run):
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  return [{name: value for name, value in json.loads(line).items()
           if name not in ('seconds', 'steps_per_second')} for line in lines]


def _leaves(run, epoch):
  tree = Checkpoints(run / 'checkpoints', 2)._read(epoch)
  flat = {}

  def walk(node, path):
    for name, value in node.items():
      if isinstance(value, dict):
        walk(value, f'{path}/{name}')
      else:
        flat[f'{path}/{name}'] = value.tobytes()
  walk(tree, '')
  return flat


@pytest.mark.slow
def test_killed_at_random_and_resumed_it_is_the_run_that_was_not(train, tmp_path):
  flags = ('--config.epochs=30', '--config.model_options.hidden=300,300')
  assert train(tmp_path, *flags, '--workdir=whole').returncode == 0
  draw = random.Random(0)
  for _ in range(4):
    process = subprocess.Popen(_command(*flags, '--workdir=cut'), cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Not before the run begins: most of a process's life is imports and compilation.
    before = len(_checkpoints(tmp_path / 'cut'))
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and (
        _checkpoints(tmp_path / 'cut') == before):
      time.sleep(0.01)
    time.sleep(draw.uniform(2.5, 5.))
    process.kill()
    process.wait()
  done = train(tmp_path, *flags, '--workdir=cut')
  assert done.returncode == 0, done.stderr
  assert _numbers(tmp_path / 'whole') == _numbers(tmp_path / 'cut')
  assert _leaves(tmp_path / 'whole', 30) == _leaves(tmp_path / 'cut', 30)


def _checkpoints(run):
  return Checkpoints(run / 'checkpoints', 2).epochs()


@pytest.mark.slow
def test_control_c_says_that_the_same_command_goes_on(tmp_path):
  flags = ('--config.epochs=4000', '--config.checkpoint_every=10')
  # A test run in the background of a shell ignores SIGINT, and its children inherit that.
  hear = ('import runpy, signal, sys; sys.argv = sys.argv[1:]; '
          'signal.signal(signal.SIGINT, signal.default_int_handler); '
          'runpy.run_path(sys.argv[0], run_name="__main__")')
  command = [sys.executable, '-c', hear, *_command(*flags)[1:]]
  with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, text=True) as process:
    run = tmp_path / 'runs' / 'digits_mlp-fa-seed0'
    deadline = time.monotonic() + 60
    while not _checkpoints(run) and time.monotonic() < deadline:
      time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
      _, stderr = process.communicate(timeout=30)
    finally:
      process.kill()
  assert process.returncode == 130, stderr
  assert 'Traceback' not in stderr and 'same command' in stderr
  assert _checkpoints(run) and not (run / 'curves.png').exists()
