"""Another library in a process of its own, asked in turns: a line of JSON each way."""
import contextlib
import json
import pathlib
import subprocess
from typing import Any

from absl import app


class Peer:
  """A program that answers each line of its input, a case, with a line."""

  def __init__(self, python: str, program: pathlib.Path, needs: str):
    """Starts `program` under `python`.

    Args:
      python: the interpreter of an environment in which the program can run.
      program: reads and answers until its input ends.
      needs: what is to be said where it ended.

    Raises:
      UsageError: if `python` cannot be started.
    """
    self._needs = needs
    try:
      self._process = subprocess.Popen(
          [python, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
          stderr=subprocess.DEVNULL, text=True)
    except OSError as error:
      raise app.UsageError(f'{python} cannot be started ({error.strerror}); {needs}') from None

  def ask(self, **case: Any) -> dict[str, Any]:
    """The program's answer.

    Raises:
      UsageError: if the process ended: what it imports is not there.
    """
    try:
      self._process.stdin.write(json.dumps(case) + '\n')
      self._process.stdin.flush()
      return json.loads(self._process.stdout.readline())
    except (BrokenPipeError, ValueError):
      raise app.UsageError(f'{" ".join(self._process.args)} ended; {self._needs}') from None

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):  # It may have ended by itself.
      self._process.communicate()
