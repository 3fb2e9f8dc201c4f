"""One run's model, optimiser, data on the device and compiled functions: epochs, and no files."""
import functools
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from bioprop import data as data_lib
from bioprop.errors import BiopropError, ConfigError, DataError, DivergedError
from bioprop.models import MODELS
from bioprop.plug.linen import wrap
from bioprop.rules import make
from bioprop.training import advice, augment, diagnose, loss, mesh, optimizer, probing
from bioprop.training import config as config_lib
from bioprop.training import step as step_lib
from bioprop.training.average import Average, average, spread
from bioprop.training.state import State, make_state


class NotFinite(Exception):
  """The loss or the state stopped being finite in a step of an epoch, counted from 0."""

  def __init__(self, loss: float, step: int):
    super().__init__(loss, step)
    self.loss, self.step = loss, step


class Trainer:
  """Runs epochs from a configuration.

  Attributes:
    steps: of one epoch.
    schedule: the learning rate by step.
    task: the pure description of a step.
    train_data: the training examples, on the device.
    probes: what is measured while training.
    rule: by which it learns.
    advice: what is most likely not meant, of all that can be seen before the first step.
    first_loss: of the first step of the first epoch, once that has run.
  """

  def __init__(self, config: ml_collections.ConfigDict, data_dir: str | None = None,
               data: data_lib.Dataset | None = None):
    """Loads the data, unless they are given, and builds everything.

    Raises:
      ConfigError, UnknownRuleError, RuleOptionError: if the configuration names what is not there.
      DataError: if the dataset is missing, or too small for one batch.
    """
    config_lib.check(config)
    probing.check(config)
    place = mesh.make_placement(config)
    self.rule = rule = make(config.rule, **config_lib.rule_options(config))
    # Always the same split: seeds differ in training, not in what is validated on.
    data = data or data_lib.load(config.dataset, data_dir, validation=config.validation)
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
        wrap(model, rule), tx,
        loss.make_loss(config.loss, data.values, data.has_targets, masked),
        loss.make_decision(data.values, data.has_targets), augment.make_augment(config.augment),
        data.mean, data.std, config.seed, config.batch_size, place, masked)
    self._spreads = {name: spread(getattr(data, name).labels)
                     for name in ('train', 'validation', 'test')}
    self.train_data = place.put_everywhere(step_lib.Examples(*data.train))
    if config.probes:
      jax.eval_shape(self.init)  # What is wrong with the model is said as it is without probes.
    self.probes = probing.make(config, self.task, step_lib.Examples(*data.train), self.init,
                               self.schedule)
    self._per_call = min(config.steps_per_call or self.steps, self.steps)
    self._validation = (step_lib.in_batches(*data.validation, config.eval_batch_size, place)
                        if config.validation else None)
    self._test = data.test
    self._eval_batch_size = config.eval_batch_size
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
    total_loss, total_correct, total_counted = 0., 0, 0
    start = 0
    while start < self.steps:
      length = probing.until_next(self.probes, start, min(self._per_call, self.steps - start))
      if see is not None:
        for measured in probing.measure(self.probes, state, start):
          see(measured)
      state, metrics, finite = self._train(length, state, self.train_data, epoch, start)
      _wait(finite, tick)
      losses = np.asarray(metrics.loss, np.float64)
      bad = np.flatnonzero(~np.isfinite(losses))
      if bad.size or not finite:
        at = int(bad[0]) if bad.size else length - 1
        raise NotFinite(float(losses[at]), start + at)
      if epoch == 1 and not start:
        self.first_loss = float(losses[0])
      total_loss += losses.sum()
      total_correct += int(metrics.correct.sum())
      total_counted += int(metrics.counted.sum())
      tick(length)
      start += length
    return state, average(
        float(total_loss) / self.steps, total_correct, total_counted, self._spreads['train'])

  def validate(self, state: State) -> Average | None:
    """Returns what is reported of the validation split, None where there is none."""
    if self._validation is None:
      return None
    return self._average(state, self._validation, self._spreads['validation'])

  def test(self, state: State) -> Average:
    """Returns what is reported of the test split, which is for no choice."""
    return self._average(
        state, step_lib.in_batches(*self._test, self._eval_batch_size, self.task.placement),
        self._spreads['test'])

  def explain(self, state: State, replayed: int, epoch: int, failure: NotFinite) -> DivergedError:
    """Makes the failing step again, from the state after epoch `replayed`, and says what broke."""
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
    make = functools.partial(make_state, self.task.model, self.task.tx)
    if self.task.placement.mesh is None:
      return make(key, sample)
    # Each device makes its own part, so that no device need hold the whole.
    return jax.jit(lambda *args: self.task.placement.shard(make(*args)))(key, sample)

  def _average(self, state, batches, targets):
    metrics = self._evaluate(state, batches)
    number = int(metrics.counted)
    return average(float(metrics.loss) / number, int(metrics.correct), number, targets)


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


def _factor(model):
  """The model's own factor on the learning rate."""
  try:
    return getattr(model, 'learning_rate_factor', 1.0)
  except ValueError as error:
    raise ConfigError(f'the model\'s scale cannot be what was asked: {error} On the command line '
                      'these are --config.model_options.parametrization and '
                      '--config.model_options.gamma0.') from error


def _wait(array, tick):
  """Waits in short sleeps, so that Ctrl-C is heard; they grow to a hundredth of the wait."""
  began = time.perf_counter()
  while not array.is_ready():
    waited = time.perf_counter() - began
    time.sleep(min(max(waited / 100, 1e-4), 0.1))
    if waited > 1:
      tick(0)
