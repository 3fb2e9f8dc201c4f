"""The probes of a run: config.probes, what they measure on, and the files they write.

    config.probes.entk = dict(type='entk', every=500, batch=64)

measures at the first step of every epoch, at every 500th after it, and after the last step of all,
on 64 training examples, as many of each class, in evaluation mode. A measurement is one file,
WORKDIR/probes/<name>/<step>.npz, step being the number of updates made, with

    step       []      that number
    labels     [n]     of the examples, in the order of all else; ascending where they are classes
    <others>           as the type's function in bioprop/probes/types.py says

type='theory' sets the network beside its limit of infinite width, which is found before the first
step; it predicts the loss too where each step is plain SGD (no momentum, decay, clipping or
augmentation) on all training examples and the probe's batch is these: config.batch_size and the
probe's batch are then the number of training examples.

All scalars go to TensorBoard, those of the whole network into the epoch's line of metrics.jsonl
too, as '<probe>/<name>': the last ones of the epoch.
"""
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from bioprop.errors import ConfigError, TheoryError, WorkdirError
from bioprop.probes import PREDICTED, TYPES, Descent, Lazy, Probe, find_lazy
from bioprop.probes.point import Batch
from bioprop.training import files
from bioprop.training import workdir as workdir_lib
from bioprop.training.state import State
from bioprop.training.step import Examples, Task

_FOLDER, _NOTE = 'probes', 'probe.json'
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
    if options.type not in (valid := (*TYPES, *PREDICTED)):
      raise ConfigError(f'{at}.type is {options.type!r}; valid: {", ".join(valid)}.')
    for key in ('every', 'batch', 'block'):
      value = options.get(key, 1)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f'{at}.{key} is {value!r}, and must be a whole number of at least 1.')
  if config.probes and config.distributed:
    raise ConfigError('probes measure on one device, and config.distributed divides the network '
                      'over processes. Leave config.distributed out, or the probes.')


def make(config: ml_collections.ConfigDict, task: Task, data: Examples,
         start: Callable[[], State], schedule: Callable[[int], Any],
         like: Probe | None = None) -> tuple[Scheduled, ...]:
  """Makes the probes of a run; computes nothing but the limits that those of type theory ask for.

  Args:
    config: of the run, checked.
    task: of the run.
    data: the training examples.
    start: gives the state before the first step.
    schedule: the learning rate by step.
    like: a probe of the same model whose compiled functions serve these too.

  Raises:
    ConfigError: if there are not as many examples.
    TheoryError: if a probe is of type theory, and the model or its rule has no limit.
  """
  scheduled = []
  for name, options in config.probes.items():
    chosen = balanced(np.asarray(data.labels), options.batch, config.seed, name)
    labels = np.asarray(data.labels)[chosen]
    images = task.normalise(jax.numpy.asarray(np.asarray(data.images)[chosen]))
    lazy = None
    if options.type in PREDICTED:
      descent = None
      if _is_descent(config, task, len(data.labels), options.batch):
        descent = _descent(config, task, images, start, schedule)
      lazy = _lazy(name, task, Batch(images, jax.numpy.asarray(labels)), options.get('block'),
                   descent)
    scheduled.append(Scheduled(name, options.every, labels, Probe(
        task.model, None, (images, labels), types=(options.type,), loss=task.loss,
        block=options.get('block'), rngs={'feedback': task.key('step')},
        like=scheduled[0].probe if scheduled else like, lazy=lazy, train=False)))
  return tuple(scheduled)


def _is_descent(config, task: Task, examples: int, batch: int) -> bool:
  """Whether each step is plain gradient descent on just the examples that a probe sees."""
  plain = config.optimizer == 'sgd' and not config.momentum and not config.weight_decay
  whole = batch == examples == config.batch_size
  return (plain and whole and config.clip_norm is None and config.augment == 'none'
          and not task.masked)


def _descent(config, task: Task, images, start, schedule) -> Descent | None:
  """None where outputs have positions."""
  outputs = task.model.apply(_variables(start()), images, train=False,
                             rngs={'feedback': task.key('step')})
  if outputs.ndim != 2:
    return None
  return Descent(outputs, np.asarray([float(schedule(step)) for step in range(config.epochs)]))


def _lazy(name: str, task: Task, batch: Batch, block: int | None, descent: Descent | None) -> Lazy:
  try:
    # As it is trained: in evaluation mode, dropout would be nothing.
    return find_lazy(task.model, batch, task.loss, block=block, descent=descent, train=True)
  except TheoryError as error:
    raise _no_limit(name, error) from error


def _no_limit(name: str, why: Any) -> TheoryError:
  return TheoryError(f'config.probes.{name} compares the network with the limit of infinite width, '
                     f'and it has none: {why} Or leave out config.probes.{name}.')


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
    variables = _variables(state)
  for name, _, labels, probe in due:
    step = int(state.step)
    yield Measured(name, step, labels, probe.measure(variables, step))


def _variables(state: State) -> dict[str, Any]:
  """The model's variables, on one device."""
  variables = {'params': state.params, **state.model_state}
  if any(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(variables)):
    return jax.tree.map(jax.numpy.asarray, jax.device_get(variables))
  return variables


def write(workdir: pathlib.Path, measured: Measured) -> None:
  """Writes one measurement; a kill meanwhile leaves no half of it."""
  path = path_of(workdir, measured.name, measured.step)
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

  Those of the run's configuration come before those that were measured afterwards.

  Raises:
    WorkdirError: if the directory holds no run, or a probe has found nothing yet.
  """
  found = {}
  for probes in (workdir_lib.config_of(run).get('probes', {}), noted(run)):
    for name, options in probes.items():
      found.setdefault(options['type'], read(run, name))
  return found


def path_of(workdir: str | os.PathLike, name: str, step: int) -> pathlib.Path:
  """Returns the file of one measurement, be it there or not."""
  return pathlib.Path(workdir) / _FOLDER / name / f'{step:08d}.npz'


def note(workdir: str | os.PathLike, name: str, options: Mapping[str, Any]) -> None:
  """Writes what a probe measures that is not in the run's configuration."""
  path = path_of(workdir, name, 0).with_name(_NOTE)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    file.write(f'{json.dumps(dict(options), sort_keys=True)}\n'.encode())


def noted(workdir: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Returns what the probes of a run measure that are not in its configuration, by name.

  Raises:
    WorkdirError: if such a file is damaged.
  """
  found = {}
  for path in sorted((pathlib.Path(workdir) / _FOLDER).glob(f'*/{_NOTE}')):
    try:
      found[path.parent.name] = json.loads(path.read_text('utf-8'))
      valid = found[path.parent.name]['type'] in (*TYPES, *PREDICTED)
    except (OSError, ValueError, TypeError, KeyError):
      valid = False
    if not valid:
      raise WorkdirError(f'{path} is damaged: it does not say what was measured. Put the file '
                         f'back, or move {path.parent} away and measure again.')
  return found
