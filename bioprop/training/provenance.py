"""Where a run came from and what it costs: WORKDIR/environment.json, for reports.

    versions          of bioprop, of the libraries that compute, and of Python
    device, host      what it runs on
    git               revision of bioprop's source and whether it was changed; null outside a clone
    started           UTC
    parameters, batch_size, steps_per_epoch
    flops             of one training step, forward and backward, by XLA's cost analysis
"""
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
import numpy as np

from bioprop.errors import WorkdirError
from bioprop.training import cost, files, workdir
from bioprop.training import step as step_lib
from bioprop.training.state import State
from bioprop.training.trainer import Trainer

_LIBRARIES = ('bioprop', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SECONDS = 10  # That git may take, on a slow disk.


def record(directory: pathlib.Path, trainer: Trainer, state: State,
           like: pathlib.Path | None = None) -> None:
  """Writes environment.json of a new run; traces a step twice, and computes nothing.

  Args:
    directory: of the run.
    trainer: of the run.
    state: before the first step; shapes will do.
    like: directory of a run that differs in nothing but numbers: its steps cost the same.

  Raises:
    WorkdirError: if the file cannot be written.
  """
  path = directory / workdir.ENVIRONMENT
  known = read(like) if like is not None else None
  if known is None:
    forward, backward = step_flops(trainer, state)
    known = {'flops': {'forward': forward, 'backward': backward}}
  found = {
      'versions': {**{name: _version(name) for name in _LIBRARIES},
                   'python': platform.python_version()},
      'device': {'platform': jax.default_backend(), 'kind': jax.devices()[0].device_kind,
                 'count': jax.device_count()},
      'host': {'system': platform.platform(), 'cpu': _cpu(), 'cores': os.cpu_count()},
      'git': _revision(_ROOT),
      'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
      'batch_size': trainer.task.batch_size,
      'steps_per_epoch': trainer.steps,
      'flops': known['flops'],
  }
  try:
    with files.replacing(path) as file:
      file.write(f'{json.dumps(found, indent=2)}\n'.encode())
  except OSError as error:
    raise WorkdirError(f'cannot write {path}: {error.strerror or error}. Make room, and start the '
                       'same command again.') from error


def read(run: str | os.PathLike) -> dict[str, Any] | None:
  """Returns what a run's environment.json holds, None of a run that has none.

  Raises:
    WorkdirError: if it is damaged.
  """
  path = pathlib.Path(run) / workdir.ENVIRONMENT
  try:
    found = json.loads(path.read_text('utf-8'))
    if not isinstance(found, dict):
      raise ValueError(f'it holds {str(found)[:40]!r}, and not names with values')
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise WorkdirError(f'{path} is damaged ({error}). Restore it, or move it away: a run can do '
                       'without.') from error
  return found


def step_flops(trainer: Trainer, state: State) -> tuple[float | None, float | None]:
  """Returns the operations of a training step's forward pass, and of all else in its gradients.

  The optimiser is left out. What the backend does not count is None.
  """
  shape = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
  state = jax.tree.map(shape, state)
  batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
      (trainer.task.batch_size, *leaf.shape[1:]), leaf.dtype), trainer.train_data)
  forward = cost.flops(lambda state, images: step_lib.apply_train(
      trainer.task, state.params, state.model_state, images, state.step)[0], state, batch.images)
  both = cost.flops(lambda state, batch: step_lib.gradients(trainer.task, state, batch),
                    state, batch)
  return forward, None if None in (forward, both) else both - forward


def _version(library: str) -> str | None:
  """None where it is used from its source, without being installed."""
  try:
    return importlib.metadata.version(library)
  except importlib.metadata.PackageNotFoundError:
    return None


def _cpu() -> str:
  """The model as Linux names it; elsewhere what Python knows."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text('utf-8').splitlines()
  except OSError:
    lines = []
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor() or platform.machine()


def _revision(root: pathlib.Path) -> dict[str, Any] | None:
  """The commit of a clone, and whether files that it tracks were changed since."""
  if not (root / '.git').exists():
    return None
  git = lambda *words: subprocess.run(
      ['git', '-C', root, *words], capture_output=True, text=True, check=True,
      timeout=_SECONDS).stdout.strip()
  try:
    return {'revision': git('rev-parse', 'HEAD'),
            'dirty': bool(git('status', '--porcelain', '--untracked-files=no'))}
  except (OSError, subprocess.SubprocessError):  # No git here, or not a clone that it accepts.
    return None
