"""A whole run: from a configuration and a directory to results, through any interruption."""
import contextlib
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import tqdm

from bioprop.errors import BiopropError, CheckpointError, DivergedError
from bioprop.training import (
  advice,
  distributed,
  metrics,
  probing,
  provenance,
  together,
  workdir,
)
from bioprop.training.average import Average
from bioprop.training.checkpoint import Checkpoints
from bioprop.training.pace import Pace
from bioprop.training.replicas import Alone, Replicas
from bioprop.training.results import Results
from bioprop.training.trainer import NotFinite, Trainer


class Progress:
  """What of training is shown: nothing here; subclasses show it."""

  def begin(self, runs: int, done: int, total: int) -> None:
    """`runs` are trained together from now on; `done` of `total` steps are made."""

  def steps(self, count: int) -> None:
    """So many steps were made; 0 while waiting for the device."""

  def epoch(self, number: int, of: int, records: Sequence[dict]) -> None:
    """An epoch has ended; the records of those that go on."""

  def end(self) -> None:
    """The runs have ended."""


class Bar(Progress):
  """A progress bar."""

  def begin(self, runs: int, done: int, total: int) -> None:
    """See `Progress`; so for the other methods."""
    self._bar = tqdm.tqdm(total=total, initial=done, unit='step', dynamic_ncols=True)
    self._runs = f'{runs} runs, ' if runs > 1 else ''

  def steps(self, count: int) -> None:
    """See `Progress`."""
    self._bar.update(count)

  def epoch(self, number: int, of: int, records: Sequence[dict]) -> None:
    """See `Progress`."""
    self._bar.set_description(f'{self._runs}epoch {number}/{of}')
    names = ('train_loss', 'train_accuracy', 'validation_accuracy', 'train_r2', 'validation_r2')
    means = {name: sum(record[name] for record in records) / len(records) for name in names
             if records and name in records[0]}
    self._bar.set_postfix({name: f'{mean:.4f}' for name, mean in means.items()})

  def end(self) -> None:
    """See `Progress`."""
    self._bar.close()


def run(
    config: ml_collections.ConfigDict,
    path: str | os.PathLike,
    data_dir: str | None = None,
    progress: bool = True,
) -> Results:
  """Trains a model by a rule, or goes on with the run in `path`, to the same bits.

  Args:
    config: as from `bioprop.training.base`.
    path: the run's directory: new, empty, or of a run with the same configuration; config.mesh and
      config.distributed may differ, and then the numbers go on to rounding, not to the bit.
    data_dir: folder of prepared datasets.
    progress: whether to show a progress bar.

  Raises:
    ConfigError, UnknownRuleError, RuleOptionError: if the configuration names what is not there.
    DataError: if the dataset is missing, or too small for one batch.
    WorkdirError: if the directory cannot be written, or holds something else.
    CheckpointError: if the last checkpoint is damaged.
    DivergedError: if the loss becomes infinite or NaN.
    DistributedError: if another process of the run failed or is gone.
  """
  distributed.join(config)
  distributed.check_same(config)
  with contextlib.ExitStack() as stack:
    stack.enter_context(distributed.needing_all())
    trainer = Trainer(config, data_dir)
    jax.eval_shape(trainer.init)  # What is wrong with the model shows before a directory is made.
    directory = distributed.from_first(lambda: stack.enter_context(workdir.opened(path, config)))
    bar = Bar() if progress and distributed.is_first() else Progress()
    outcome, = run_held([trainer], [directory], bar)
    if isinstance(outcome, BiopropError):
      raise outcome
    return outcome


