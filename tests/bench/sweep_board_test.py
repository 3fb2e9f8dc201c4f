"""What of a sweep is shown while it runs: the table of a terminal, and the lines of a log."""
import json
import logging
import re

import pytest
from absl import logging as absl_logging

from bioprop.bench.sweep import plan, table
from bioprop.bench.sweep.board import Board, LiveBoard
from bioprop.training import workdir


@pytest.fixture
def runs(tmp_path):
  return plan.plan(tmp_path / 'runs', ['digits_mlp'], ['bp', 'fa(rho=0.5)'], [0, 1],
                   {'epochs': [1]}, {'learning_rate': [0.1, 0.2]})


@pytest.fixture
def terminal(monkeypatch, capsys):
  """Makes rich (before 14: by FORCE_COLOR) take the output for a terminal; returns its reader."""
  for name, value in {'FORCE_COLOR': '1', 'TTY_COMPATIBLE': '1', 'TTY_INTERACTIVE': '1',
                      'COLUMNS': '110', 'TERM': 'xterm'}.items():
    monkeypatch.setenv(name, value)
  return lambda: re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', capsys.readouterr().out)


def _finish(one, seconds):
  with workdir.opened(one.path, one.config):
    lines = [{'epoch': 1, 'train_loss': 1.0, 'train_accuracy': 0.5, 'seconds': seconds},
             {'test_loss': 1.0, 'test_accuracy': 0.5}]
    (one.path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def test_a_terminal_shows_what_is_done_what_runs_and_how_long_the_rest_takes(runs, terminal):
  _finish(runs[0], 60.0)
  assert table.is_done(runs[0])
  with LiveBoard(runs):
    pass
  before = terminal()
  assert 'digits_mlp epochs=1' in before and 'fa(rho=0.5)' in before
  assert '1/4' in before and '0/4' in before and 'running' not in before
  # Seven runs as long as the one that ended.
  assert 'starting; left, for this process alone: 0:07:00' in before
  with LiveBoard(runs) as board:
    board.take(runs[1:3])
    board.begin(2, 0, 38)
    board.steps(10)
    _finish(runs[1], 120.0)
    board.done(runs[1])
  now = terminal()
  assert 'step 10 of 38' in now and 'of all runs; left, for this process alone: 0:09:00' in now
  # Six of 90 seconds each are left; one of fa runs.
  assert '2/4 ' in now and '0/4 (1 running)' in now


@pytest.mark.usefixtures('terminal')
def test_a_warning_goes_above_the_table(runs, capsys):
  """It would else stand behind its last line, which would not be drawn over."""
  handler = absl_logging.get_absl_handler().python_handler
  before = handler.stream
  record = logging.LogRecord('absl', logging.WARNING, 'here.py', 1, 'it grows', (), None)
  with LiveBoard(runs):
    logging.StreamHandler.emit(handler, record)  # As absl does once flags are parsed.
  out, err = capsys.readouterr()
  assert 'it grows' in out and not err
  assert handler.stream is before


def test_nothing_is_known_of_the_time_before_anything_has_run(runs, terminal):
  with LiveBoard(runs):
    pass
  assert 'starting; left, for this process alone: unknown yet' in terminal()


def test_a_log_has_a_line_that_tells_runs_apart(runs, capsys):
  Board(runs).take(runs[:2])
  assert capsys.readouterr().out == (
      'training digits_mlp epochs=1 bp learning_rate=0.1 seed 0, '
      'digits_mlp epochs=1 bp learning_rate=0.2 seed 0\n')
