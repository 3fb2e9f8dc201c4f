"""The record of a run: JSON lines for programs, TensorBoard events for eyes."""
import json
import os
import pathlib

import tensorboardX

from bioprop.errors import WorkdirError

_NAME = 'metrics.jsonl'


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
      WorkdirError: if a line of an earlier epoch is missing.
    """
    self.workdir = workdir
    self._path = workdir / _NAME
    self._cut(epoch)
    self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

  def write(self, record: dict, step: int) -> None:
    """Appends one line, on the disk when this returns, and its numbers to TensorBoard."""
    with open(self._path, 'a') as file:
      file.write(json.dumps(record) + '\n')
      file.flush()
      os.fsync(file.fileno())
    self.draw({name: value for name, value in record.items() if isinstance(value, float)}, step)
    self._board.flush()

  def draw(self, scalars: dict[str, float], step: int) -> None:
    """Gives numbers to TensorBoard alone."""
    for name, value in scalars.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Ends the TensorBoard events."""
    self._board.close()

  def _cut(self, epoch):
    lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
    kept = lines[:epoch]
    found = [record.get('epoch') for record in _parse(kept)]
    if found != list(range(1, epoch + 1)):
      raise WorkdirError(
          f'{self._path} should start with the lines of epochs 1 to {epoch}, which the checkpoint '
          f'follows, but has {found or "none of them"}. Put the file back, or train in another '
          '--workdir.')
    if len(lines) > epoch:
      # Replaced as a whole: a kill in between leaves the old file.
      short = self._path.with_suffix('.jsonl.new')
      short.write_bytes(b''.join(kept))
      os.replace(short, self._path)


def read(workdir: str | os.PathLike) -> list[dict]:
  """Returns a run's records: one per epoch and, if it is finished, the final one.

  A last line that was cut short by a kill is left out.
  """
  path = pathlib.Path(workdir) / _NAME
  return _parse(path.read_bytes().splitlines(keepends=True)) if path.exists() else []


def is_finished(workdir: str | os.PathLike) -> bool:
  """Whether a run has its final record."""
  records = read(workdir)
  return bool(records) and 'test_loss' in records[-1]


def _parse(lines):
  records = []
  for line in lines:
    try:
      record = json.loads(line)
    except ValueError:
      break
    if not line.endswith(b'\n') or not isinstance(record, dict):
      break
    records.append(record)
  return records
