"""Checkpoints that are whole or refused: orbax writes them, a digest of every bit vouches for them.

Orbax writes beside the final place and renames, so a killed run leaves no half-written checkpoint
under a checkpoint's name. What happens to the files later (bad disk, truncation, a careless hand)
shows when the digest is recomputed from what was read.
"""
import functools
import hashlib
import json
import pathlib
import shlex
import sys

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from bioprop.errors import CheckpointError, WorkdirError
from bioprop.training import distributed, interrupts, mesh
from bioprop.training.state import State


class Checkpoints:
  """The checkpoints of one run, by epoch, in one directory; close it to wait for the last one."""

  def __init__(self, directory: pathlib.Path, keep: int):
    self._directory = directory.absolute()
    self._keep = keep
    self._manager = None  # Made at the first save: it would trip over damaged checkpoints.

  def epochs(self) -> list[int]:
    """Epochs after which a checkpoint was written, in order, damaged ones included."""
    if not self._directory.is_dir():
      return []
    return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

  def last(self) -> int:
    """The last of `epochs()`, 0 if there is none; the same in every process."""
    return distributed.from_first(lambda: max(self.epochs(), default=0))

  def save(self, epoch: int, state: State) -> None:
    """Starts to write the state after `epoch`, and drops the oldest beyond `keep`.

    Process 0 writes; where the state lies in several processes, all must call this.

    Raises:
      WorkdirError: if the disk does not take it.
    """
    # Copied: the next epoch donates these buffers while orbax writes in the background.
    tree = jax.tree.map(mesh.gather, flax.serialization.to_state_dict(state))
    distributed.on_first(lambda: self._save(epoch, tree))

  def _save(self, epoch, tree):
    try:
      if self._manager is None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self._directory, options=ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, save_root_metadata=False, create=False,
            multiprocessing_options=_alone()))
      with interrupts.deferred():  # orbax would log a traceback.
        self._manager.save(epoch, args=ocp.args.Composite(
            state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave({'sha256': digest(tree)})))
    except OSError as error:
      raise self._unwritten(error) from error

  def wait(self) -> None:
    """Returns, in every process, when all that was saved is on the disk.

    Raises:
      WorkdirError: if the disk did not take it.
    """
    distributed.on_first(self._wait)

  def close(self) -> None:
    """Waits for what this process writes, and ends the writing thread."""
    if self._manager is not None:
      self._wait()
      with interrupts.deferred():
        self._manager.close()
      self._manager = None

  def _wait(self):
    if self._manager is not None:
      try:
        with interrupts.deferred():
          self._manager.wait_until_finished()
      except OSError as error:
        raise self._unwritten(error) from error

  def restore(self, epoch: int, template: State) -> State:
    """Returns the state after `epoch`, bit for bit as it was saved.

    Args:
      epoch: one of `epochs()`.
      template: a state of the same structure, shapes and dtypes.

    Raises:
      CheckpointError: if it cannot be read, is not what was written, or is of another model.
    """
    try:
      return _like(template, self._read(epoch))
    except CheckpointError as error:
      raise CheckpointError(self._advice(epoch, error)) from error

  def _read(self, epoch):
    """The tree that was saved, if it is."""
    path = self._directory / str(epoch)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_without_late_reads, hook)
    try:
      checkpointer = ocp.Checkpointer(
          ocp.CompositeCheckpointHandler(), multiprocessing_options=_alone())
      read = checkpointer.restore(path, ocp.args.Composite(
          state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()))
      tree, expected = read['state'], read['meta']['sha256']
      found = digest(tree)
    except Exception as error:  # Damaged files surface from orbax and tensorstore as anything.
      logging.debug('checkpoint %s', path, exc_info=True)
      reason = ' '.join(str(error).split())[:200]
      raise CheckpointError(f'it cannot be read ({type(error).__name__}: {reason})') from error
    sys.unraisablehook = hook  # After a failure it stays: the other reads may still be under way.
    if found != expected:
      raise CheckpointError(
          f'its contents are not what was written (sha256 {found[:12]}, expected '
          f'{str(expected)[:12]})')
    return tree

  def _advice(self, epoch, error):
    """One paragraph: which checkpoint, what is wrong, and how to go on without it."""
    path = self._directory / str(epoch)
    aside = self._directory.parent / f'damaged-{epoch}'
    number = 1
    while aside.exists():
      number += 1
      aside = self._directory.parent / f'damaged-{epoch}-{number}'
    move = f'mv {shlex.quote(str(path))} {shlex.quote(str(aside))}'
    for older in reversed([other for other in self.epochs() if other < epoch]):
      try:
        self._read(older)
      except CheckpointError:
        continue
      younger = [other for other in self.epochs() if older < other < epoch]
      also = f' (and likewise {", ".join(map(str, younger))}, also damaged)' if younger else ''
      return (f'the checkpoint of epoch {epoch}, {path}, is damaged: {error}. Nothing was changed. '
              f'The one of epoch {older} is whole. To go back to it, move this one away{also} and '
              f'start the same command again: {move}')
    return (f'the checkpoint of epoch {epoch}, {path}, is damaged: {error}. Nothing was changed, '
            'and there is no older one to go back to: train again in another --workdir.')

  def _unwritten(self, error):
    return WorkdirError(f'cannot write a checkpoint into {self._directory}: {error}. Older '
                        'checkpoints are untouched: make room, and start the same command again.')


def digest(tree: dict) -> str:
  """Returns the sha256 over every leaf of nested dicts: its path, dtype, shape and bytes."""
  result = hashlib.sha256()
  for path, leaf in sorted(_leaves(tree), key=lambda item: item[0]):
    header = json.dumps([path, str(leaf.dtype), list(leaf.shape)])
    result.update(header.encode())
    result.update(np.ascontiguousarray(leaf).tobytes())
  return result.hexdigest()


def _alone():
  """Keeps orbax from waiting for other processes: one writes, and each reads for itself."""
  own = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def _without_late_reads(hook, unraisable):
  """Drops what orbax's other reads report when the first one has failed and their loop is gone."""
  if 'Event loop is closed' not in str(unraisable.exc_value):
    hook(unraisable)


def _leaves(tree, prefix=''):
  """Yields (path, leaf) of nested dicts."""
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}/{name}')
    else:
      yield f'{prefix}/{name}', value


def _like(template, tree):
  """The tree as a State where the template lies, if it is of the template's model and optimiser."""
  kind = lambda leaf: f'{leaf.dtype}{list(leaf.shape)}'
  wanted = flax.serialization.to_state_dict(template)
  expected = {path: kind(leaf) for path, leaf in _leaves(wanted)}
  found = {path: kind(leaf) for path, leaf in _leaves(tree)}
  differing = [path for path in sorted({*expected, *found})
               if expected.get(path) != found.get(path)]
  if differing:
    path = differing[0]
    raise CheckpointError(
        f'it is of another model or optimiser than this code builds ({len(differing)} leaves '
        f'differ; {path} is {found.get(path, "missing")} there and {expected.get(path, "missing")} '
        'here)')
  return jax.tree.map(mesh.put_like, template, flax.serialization.from_state_dict(template, tree))
