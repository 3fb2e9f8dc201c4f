"""What of a sweep is shown while it runs: counts, and how long the rest may take."""
import json

import pytest
from rich.console import Console

from bioprop.bench.sweep import board as board_lib
from bioprop.bench.sweep import plan
from bioprop.bench.sweep.board import LiveBoard
from bioprop.training import metrics, workdir

CONFIG = '''
from bioprop.training import base


def get_config():
  config = base()
  config.update(epochs=2, validation=0)
  return config
'''


@pytest.fixture
def runs(tmp_path):
  """Two rules, three seeds, none of which has begun."""
  (tmp_path / 'small.py').write_text(CONFIG)
  return plan.plan(tmp_path / 'runs', [str(tmp_path / 'small.py')], ['bp', 'fa'], [0, 1, 2])


def _end(one, seconds):
  """Leaves what a run of two epochs leaves that took so long in all."""
  with workdir.opened(one.path, one.config):
    lines = [{'epoch': epoch, 'train_loss': 1.0, 'train_accuracy': .5, 'seconds': seconds / 2}
             for epoch in (1, 2)] + [{'test_loss': 1.0, 'test_accuracy': .5}]
    (one.path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def _of(runs, rule):
  return [one for one in runs if one.rule == rule]


def _shown(board):
  console = Console(record=True, width=160)
  console.print(board._live.get_renderable())
  return console.export_text()


def _row(text, rule):
  return next(line.split() for line in text.splitlines() if f' {rule} ' in line)[1:]


def test_a_log_says_which_runs_are_trained(tmp_path, capsys):
  """With the values that tell them apart."""
  (tmp_path / 'small.py').write_text(CONFIG.replace('validation=0', 'validation=100'))
  runs = plan.plan(tmp_path / 'runs', [str(tmp_path / 'small.py')], ['bp'], [3],
                   {'batch_size': [8]}, {'learning_rate': [.5, .25]})
  board_lib.Board(runs).take(runs)
  assert capsys.readouterr().out == (
      'training small batch_size=8 bp learning_rate=0.5 seed 3, '
      'small batch_size=8 bp learning_rate=0.25 seed 3\n')


def test_nothing_is_known_before_the_first_step(runs):
  """Zeros, and no time."""
  board = LiveBoard(runs)
  text = _shown(board)
  assert '0/3' in _row(text, 'bp') and '0/3' in _row(text, 'fa')
  assert 'left, for this process alone: unknown yet' in text
  board.take(_of(runs, 'bp'))
  text = _shown(board)
  assert '(3 running)' in text and 'compiling' in text and 'unknown yet' in text


def test_runs_that_have_ended_say_how_long_others_take(runs):
  """Of their own rule where there is one, else of all: bp 10 s each, fa unknown as yet."""
  bp, fa = _of(runs, 'bp'), _of(runs, 'fa')
  _end(bp[0], 10.)
  board = LiveBoard(runs)  # What was there before counts.
  assert '1/3' in _row(_shown(board), 'bp')
  assert 'alone: 0:00:50' in _shown(board)
  board.take(fa[:1])
  _end(fa[0], 60.)
  board.done(fa[0])
  text = _shown(board)
  assert '1/3' in _row(text, 'fa') and 'running' not in text
  assert 'alone: 0:02:20' in text  # 2 x 10 s and 2 x 60 s.
  for one in (*bp[1:], *fa[1:]):  # By other processes.
    _end(one, 10.)
  board.waits()
  text = _shown(board)
  assert '3/3' in _row(text, 'bp') and '3/3' in _row(text, 'fa') and 'alone: 0:00:00' in text
  assert 'trained by other processes' in text


def test_the_first_steps_say_how_long_it_takes(runs, monkeypatch):
  """Two of six together: 25 of 100 steps in 4 s are 16 s for both, 8 s for one, 48 s for all."""
  now = [0.]
  monkeypatch.setattr(board_lib.time, 'monotonic', lambda: now[0])
  board = LiveBoard(runs)
  board.take(_of(runs, 'bp'))
  board.begin(2, 0, 100)  # Memory holds two of the three that were taken.
  now[0] = 4.
  board.steps(25)
  text = _shown(board)
  assert 'step 25 of 100, 12 steps/s of all runs' in text
  assert 'alone: 0:00:48' in text


def test_records_are_read_once(runs, monkeypatch):
  """The table is drawn twice a second, and a sweep may have a thousand runs."""
  for one in runs[:4]:
    _end(one, 10.)
  read, plain = [], metrics.read
  monkeypatch.setattr(metrics, 'read', lambda path: read.append(path) or plain(path))
  board = LiveBoard(runs)
  for _ in range(3):
    _shown(board)
  assert sorted(read) == sorted(one.path for one in runs[:4])


def test_a_damaged_record_does_not_end_the_table(runs):
  """It is drawn in a thread of its own: an error would end up nowhere."""
  for one in runs[:2]:
    _end(one, 10.)
  board = LiveBoard(runs)
  path = runs[0].path / 'metrics.jsonl'
  path.write_text('nothing\n' + path.read_text())
  assert 'alone: 0:00:40' in _shown(board)
