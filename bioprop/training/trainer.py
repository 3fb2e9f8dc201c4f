"""One run's model, optimiser, data on the device and compiled functions: epochs, and no files."""
import functools
import time
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np

from bioprop import data as data_lib
from bioprop.errors import BiopropError, ConfigError, DataError, DivergedError
from bioprop.fronts.plug import plug
from bioprop.models import MODELS
from bioprop.rules import make
from bioprop.training import advice, augment, diagnose, loss, mesh, optimizer, probing
from bioprop.training import config as config_lib
from bioprop.training import step as step_lib
from bioprop.training.average import Average, average, spread
from bioprop.training.state import State, make_init, make_state


class NotFinite(Exception):
  """The loss or the state stopped being finite in a step, counted from 0, of an epoch."""

  def __init__(self, loss: float, epoch: int, step: int):
    super().__init__(loss, epoch, step)
    self.loss, self.epoch, self.step = loss, epoch, step


class Trainer:
  """Runs epochs from a configuration.

  Attributes:
    config: of the run.
    data: as they were loaded.
    steps: of one epoch.
    schedule: the learning rate by step.
    task: the pure description of a step.
    train_data: the training examples, on the device.
    validation: the validation split in batches, on the device; None without.
    probes: what is measured while training.
    rule: by which it learns.
    advice: what is most likely not meant, of all that can be seen before the first step.
    first_loss: of the first step of the first epoch, once that has run.
  """

  def __init__(self, config: ml_collections.ConfigDict, data_dir: str | None = None,
               data: data_lib.Dataset | None = None, like: 'Trainer | None' = None):
    """Loads the data, unless they are given, and builds everything.

    Args:
      config: of the run.
      data_dir: folder of prepared datasets.
      data: in place of those that the configuration names.
      like: a trainer of a configuration that differs from this one in nothing but numbers: what it
        has loaded and compiled serves this one too.

    Raises:
      ConfigError, UnknownRuleError, RuleOptionError: if the configuration names what is not there.
      DataError: if the dataset is missing, or too small for one batch.
    """
    config_lib.check(config)
    probing.check(config)
    place = mesh.make_placement(config)
    self.rule = rule = make(config.rule, **config_lib.rule_options(config))
    # Always the same split: seeds differ in training, not in what is validated on.
    data = data or like and like.data or data_lib.load(
        config.dataset, data_dir, validation=config.validation)
    self.config, self.data = config, data
    if config.examples is not None:
      data = data_lib.choose(data, config.examples, config.seed)
    examples = len(data.train.labels)
    if examples < config.batch_size:
      raise DataError(
          f'config.batch_size is {config.batch_size}, but only {examples} training examples of '
          f'{config.dataset} are there to train on: not one batch. Type '
          f'for instance --config.batch_size={min(64, examples)}.')
    if data.is_sequence and config.augment != 'none':
      raise ConfigError(
          f'config.augment is {config.augment!r}, which varies images, and the examples of '
          f'{config.dataset} are sequences. Type --config.augment=none.')
    quantities = data.values is not None or data.has_targets
    self.advice = advice.before(rule, config, quantities)
    self.first_loss: float | None = None
    self._for_sequences = 'transformer' if data.is_text else 'rnn'
    if quantities and config.model == 'transformer':
      raise ConfigError(f'{config.dataset} gives quantities to predict, and the transformer '
                        'predicts tokens of the kinds that it reads. Type --config.model=rnn.')
    if data.is_sequence and not data.is_text and config.model == 'transformer':
      raise ConfigError(f'the transformer reads tokens, and {config.dataset} gives '
                        f'{data.train.images.shape[-1]} numbers at each step. Type '
                        '--config.model=rnn.')
    if data.is_text and config.model == 'rnn':
      raise ConfigError(f'the rnn reads numbers, and {config.dataset} is a text, whose characters '
                        'are none. Type --config.model=transformer.')
    self._made_from = f'{config.model} with {config_lib.chosen(config.model_options) or "defaults"}'
    self.steps = examples // config.batch_size
    model = _make_model(config, data.num_classes if data.values is None else 1)
    tx, self.schedule = optimizer.make_optimizer(config, self.steps, _factor(model))
    masked = not np.all(loss.counted(data.train.labels))
    self.task = step_lib.Task(
        plug(model, rule), tx,
        loss.make_loss(config.loss, data.values, data.has_targets, masked),
        loss.make_decision(data.values, data.has_targets), augment.make_augment(config.augment),
        data.mean, data.std, config.seed, config.batch_size, place, masked)
    # Seeds and rates of learning share it: its compilation takes longer than a small run.
    self._init = (like._init if like is not None and like.task.model == self.task.model
                  else make_init(self.task.model))
    self._spreads = {name: spread(getattr(data, name).labels)
                     for name in ('train', 'validation', 'test')}
    # Which examples a part of them are, the seed decides.
    shared = like is not None and config.examples is None
    self.train_data = (like.train_data if shared else
                       place.put_everywhere(step_lib.Examples(*data.train)))
    if config.probes:
      jax.eval_shape(self.init)  # What is wrong with the model is said as it is without probes.
    self.probes = probing.make(config, self.task, step_lib.Examples(*data.train), self.init,
                               self.schedule, _probe_of(like, self.task.model, rule))
    self._per_call = min(config.steps_per_call or self.steps, self.steps)
    self.validation = (None if not config.validation else like.validation if like else
                       step_lib.in_batches(*data.validation, config.eval_batch_size, place))
    self._train = jax.jit(
        functools.partial(step_lib.train_steps, self.task), static_argnums=0, donate_argnums=1)
    self._evaluate = jax.jit(functools.partial(step_lib.evaluate, self.task))

  def init(self) -> State:
    """Returns the state before the first step.

    Raises:
      ConfigError: if the model does not take its options, or inputs of this shape, or does not
        give one output for each label.
    """
    sample = self.task.normalise(self.train_data.images[:1])
    try:
      state = self._make_state(self.task.key('init'), sample)
      logits = jax.eval_shape(functools.partial(step_lib.predict, self.task), state,
                              self.train_data.images[:1])
    except BiopropError:
      raise
    except Exception as error:  # What flax and jax raise depends on what the option was meant for.
      raise ConfigError(
          f'the model cannot be built on inputs {list(sample.shape[1:])}: {type(error).__name__}: '
          f'{str(error).splitlines()[0]} It is {self._made_from}. Check config.model, '
          'config.model_options and config.dataset.') from error
    labels = self.train_data.labels.shape[1:]
    if self._spreads['train'] is not None:
      labels = labels[:-1]  # Its last axis are the outputs, of which the model has as many.
    if logits.shape[1:-1] != labels:
      raise ConfigError(
          f'the model maps inputs {list(sample.shape[1:])} to outputs {list(logits.shape[1:])}, '
          f'and each example has labels {list(labels)}, each of which needs an output [classes] of '
          f'its own. It is {self._made_from}. Type for instance --config.model='
          f'{self._for_sequences if labels else "mlp"}.')
    return state

  def epoch(
      self, state: State, epoch: int, tick: Callable[[int], None] = lambda steps: None,
      see: Callable[[probing.Measured], None] | None = None,
  ) -> tuple[State, Average]:
    """Trains one epoch (1 is the first); the state that came in is used up.

    `tick` is called with the number of steps done, 0 while waiting for the device; `see` with what
    probes find; None: they are not asked.

    Raises:
      NotFinite: if the loss, or anything in the state, is infinite or NaN.
    """
    tally = Tally(self, epoch)
    for start, length in self.calls():
      if see is not None:
        for measured in probing.measure(self.probes, state, start):
          see(measured)
      state, metrics, finite = self._train(length, state, self.train_data, epoch, start)
      wait(finite, tick)
      tally.add(start, metrics, bool(finite))
      tick(length)
    return state, tally.average()

  def calls(self) -> Iterator[tuple[int, int]]:
    """The calls on the device that make an epoch: the first step of each, and how many it makes.

    A probe that is due is asked between two of them.
    """
    start = 0
    while start < self.steps:
      length = probing.until_next(self.probes, start, min(self._per_call, self.steps - start))
      yield start, length
      start += length

  def validate(self, state: State) -> Average | None:
    """Returns what is reported of the validation split, None where there is none."""
    if self.validation is None:
      return None
    return self.average(self._evaluate(state, self.validation), 'validation')

  def test(self, state: State) -> Average:
    """Returns what is reported of the test split, which is for no choice."""
    return self.average(self._evaluate(state, self.test_batches()), 'test')

  def test_batches(self) -> step_lib.Examples:
    """The test split on the device, as `evaluate` takes it."""
    return step_lib.in_batches(*self.data.test, self.config.eval_batch_size, self.task.placement)

  def average(self, metrics: step_lib.Metrics, split: str) -> Average:
    """What is reported of sums over a split, which is train, validation or test."""
    number = int(metrics.counted)
    return average(float(metrics.loss) / number, int(metrics.correct), number,
                   self._spreads[split])

  def explain(self, state: State, replayed: int, failure: NotFinite) -> DivergedError:
    """Makes the failing step again, from the state after epoch `replayed`, and says what broke.

    Raises:
      NotFinite: if an earlier epoch fails already, as it may to another rounding (of replicas).
    """
    epoch = failure.epoch
    for number in range(replayed + 1, epoch):
      state, _ = self.epoch(state, number)
    first = max(failure.step - 1, 0)  # The step before may have made the bad parameters.
    if first:
      state, _, _ = self._train(first, state, self.train_data, epoch, 0)
    indices = step_lib.batch_indices(self.task, len(self.train_data.labels), epoch)
    for number in range(first, failure.step + 1):
      batch = step_lib.Examples(*(leaf[indices[number]] for leaf in self.train_data))
      finding, state = diagnose.examine(self.task, state, batch)
      if finding:
        break
    total = (epoch - 1) * self.steps + number
    return DivergedError(diagnose.describe(
        failure.loss, finding, epoch, number + 1, self.steps, total + 1,
        float(self.schedule(total)), advice.cure(self.rule)))

  def _make_state(self, key, sample):
    make = functools.partial(make_state, self._init, self.task.tx)
    if self.task.placement.mesh is None:
      return make(key, sample)
    # Each device makes its own part, so that no device need hold the whole.
    return jax.jit(lambda *args: self.task.placement.shard(make(*args)))(key, sample)


