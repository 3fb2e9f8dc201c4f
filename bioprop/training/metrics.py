"""The record of a run: JSON lines for programs, TensorBoard events for eyes."""
import json
import numbers
import os
import pathlib
import shlex
from typing import Any

import tensorboardX

from bioprop.errors import WorkdirError
from bioprop.training import files, interrupts

NAME = 'metrics.jsonl'
# Numbers that every line has, of an epoch and of the final result.
_EPOCH = ('train_loss', 'train_accuracy', 'seconds')
_FINAL = ('test_loss', 'test_accuracy')
# What runs on targets have in place of an accuracy.
_FIT = {'train_accuracy': 'train_r2', 'test_accuracy': 'test_r2'}


class MetricsLog:
  """Appends to a run's metrics, from the epoch that it goes on after.

  Lines of later epochs, which an interrupted run wrote after its last checkpoint, are cut: they
  are computed again, to the same numbers.

  Attributes:
    workdir: the run's directory.
  """

  def __init__(self, workdir: pathlib.Path, epoch: int, step: int):
    """Opens the log of a run whose state is the one after `epoch`, with `step` updates.

    Raises:
      WorkdirError: if a line of an earlier epoch is missing or damaged, or the file cannot be
        written.
    """
    self.workdir = workdir
    self._path = workdir / NAME
    self._cut(epoch)
    self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

  def write(self, record: dict, step: int) -> None:
    """Appends one line, on the disk when this returns, and its numbers to TensorBoard.

    Raises:
      WorkdirError: if the disk does not take it.
    """
    try:
      with open(self._path, 'a', opener=files.opened) as file:
        file.write(json.dumps(record) + '\n')
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise _unwritten(self._path, error) from error
    # Interrupted while it waits for its queue, the queue would never be empty again.
    with interrupts.deferred():
      self.draw({name: value for name, value in record.items() if isinstance(value, float)}, step)
      self._board.flush()

  def draw(self, scalars: dict[str, float], step: int) -> None:
    """Gives numbers to TensorBoard alone."""
    with interrupts.deferred():
      for name, value in scalars.items():
        self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Ends the TensorBoard events."""
    with interrupts.deferred():
      self._board.close()

  def _cut(self, epoch):
    lines = _lines(self._path)
    found, fault = _checked(lines[:epoch])
    if fault or len(found) < epoch:
      raise WorkdirError(
          f'{self._path} should start with the lines of epochs 1 to {epoch}, which the checkpoint '
          f'follows, but {fault or f"has {len(found)} lines"}. Put the file back, or train in '
          'another --workdir.')
    if len(lines) > epoch:
      try:
        with files.replacing(self._path) as short:
          short.write(b''.join(lines[:epoch]))
      except OSError as error:
        raise _unwritten(self._path, error) from error


def read(workdir: str | os.PathLike, epochs: int | None = None) -> list[dict]:
  """Returns a run's records: one per epoch and, if it is finished, the final one.

  A last line that was cut short by a kill is left out.

  Args:
    workdir: the run's directory.
    epochs: how many a finished run has; None: any number.

  Raises:
    WorkdirError: if a line is damaged or missing, or follows the final one.
  """
  path = pathlib.Path(workdir) / NAME
  records, fault = _checked(_lines(path), epochs)
  if fault:
    there = shlex.quote(str(workdir))
    raise WorkdirError(
        f'{path} is not as training wrote it: {fault}. Nothing was changed. Put the file back as '
        f'it was, or move the run away and train it again: mv {there} '
        f'{shlex.quote(str(workdir).rstrip("/") + "-damaged")}')
  return records


def is_finished(workdir: str | os.PathLike) -> bool:
  """Whether a run's last whole line is its final record, be the others as they may.

  Raises:
    WorkdirError: if the file cannot be read.
  """
  whole = [line for line in _lines(pathlib.Path(workdir) / NAME) if line.endswith(b'\n')]
  return bool(whole) and 'test_loss' in (_parse(whole[-1]) or {})


def _lines(path):
  try:
    with open(path, 'rb') as file:
      return file.readlines()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise WorkdirError(f'{path} cannot be read: {error.strerror or error}. Put the file back as it '
                       'was, or train in another --workdir.') from error


def _checked(lines, epochs=None):
  """The records up to the first line that is not as training wrote it, and what is wrong there."""
  records = []
  for number, line in enumerate(lines, 1):
    if number == len(lines) and not line.endswith(b'\n'):
      break
    record = _parse(line)
    after_end = records and 'epoch' not in records[-1]
    fault = 'follows the final result' if after_end else _fault(record, number, epochs)
    if fault:
      return records, f'line {number} {fault}'
    records.append(record)
  return records, None


def _parse(line) -> dict[str, Any] | None:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return record if isinstance(record, dict) else None


def _fault(record, number, epochs):
  """What is wrong with the record of a line, None if nothing is."""
  if record is None:
    return 'is no JSON object'
  if 'epoch' in record:
    if record['epoch'] != number:
      return f'is of epoch {record["epoch"]!r} and not of epoch {number}'
  elif 'test_loss' not in record:
    return 'is neither of an epoch nor the final result'
  elif number == 1 or epochs not in (None, number - 1):
    return f'is the final result, after {number - 1}{f" of {epochs}" if epochs else ""} epochs'
  for name in _EPOCH if 'epoch' in record else _FINAL:
    if name not in record and _FIT.get(name) not in record:
      return f'has no {name}'
  for name, value in record.items():
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
      return f'has {name} {value!r}, which is no number'
  return None


def _unwritten(path, error):
  return WorkdirError(f'cannot write {path}: {error.strerror or error}. Make room, and start '
                      'the same command again: it goes on from the last checkpoint.')