def run_held(trainers: Sequence[Trainer], directories: Sequence[pathlib.Path], progress: Progress,
             limit_gib: float | None = None) -> list[Results | BiopropError]:
  """Trains, or goes on with, runs whose directories this process holds (`workdir.opened`).

  Those that differ in nothing but numbers are trained by one program (`together.together`), as many
  as memory holds; the others one after the other.

  Args:
    trainers: of the runs, all of one dataset.
    directories: theirs.
    progress: what is shown.
    limit_gib: memory that one program may take on a device; None: most of what there is.

  Returns:
    For each run its results, or why it has none: DivergedError, or CheckpointError.

  Raises:
    WorkdirError: if the disk does not take what is written.
    DistributedError: if another process of the run failed or is gone.
  """
  with contextlib.ExitStack() as stack:
    firsts: dict[Any, pathlib.Path] = {}  # Of those that are alike, the first one's directory.
    runs = []
    for trainer, directory in zip(trainers, directories):
      like = firsts.get(likeness := together.likeness(trainer.config))
      runs.append(_Run(trainer, directory, stack, like if likeness else None))
      firsts.setdefault(likeness, directory)
    waiting: dict[Any, list[_Run]] = {}
    for one in runs:
      if one.error is None and not one.finished:
        key = together.likeness(one.trainer.config)
        waiting.setdefault((id(one) if key is None else key, one.done), []).append(one)
    for alike in waiting.values():
      of = {id(one.trainer): one for one in alike}
      for engine in together.within_memory([one.trainer for one in alike], limit_gib):
        _train(engine, [of[id(trainer)] for trainer in engine.trainers], progress)
    return [one.error or _results(one.trainer.config, one.directory, one.state) for one in runs]


class _Run:
  """One run while it is trained.

  Attributes:
    trainer: its trainer.
    directory: where it is written.
    checkpoints: of it.
    done: epochs that the state has seen.
    state: of the last checkpoint, or after the last step.
    finished: all of it is there already.
    log: of metrics; None of a finished run, and where process 0 has it.
    error: why it cannot go on.
    scalars: the last of each that probes found in an epoch.
  """

  def __init__(self, trainer: Trainer, directory: pathlib.Path, stack: contextlib.ExitStack,
               like: pathlib.Path | None = None):
    self.trainer, self.directory = trainer, directory
    self.error: BiopropError | None = None
    self.log, self.finished, self.scalars = None, False, {}
    config = trainer.config
    self.checkpoints = Checkpoints(directory / 'checkpoints', config.keep)
    stack.callback(self.checkpoints.close)
    self.done = done = self.checkpoints.last()
    self.state = trainer.init()
    try:
      if done:
        self.state = self.checkpoints.restore(done, self.state)
    except CheckpointError as error:
      self.error = error
      return
    records = distributed.from_first(
        lambda: metrics.read(directory, done) if done == config.epochs else [])
    self.finished = len(records) > config.epochs
    if self.finished:
      return
    self.log = distributed.on_first(
        lambda: metrics.MetricsLog(directory, done, int(self.state.step)))
    if self.log:
      stack.callback(self.log.close)
    if not done and distributed.is_first():
      advice.tell(directory, trainer.advice)
      provenance.record(directory, trainer, self.state, like)

  def see(self, measured: probing.Measured) -> None:
    """Keeps what a probe found: in its file, in TensorBoard, and for the epoch's line."""
    if self.log:
      probing.write(self.log.workdir, measured)
      self.log.draw(measured.scalars, measured.step)
    self.scalars.update(measured.scalars)

  def write(self, record: dict, epoch: int) -> None:
    """Adds a line to the log, which is process 0's; if it cannot, all processes fail."""
    distributed.on_first(lambda: self.log.write(record, epoch * self.trainer.steps))

  def explain(self, failure: NotFinite) -> DivergedError:
    """The reason why an epoch could not be."""
    self.checkpoints.wait()
    last = self.checkpoints.last()
    before = self.trainer.init()
    before = self.checkpoints.restore(last, before) if last else before
    try:
      return self.trainer.explain(before, last, failure)
    except NotFinite as earlier:
      return self.explain(earlier)


