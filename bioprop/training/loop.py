"""A whole run: from a configuration and a directory to results, through any interruption."""
import contextlib
import functools
import math
import os
import time

import ml_collections
import tqdm

from bioprop.errors import DivergedError
from bioprop.training import advice, distributed, metrics, probing, workdir
from bioprop.training.checkpoint import Checkpoints
from bioprop.training.results import Results
from bioprop.training.trainer import NotFinite, Trainer


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
    state = trainer.init()  # Whatever is wrong with the model shows before a directory is made.
    directory = distributed.from_first(lambda: stack.enter_context(workdir.opened(path, config)))
    checkpoints = Checkpoints(directory / 'checkpoints', config.keep)
    stack.callback(checkpoints.close)
    done = checkpoints.last()
    if done:
      state = checkpoints.restore(done, state)
    records = distributed.from_first(
        lambda: metrics.read(directory, done) if done == config.epochs else [])
    if len(records) <= config.epochs:
      log = distributed.on_first(lambda: metrics.MetricsLog(directory, done, int(state.step)))
      if log:
        stack.callback(log.close)
      if not done and distributed.is_first():
        advice.tell(trainer.advice)
      state = _train(trainer, state, done, config, checkpoints, log, progress)
    return _results(config, directory, state)


def _train(trainer, state, done, config, checkpoints, log, progress):
  """Trains the epochs after `done`, and tests the last state."""
  with tqdm.tqdm(total=config.epochs * trainer.steps, initial=done * trainer.steps, unit='step',
                 disable=not (progress and distributed.is_first()), dynamic_ncols=True) as bar:
    clock = time.perf_counter()
    for epoch in range(done + 1, config.epochs + 1):
      bar.set_description(f'epoch {epoch}/{config.epochs}')
      scalars = {}
      see = functools.partial(_see, log, scalars)
      state, record = _epoch(trainer, state, epoch, checkpoints, bar.update, see)
      if epoch == 1 and distributed.is_first():
        advice.tell(advice.after(trainer.rule, trainer.first_loss, record['train_loss']))
      if epoch == config.epochs:
        for measured in probing.measure(trainer.probes, state, None):
          see(measured)
      # Of the network; those of each layer are in the files.
      record |= {name: value for name, value in scalars.items() if name.count('/') == 1}
      step = epoch * trainer.steps
      now = time.perf_counter()
      record['seconds'], clock = now - clock, now  # Of everything, the last checkpoint included.
      # The line comes first: a checkpoint promises that the lines up to it are there.
      _write(log, record, step)
      if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
        checkpoints.save(epoch, state)
      bar.set_postfix({name: f'{record[name]:.4f}' for name in (
          'train_loss', 'train_accuracy', 'validation_accuracy', 'train_r2', 'validation_r2')
                       if name in record})
  checkpoints.wait()
  test = trainer.test(state)
  _write(log, test.named('test'), config.epochs * trainer.steps)
  return state


def _write(log, record, step):
  """Adds a line to the log, which is process 0's; if it cannot, all processes fail."""
  distributed.on_first(lambda: log.write(record, step))


def _see(log, scalars, measured):
  """Keeps what a probe found: in its file, in TensorBoard, and the scalars for the epoch's line."""
  if log:
    probing.write(log.workdir, measured)
    log.draw(measured.scalars, measured.step)
  scalars.update(measured.scalars)


def _epoch(trainer, state, epoch, checkpoints, tick, see):
  """One epoch and its record, or the reason why it could not be."""
  began = time.perf_counter()
  try:
    state, train = trainer.epoch(state, epoch, tick, see)
  except NotFinite as failure:
    checkpoints.wait()
    last = checkpoints.last()
    before = trainer.init()
    before = checkpoints.restore(last, before) if last else before
    raise trainer.explain(before, last, epoch, failure) from None
  seconds = time.perf_counter() - began
  record = {'epoch': epoch, **train.named('train')}
  validation = trainer.validate(state)
  if validation and not math.isfinite(validation.loss):
    raise DivergedError(
        f'after epoch {epoch} the validation loss is {validation.loss}, although the training loss '
        'and the parameters are finite: outputs overflow on examples that were not trained on. No '
        'checkpoint of this epoch was written. Try a smaller --config.learning_rate, or '
        '--config.clip_norm=1.')
  if validation:
    record.update(validation.named('validation'))
  record.update(learning_rate=float(trainer.schedule(epoch * trainer.steps - 1)),
                steps_per_second=trainer.steps / seconds)
  return state, record


def _results(config, directory, state):
  *epochs, final = distributed.from_first(lambda: metrics.read(directory, config.epochs))
  last = {**epochs[-1], **final}
  return Results(
      config.rule, config.epochs, last['train_loss'], last.get('train_accuracy'),
      last.get('validation_loss'), last.get('validation_accuracy'), last['test_loss'],
      last.get('test_accuracy'), sum(record['seconds'] for record in epochs), state, directory,
      *(last.get(name) for name in ('train_r2', 'validation_r2', 'test_r2', 'test_mse')))
