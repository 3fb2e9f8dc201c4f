"""Probes that a run did not have: measured on its checkpoints when it is over, or interrupted.

    WORKDIR/probes/<name>/<step>.npz    as of config.probes (training/probing.py)
    WORKDIR/probes/<name>/probe.json    what is measured, as the run's config.json does not say it

The state before the first step is a function of the configuration, and is measured as well.
"""
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from bioprop import data as data_lib
from bioprop.errors import ConfigError, WorkdirError
from bioprop.training import config as config_lib
from bioprop.training import probing, workdir
from bioprop.training.checkpoint import Checkpoints
from bioprop.training.trainer import Trainer


class Moment(NamedTuple):
  """A moment of a run.

  Attributes:
    epoch: after which; 0 is the start.
    step: updates made.
    measured: what was found; None if its file is there already.
  """
  epoch: int
  step: int
  measured: probing.Measured | None


def measure(run: pathlib.Path, name: str, options: Mapping[str, Any],
            data_dir: str | None = None) -> Iterator[Moment]:
  """Measures a run at its start and at each of its checkpoints, and writes what was found.

  Nothing that is there is written over.

  Args:
    run: the run's directory.
    name: of the probe.
    options: its type, batch and, perhaps, block, as in config.probes.
    data_dir: folder of prepared datasets.

  Raises:
    WorkdirError: if there is no run, it is being trained, or a probe of this name has measured
      something else.
    ConfigError, DataError, TheoryError, MeasureError: as a run with this probe.
    CheckpointError: if a checkpoint is damaged.
  """
  found = workdir.config_of(run)
  _refuse_other(run, name, options, found)
  config = as_config(found)
  # Where it computes is not what it is.
  config.update({place: None for place in config_lib.PLACEMENT})
  config.probes = ml_collections.ConfigDict({name: {**options, 'every': 1}})
  probing.check(config)
  data = data_lib.load(config.dataset, data_dir, validation=config.validation)
  _refuse_large(options['batch'], min(len(data.train.labels), config.examples or 2**63))
  with workdir.opened(run, ml_collections.ConfigDict(found)):
    trainer = Trainer(config, data=data)
    checkpoints = Checkpoints(run / 'checkpoints', config.keep)
    for epoch in (0, *checkpoints.epochs()):
      step = epoch * trainer.steps
      if probing.path_of(run, name, step).exists():
        yield Moment(epoch, step, None)
        continue
      state = trainer.init()
      state = checkpoints.restore(epoch, state) if epoch else state
      (measured,) = probing.measure(trainer.probes, state, None)
      if name not in found.get('probes', {}):
        probing.note(run, name, options)
      probing.write(run, measured)
      yield Moment(epoch, step, measured)


def as_config(found: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns the configuration that a run's config.json holds, with what is new since then."""
  config = config_lib.base()
  config.update(_tuples(found))
  return config


def _tuples(value):
  """Lists of JSON as the tuples that they were."""
  if isinstance(value, Mapping):
    return {name: _tuples(one) for name, one in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _refuse_other(run, name, options, found):
  """Raises WorkdirError if files of this name are of another measurement."""
  there = found.get('probes', {}).get(name) or probing.noted(run).get(name)
  if there is None:
    if list(probing.path_of(run, name, 0).parent.glob('*.npz')):
      raise WorkdirError(f'{run} has measurements named {name!r}, and nothing says of what. They '
                         f'are left as they are: type another name, --name={name}-2.')
    return
  lines = workdir.differences(*({key: one.get(key) for key in ('type', 'batch')}
                                for one in (there, options)))
  if lines:
    raise WorkdirError(f'{run} has measurements named {name!r} of something else, which are left '
                       f'as they are: {"; ".join(lines)}. Type another name, --name={name}-2.')


def _refuse_large(batch, examples):
  if batch > examples:
    raise ConfigError(f'--batch is {batch}, and the run has {examples} training examples. Type '
                      f'--batch={min(64, examples)}.')
