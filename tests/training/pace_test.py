"""Which epochs get a checkpoint, by a clock that stands still unless it is told."""
import time

import pytest

from bioprop.training import base
from bioprop.training.pace import Pace


@pytest.fixture
def clock(monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


def _config(epochs, every=1, keep=2):
  config = base()
  config.epochs, config.checkpoint_every, config.keep = epochs, every, keep
  return config


def _saved(config, clock, seconds, epoch_takes, first=1):
  """The epochs that are saved, if saving and an epoch take so long."""
  pace, found = Pace(config), []
  for epoch in range(first, config.epochs + 1):
    clock[0] += epoch_takes
    if pace.is_due(epoch):
      found.append(epoch)
      clock[0] += seconds
      pace.saved(seconds)
  return found


@pytest.mark.parametrize('epochs, every, keep, kept', [
    (30, 1, 2, [29, 30]), (30, 1, 3, [28, 29, 30]), (3, 1, 5, [1, 2, 3]), (1, 1, 2, [1]),
    (10, 4, 2, [8, 10]), (12, 4, 2, [8, 12]), (10, 4, 3, [4, 8, 10]), (5, 10**6, 2, [5])])
def test_what_stays_is_what_stayed_when_all_were_saved(clock, epochs, every, keep, kept):
  """However slow the disk is; of the others the first alone is written then."""
  saved = _saved(_config(epochs, every, keep), clock, seconds=1000, epoch_takes=1)
  assert saved[-keep:] == kept
  assert saved == sorted({min(every, epochs), *kept})


def test_where_epochs_are_long_all_are_saved(clock):
  assert _saved(_config(6), clock, seconds=1, epoch_takes=60) == [1, 2, 3, 4, 5, 6]


def test_where_epochs_are_short_saving_takes_a_tenth_of_the_time(clock):
  # .1 s of writing after each of .1 s: one in nine epochs, .9 s.
  assert _saved(_config(40), clock, seconds=0.1, epoch_takes=0.1001) == [1, 10, 19, 28, 37, 39, 40]


def test_a_run_that_goes_on_saves_its_first_epoch(clock):
  assert _saved(_config(40), clock, seconds=1000, epoch_takes=1, first=20) == [20, 39, 40]
