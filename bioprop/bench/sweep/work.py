"""Trains the runs of a sweep, together with other processes that train the same sweep.

Who works on what. A process takes a run by a lock on its directory (flock), which the system lets
go of when the process ends, however it ends. It takes as many runs at once as one program can
train, and looks again when they are done; what another process holds it leaves, and comes back to
it: if the other was killed, the run goes on from its last checkpoint. A process ends when all runs
are done. Several machines share a sweep through a file system that has locks (NFS from version 4).
"""
import contextlib
import pathlib
import time
from collections.abc import Sequence

import jax

from bioprop.bench import pictures, plots
from bioprop.bench.sweep.board import Board
from bioprop.bench.sweep.plan import Run
from bioprop.bench.sweep.table import DIVERGED, is_done
from bioprop.errors import BiopropError, DataError, DivergedError, InUseError, WorkdirError
from bioprop.training import files, loop, metrics, together, workdir
from bioprop.training.trainer import Trainer

_LOOK_AGAIN = 2.0  # Seconds.
_PICTURE = 'curves.png'


def train(runs: Sequence[Run], data_dir: str | None, *, replicas: int | None = None,
          limit_gib: float | None = None, board: Board | None = None) -> dict[pathlib.Path, str]:
  """Trains what is not there yet, and draws each run's pictures.

  A run that diverged is noted in its directory's diverged.txt and not tried again; delete the file
  to do so.

  Args:
    runs: of the sweep.
    data_dir: folder of prepared datasets.
    replicas: at most so many runs are taken at once; None: as many as are alike.
    limit_gib: memory that one program may take on a device; None: most of what there is.
    board: what shows how far it is.

  Returns:
    By directory, why runs failed otherwise than by diverging; the next call tries them again.

  Raises:
    WorkdirError: also if a directory holds a run of another configuration.
    DataError: if the dataset is missing.
  """
  board = board or Board(runs)
  failed: dict[pathlib.Path, str] = {}
  left = list(runs)
  while left := [one for one in left if one.path not in failed and not is_done(one)]:
    with contextlib.ExitStack() as stack:
      taken, trainers = _take(left, data_dir, replicas, stack, failed)
      if taken:
        board.take(taken)
        outcomes = loop.run_held(trainers, [one.path for one in taken], board, limit_gib)
        for one, outcome in zip(taken, outcomes):
          if isinstance(outcome, BiopropError):
            _note(one, outcome, failed)
          if one.path not in failed:  # Its records have grown, if it was tried before.
            _draw(one)
          board.done(one)
        del trainers
        jax.clear_caches()  # The next runs are of another shape.
    if not taken and any(one.path not in failed for one in left):
      board.waits()
      time.sleep(_LOOK_AGAIN)
  for one in runs:  # Those that a kill left without pictures.
    if is_done(one) and not (one.path / _PICTURE).exists():
      with contextlib.suppress(InUseError), workdir.opened(one.path, one.config):
        _draw(one)
  return failed


def _take(left, data_dir, replicas, stack, failed):
  """Runs that are alike and that nobody else holds, held from now on, and their trainers."""
  taken: list[Run] = []
  trainers: list[Trainer] = []
  likeness, sound = None, set()
  for one in left:
    own = together.likeness(one.config)
    if taken and (own is None or own != likeness or len(taken) == replicas):
      continue
    if workdir.is_held(one.path):
      continue
    try:
      # What is wrong with a run shows before its directory is made.
      trainer = Trainer(one.config, data_dir, like=trainers[0] if trainers else None)
      if (kind := together.but_for_seed(one.config)) not in sound:
        jax.eval_shape(trainer.init)
        sound.add(kind)
      stack.enter_context(workdir.opened(one.path, one.config))
    except InUseError:  # Taken since.
      continue
    except DataError:
      raise
    except WorkdirError as error:
      raise _elsewhere(error) from error
    except BiopropError as error:
      failed[one.path] = ' '.join(str(error).split())
      continue
    if is_done(one):  # By another process, since.
      continue
    taken.append(one)
    trainers.append(trainer)
    likeness = own
    if own is None:
      break
  return taken, trainers


def _elsewhere(error):
  """The error; where it names --workdir, which a sweep has not, with what to type here."""
  if '--workdir' not in str(error):
    return error
  return WorkdirError(f'{error} That is for bioprop train: sweep into another directory, bioprop '
                      'sweep OTHER ...')


def _note(one, error, failed):
  if isinstance(error, DivergedError):
    with files.replacing(one.path / DIVERGED) as file:
      file.write(f'{error}\n'.encode())
  else:
    failed[one.path] = ' '.join(str(error).split())


def _draw(one):
  """Draws a run's curves and what its probes found."""
  if metrics.read(one.path):
    if metrics.is_finished(one.path):
      pictures.draw(one.path, one.path)
    plots.curves(one.path, one.path / _PICTURE)  # The last: it says that all are there.
