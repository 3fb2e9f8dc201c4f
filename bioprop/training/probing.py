"""The probes of a run: config.probes, what they measure on, and the files they write.

    config.probes.entk = dict(type='entk', every=500, batch=64)

measures at the first step of every epoch, at every 500th after it, and after the last step of all,
on 64 training examples, as many of each class, in evaluation mode. A measurement is one file,
WORKDIR/probes/<name>/<step>.npz, step being the number of updates made, with

    step       []      that number
    labels     [n]     of the examples, in the order of all else; ascending where they are classes
    <others>           as the type's function in bioprop/probes/types.py says

All scalars go to TensorBoard, those of the whole network into the epoch's line of metrics.jsonl
too, as '<probe>/<name>': the last ones of the epoch.
"""
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from bioprop.errors import ConfigError, WorkdirError
from bioprop.probes import TYPES, Probe
from bioprop.training import files
from bioprop.training import workdir as workdir_lib
from bioprop.training.state import State
from bioprop.training.step import Examples, Task

_FOLDER = 'probes'
_OPTIONS = {'type': str, 'every': int, 'batch': int, 'block': int}


class Scheduled(NamedTuple):
  """One probe of a run.

  Attributes:
    name: its key in config.probes.
    every: steps between two measurements of an epoch.
    labels: of its batch, [n].
    probe: what measures.
  """
  name: str
  every: int
  labels: np.ndarray
  probe: Probe


class Measured(NamedTuple):
  """What a probe found after `step` updates."""
  name: str
  step: int
  labels: np.ndarray
  found: Mapping[str, np.ndarray]

  @property
  def scalars(self) -> dict[str, float]:
    """The scalars that have a value, as '<probe>/<name>'."""
    return {f'{self.name}/{key}': float(value) for key, value in self.found.items()
            if value.ndim == 0 and np.isfinite(value)}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError where a probe cannot be what config.probes says."""
  for name, options in config.probes.items():
    at = f'config.probes.{name}'
    if not isinstance(options, ml_collections.ConfigDict):
      raise ConfigError(f'{at} is {options!r}, and must say what to measure and when: '
                        f'{at} = dict(type=\'entk\', every=500, batch=64).')
    if '/' in name:
      raise ConfigError(f'{at} has a slash in its name, which is that of a folder: leave it out.')
    if unknown := sorted(set(options) - set(_OPTIONS)):
      raise ConfigError(f'{at} has {unknown[0]!r}; a probe has {", ".join(_OPTIONS)}.')
    for key in ('type', 'every', 'batch'):
      if key not in options:
        raise ConfigError(f'{at} lacks {key!r}: {at} = dict(type=\'entk\', every=500, batch=64).')
    if options.type not in tuple(TYPES):
      raise ConfigError(f'{at}.type is {options.type!r}; valid: {", ".join(TYPES)}.')
    for key in ('every', 'batch', 'block'):
      value = options.get(key, 1)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f'{at}.{key} is {value!r}, and must be a whole number of at least 1.')
  if config.probes and config.distributed:
    raise ConfigError('probes measure on one device, and config.distributed divides the network '
                      'over processes. Leave config.distributed out, or the probes.')


def make(config: ml_collections.ConfigDict, task: Task, data: Examples) -> tuple[Scheduled, ...]:
  """Makes the probes of a run; compiles nothing.

  Args:
    config: of the run, checked.
    task: of the run.
    data: the training examples.

  Raises:
    ConfigError: if there are not as many examples.
  """
  scheduled = []
  for name, options in config.probes.items():
    chosen = balanced(np.asarray(data.labels), options.batch, config.seed, name)
    labels = np.asarray(data.labels)[chosen]
    images = task.normalise(jax.numpy.asarray(np.asarray(data.images)[chosen]))
    scheduled.append(Scheduled(name, options.every, labels, Probe(
        task.model, None, (images, labels), types=(options.type,), loss=task.loss,
        block=options.get('block'), rngs={'feedback': task.key('step')},
        like=scheduled[0].probe if scheduled else None, train=False)))
  return tuple(scheduled)


def balanced(labels: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
  """Which examples a probe sees: as many of each class, give or take one, ordered by class.

  Args:
    labels: classes [examples]; others (of texts, quantities) are drawn without regard to them.
    count: how many.
    seed: of the draw.
    name: of the probe, for messages.

  Returns:
    Indices [count].

  Raises:
    ConfigError: if there are not as many examples.
  """
  order = np.random.RandomState(seed).permutation(len(labels))
  if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
    # The first of each class, then the second of each, and so on.
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
      own = order[labels[order] == label]
      rank[own] = np.arange(len(own))
    order = order[np.argsort(rank[order], kind='stable')]
    order = np.concatenate([order[:count][np.argsort(labels[order[:count]], kind='stable')],
                            order[count:]])
  if count > len(labels):
    raise ConfigError(
        f'config.probes.{name}.batch is {count}, and only {len(labels)} training examples are '
        f'there. Type --config.probes.{name}.batch={min(64, len(labels))}.')
  return order[:count]


def until_next(probes: tuple[Scheduled, ...], at: int, steps: int) -> int:
  """How many steps, at most `steps`, lead from an epoch's step `at` to when a probe is due next."""
  return min([steps, *(probe.every - at % probe.every for probe in probes)])


def measure(probes: tuple[Scheduled, ...], state: State, at: int | None) -> Iterator[Measured]:
  """Measures with the probes that are due.

  Args:
    probes: of the run.
    state: before the step.
    at: the step's number in its epoch, counted from 0; None: after the last of all.
  """
  due = [probe for probe in probes if at is None or at % probe.every == 0]
  if due:
    variables = {'params': state.params, **state.model_state}
    if any(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(variables)):
      variables = jax.tree.map(jax.numpy.asarray, jax.device_get(variables))  # On one device.
  for name, _, labels, probe in due:
    yield Measured(name, int(state.step), labels, probe.measure(variables))


def write(workdir: pathlib.Path, measured: Measured) -> None:
  """Writes one measurement; a kill meanwhile leaves no half of it."""
  path = _path(workdir, measured.name, measured.step)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    np.savez(file, step=measured.step, labels=measured.labels, **measured.found)


def read(workdir: str | os.PathLike, name: str) -> list[dict[str, np.ndarray]]:
  """Returns what a probe of a run found, in the order of steps.

  Raises:
    WorkdirError: if the run has no such probe, nothing was measured yet, or a file is damaged.
  """
  folder = pathlib.Path(workdir) / _FOLDER
  found = []
  for path in sorted((folder / name).glob('*.npz')):
    try:
      with np.load(path) as arrays:
        found.append(dict(arrays))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
      raise WorkdirError(f'{path} is damaged ({error}). Put the file back, or measure again: train '
                         'in another --workdir.') from error
  if not found:
    there = sorted(item.name for item in folder.iterdir()) if folder.exists() else []
    raise WorkdirError(f'{workdir} has no measurements of a probe {name!r}; it has '
                       f'{", ".join(there) or "none"}. Probes are listed in config.probes.')
  return found


def read_all(run: str | os.PathLike) -> dict[str, list[dict[str, np.ndarray]]]:
  """Returns what the probes of a run found, by type; of several of a type, the first.

  Raises:
    WorkdirError: if the directory holds no run, or a probe has found nothing yet.
  """
  found = {}
  for name, options in workdir_lib.config_of(run).get('probes', {}).items():
    found.setdefault(options['type'], read(run, name))
  return found


def _path(workdir, name, step):
  return pathlib.Path(workdir) / _FOLDER / name / f'{step:08d}.npz'