def _train(engine: Alone | Replicas, runs: list[_Run], progress: Progress) -> None:
  """Trains the epochs after those that are done, and tests the last states."""
  config, steps = runs[0].trainer.config, runs[0].trainer.steps
  progress.begin(len(runs), runs[0].done * steps, config.epochs * steps)
  states = engine.stack([one.state for one in runs])
  for one in runs:
    one.state = None  # `epoch` uses it up.
  pace = Pace(config)
  clock = time.perf_counter()
  for epoch in range(runs[0].done + 1, config.epochs + 1):
    began = time.perf_counter()
    for one in runs:
      one.scalars = {}
    states, outcomes = engine.epoch(
        states, epoch, progress.steps, lambda number, measured: _see(runs[number], measured))
    seconds = time.perf_counter() - began
    for one, outcome in zip(runs, outcomes):
      if one.error is None and isinstance(outcome, NotFinite):
        one.error = one.explain(outcome)
    if all(one.error for one in runs):
      break
    records = [None if one.error else _record(one, epoch, train, validation, seconds / len(runs))
               for one, train, validation in zip(runs, outcomes, engine.validate(states))]
    if all(one.error for one in runs):
      break
    last = epoch == config.epochs
    save = distributed.from_first(lambda number=epoch: pace.is_due(number))
    probed = last and any(one.trainer.probes for one in runs)
    own = list(engine.each(states)) if save or probed else [None] * len(runs)
    for one, record, state in zip(runs, records, own):
      if one.error:
        continue
      if last:
        for measured in probing.measure(one.trainer.probes, state, None):
          one.see(measured)
      # Of the network; those of each layer are in the files.
      record |= {name: value for name, value in one.scalars.items() if name.count('/') == 1}
    now = time.perf_counter()
    elapsed, clock = now - clock, now  # Of everything, the last checkpoint included.
    for one, record, state in zip(runs, records, own):
      if not one.error:
        record['seconds'] = elapsed / len(runs)
        # The line comes first: a checkpoint promises that the lines up to it are there.
        one.write(record, epoch)
        if save:
          one.checkpoints.save(epoch, state)
    if save:
      pace.saved(time.perf_counter() - now)
    progress.epoch(epoch, config.epochs, [record for record in records if record])
  progress.end()
  if not all(one.error for one in runs):
    for one, test, state in zip(runs, engine.test(states), engine.each(states)):
      if not one.error:
        one.state = state
        one.checkpoints.wait()
        one.write(test.named('test'), config.epochs)


def _see(one: _Run, measured: probing.Measured) -> None:
  """What a probe found of a run; of one that has diverged, nothing more."""
  if one.error is None:
    one.see(measured)


def _record(one: _Run, epoch: int, train: Average, validation: Average | None,
            seconds: float) -> dict | None:
  """An epoch's line, without what comes last; None if the run cannot go on, for one.error."""
  trainer = one.trainer
  if epoch == 1 and distributed.is_first():
    advice.tell(one.directory, advice.after(trainer.rule, trainer.first_loss, train.loss))
  record = {'epoch': epoch, **train.named('train')}
  if validation and not math.isfinite(validation.loss):
    one.error = DivergedError(
        f'after epoch {epoch} the validation loss is {validation.loss}, although the training loss '
        'and the parameters are finite: outputs overflow on examples that were not trained on. No '
        'checkpoint of this epoch was written. Try a smaller --config.learning_rate, or '
        '--config.clip_norm=1.')
    return None
  if validation:
    record.update(validation.named('validation'))
  record.update(learning_rate=float(trainer.schedule(epoch * trainer.steps - 1)),
                steps_per_second=trainer.steps / seconds)
  return record


def _results(config, directory, state):
  *epochs, final = distributed.from_first(lambda: metrics.read(directory, config.epochs))
  last = {**epochs[-1], **final}
  return Results(
      config.rule, config.epochs, last['train_loss'], last.get('train_accuracy'),
      last.get('validation_loss'), last.get('validation_accuracy'), last['test_loss'],
      last.get('test_accuracy'), sum(record['seconds'] for record in epochs), state, directory,
      *(last.get(name) for name in ('train_r2', 'validation_r2', 'test_r2', 'test_mse')))
