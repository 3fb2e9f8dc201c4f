"""Ctrl-C while orbax works: heard when it is done, and the checkpoint is whole."""
import signal
import threading

import pytest

from bioprop.training import metrics
from bioprop.training.checkpoint import Checkpoints
from bioprop.training.interrupts import deferred


@pytest.fixture(autouse=True)
def _hearing():
  """A test run in the background of a shell ignores SIGINT."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_it_is_heard_at_the_end_and_the_second_at_once():
  done = []
  with pytest.raises(KeyboardInterrupt), deferred():
    signal.raise_signal(signal.SIGINT)
    done.append('first')
  assert done == ['first'] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
  with pytest.raises(KeyboardInterrupt), deferred():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    done.append('second')
  assert done == ['first']


def test_an_error_is_not_hidden_and_no_handler_is_left():
  with pytest.raises(OSError, match='full'), deferred():
    signal.raise_signal(signal.SIGINT)
    raise OSError('full')
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_elsewhere_nothing_is_changed():
  seen = []

  def work():
    with deferred():
      seen.append(signal.getsignal(signal.SIGINT))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  work()
  assert seen == [signal.default_int_handler, signal.SIG_IGN]


def test_tensorboard_is_not_interrupted(tmp_path, monkeypatch):
  log, steps = metrics.MetricsLog(tmp_path, 0, 0), []

  def flush():
    signal.raise_signal(signal.SIGINT)
    steps.append('flushed')

  monkeypatch.setattr(log._board, 'flush', flush)
  with pytest.raises(KeyboardInterrupt):
    log.write({'epoch': 1, 'train_loss': 1.0}, 1)
  log.close()
  assert steps == ['flushed']


@pytest.mark.parametrize('name', ['save', 'wait_until_finished', 'close'])
def test_orbax_is_not_interrupted(tmp_path, monkeypatch, name):
  steps = []

  class Manager:
    """Stands for orbax, and is interrupted in one of its methods."""

    def __init__(self, *args, **kwargs):
      pass

    def __getattr__(self, method):
      def called(*args, **kwargs):
        if method == name:
          signal.raise_signal(signal.SIGINT)
        steps.append(method)
      return called

  monkeypatch.setattr('bioprop.training.checkpoint.ocp.CheckpointManager', Manager)
  checkpoints = Checkpoints(tmp_path, keep=2)
  with pytest.raises(KeyboardInterrupt):
    checkpoints._save(1, {})
    checkpoints.close()
  assert steps[-1] == name