class Tally:
  """Sums over the calls of an epoch."""

  def __init__(self, trainer: Trainer, epoch: int):
    self._trainer, self._epoch = trainer, epoch
    self._loss, self._correct, self._counted = 0., 0, 0

  def add(self, start: int, metrics: step_lib.Metrics, finite: bool) -> None:
    """Adds what a call found, whose first step is `start`.

    Raises:
      NotFinite: if a loss is not, or what came after.
    """
    losses = np.asarray(metrics.loss, np.float64)
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size or not finite:
      at = int(bad[0]) if bad.size else len(losses) - 1
      raise NotFinite(float(losses[at]), self._epoch, start + at)
    if self._epoch == 1 and not start:
      self._trainer.first_loss = float(losses[0])
    self._loss += float(losses.sum())
    self._correct += int(np.sum(metrics.correct))
    self._counted += int(np.sum(metrics.counted))

  def average(self) -> Average:
    """What is reported of the epoch."""
    trainer = self._trainer
    return average(self._loss / trainer.steps, self._correct, self._counted,
                   trainer._spreads['train'])


def _make_model(config, classes):
  options = config_lib.chosen(config.model_options)
  make_model = MODELS[config.model]
  valid = config_lib.fields(make_model)
  for name in options:
    if name not in valid:
      raise ConfigError(
          f'model {config.model!r} has no option {name!r} (config.model_options.{name} is '
          f'{options[name]!r}). Its options are: {", ".join(valid)}.')
  return make_model(classes=classes, **options)


def _probe_of(like, model, rule):
  """A probe whose compiled functions serve the model too, None if there is none."""
  if like is None or not like.probes or like.task.model != model:
    return None
  # What a rule draws at each call comes from the seed, which is compiled in.
  return None if getattr(rule, 'redraws', False) else like.probes[0].probe


def _factor(model):
  """The model's own factor on the learning rate."""
  try:
    return getattr(model, 'learning_rate_factor', 1.0)
  except ValueError as error:
    raise ConfigError(f'the model\'s scale cannot be what was asked: {error} On the command line '
                      'these are --config.model_options.parametrization and '
                      '--config.model_options.gamma0.') from error


def wait(array, tick):
  """Waits in short sleeps, so that Ctrl-C is heard; they grow to a hundredth of the wait."""
  began = time.perf_counter()
  while not array.is_ready():
    waited = time.perf_counter() - began
    time.sleep(min(max(waited / 100, 1e-4), 0.1))
    if waited > 1:
      tick(0)
