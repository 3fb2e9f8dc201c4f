"""Ctrl-C where a library that is interrupted would tell of it at length, or leave threads."""
import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Lets what is within come to its end before Ctrl-C is heard; a second one is heard at once.

  In other threads than the main one, which do not hear it, and where the program ignores it or has
  left it to the system, nothing is changed.
  """
  usual = signal.getsignal(signal.SIGINT)
  if threading.current_thread() is not threading.main_thread() or not callable(usual):
    yield
    return
  heard = []

  def note(*args):
    heard.append(args)
    signal.signal(signal.SIGINT, usual)

  signal.signal(signal.SIGINT, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, usual)
  if heard:
    usual(*heard[0])
