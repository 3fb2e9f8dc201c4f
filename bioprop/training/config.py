"""What a run is made of: the commented default, and the check that every value can work."""
import collections.abc
import dataclasses
import difflib
import numbers
import types
import typing

import ml_collections
import numpy as np
from ml_collections import config_dict

from bioprop.errors import ConfigError
from bioprop.models import MODELS
from bioprop.rules import RULES

CHOICES = {
    'augment': ('none', 'shift_flip'),
    'loss': ('cross_entropy', 'mse', 'mse_centred'),
    'model': MODELS,  # And what a configuration added to it.
    'optimizer': ('sgd', 'adam', 'adamw'),
    'schedule': ('constant', 'cosine', 'step'),
}
# Where a run computes, and not what: it may go on elsewhere.
PLACEMENT = ('mesh', 'distributed')
_AT_LEAST_ONE = ('epochs', 'batch_size', 'eval_batch_size', 'checkpoint_every', 'keep')
_LARGEST = 2**32 - 1
_NOT_NEGATIVE = ('seed', 'validation', 'learning_rate', 'momentum', 'weight_decay', 'warmup_epochs')


def base() -> ml_collections.ConfigDict:
  """Returns the default configuration, which each file in configs/ overrides."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # Weights, feedback, order of the examples, augmentation.

  config.rule = 'fa'  # A name in bioprop.RULES.
  config.rule_options = _options(RULES.values())  # None: the default, in rule_defaults or the rule.
  # What this experiment changes of some rules' own defaults: {'dfa': {'scale': 1.0}}.
  config.rule_defaults = ml_collections.ConfigDict()

  config.model = 'mlp'  # A name in bioprop.models.MODELS.
  config.model_options = _options(MODELS.values())  # None: the model's default.

  config.dataset = 'digits'
  config.validation = 5000  # Examples that leave the training set to choose settings by.
  # Of the examples that remain, how many to train on; None: all. Which ones, config.seed decides.
  config.examples = config_dict.placeholder(int)
  config.augment = 'none'  # 'shift_flip': pad by 4 pixels and crop, flip left-right (CIFAR).

  # 'mse': half the squared distance to the one-hot label, or to targets that are numbers;
  # 'mse_centred': to the label less 1 / classes.
  config.loss = 'cross_entropy'
  config.epochs = 10
  config.batch_size = 64  # The incomplete last batch of an epoch is left out.
  config.eval_batch_size = 500  # Changes the speed only.

  config.optimizer = 'sgd'  # 'adam' and 'adamw' keep optax's b1 = 0.9, b2 = 0.999, eps = 1e-8.
  config.learning_rate = 0.1
  config.momentum = 0.9  # sgd only.
  config.nesterov = False  # sgd only.
  config.weight_decay = 0.0  # Added to the gradient, as in PyTorch; adamw: decoupled from it.
  config.decay_kernels_only = False  # True: spares biases and norm scales (leaves with ndim < 2).
  config.clip_norm = config_dict.placeholder(float)  # Largest norm of the whole gradient.

  config.schedule = 'cosine'  # To zero at the last step; 'step': times step_factor at step_epochs.
  config.warmup_epochs = 0.0  # Linear, before the schedule; part of `epochs`.
  config.step_epochs = (100, 150)
  config.step_factor = 0.1

  # Epochs; the last is always kept. What `keep` would drop again anyway may be left out, where
  # writing it would slow the run down (training/pace.py).
  config.checkpoint_every = 1
  config.keep = 2  # Checkpoints.
  # Training steps in one call on the device; None: a whole epoch. Between two calls the progress
  # bar moves: set it where an epoch takes minutes.
  config.steps_per_call = config_dict.placeholder(int)

  # What to measure while training, by name: dict(type='entk', every=500, batch=64)
  # (training/probing.py).
  config.probes = ml_collections.ConfigDict()

  # Devices, all that there are: 'data=8', or 'data=2,fsdp=4'; None: one (training/mesh.py).
  config.mesh = config_dict.placeholder(str)
  # The processes that share them: 'auto', or 'HOST:PORT,NUM_PROCESSES,PROCESS_ID'
  # (training/distributed.py).
  config.distributed = config_dict.placeholder(str)
  return config


def check_kind(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError for the configuration of something else than training one network."""
  if 'experiment' in config:
    raise ConfigError('this configuration is an experiment of theory, and trains many networks. '
                      'Type bioprop theory --config=... for it, or '
                      'bioprop train --config=mnist_lenet.')
  missing = sorted(set(base()) - set(config))
  if missing:
    raise ConfigError(
        f'the configuration lacks {", ".join(missing)}. Start from bioprop.training.config.base() '
        'and override.')


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError where a value is unknown or cannot work, with the valid ones."""
  check_kind(config)
  for name, valid in CHOICES.items():
    if config[name] not in valid:
      raise unknown(name, config[name], valid)
  for name in (*_AT_LEAST_ONE, *_NOT_NEGATIVE):
    least = 1 if name in _AT_LEAST_ONE else 0
    if not (_is_finite(config[name]) and config[name] >= least):
      raise _impossible(name, config, f'a finite number, at least {least}')
    if isinstance(config[name], int) and config[name] > _LARGEST:
      raise _impossible(name, config, f'at most {_LARGEST}, what 32 bits count to')
  if not config.momentum < 1:
    raise _impossible('momentum', config, 'less than 1, or the steps grow without bound')
  if config.steps_per_call is not None and config.steps_per_call < 1:
    raise ConfigError(f'config.steps_per_call is {config.steps_per_call}, and must be at least 1, '
                      'or None for a whole epoch in one call.')
  if config.examples is not None and config.examples < 1:
    raise ConfigError(f'config.examples is {config.examples}, and must be at least 1, or None for '
                      'all examples that are not held out for validation.')
  clip = config.clip_norm
  if clip is not None and not (_is_finite(clip) and clip > 0):
    raise _impossible('clip_norm', config, 'a finite number above 0, or None for no clipping', 1)
  if config.warmup_epochs >= config.epochs:
    raise too_long_a_warmup(config)
  if config.schedule == 'step':
    _check_steps(config)


def nearest(word: typing.Any, words: collections.abc.Iterable[str]) -> str | None:
  """Returns which of the words was most likely meant, in whatever case; None if none is near."""
  lower = {known.lower(): known for known in words}
  close = difflib.get_close_matches(str(word).lower(), lower, n=1)
  return lower[close[0]] if close else None


def too_long_a_warmup(config: ml_collections.ConfigDict) -> ConfigError:
  """Returns the error for a warm-up that leaves no step to the schedule."""
  return ConfigError(
      f'config.warmup_epochs is {config.warmup_epochs}, which leaves nothing of config.epochs='
      f'{config.epochs}: warm up for less, or train for longer. Type for instance '
      f'--config.warmup_epochs={config.epochs / 10:g}.')


def rule_options(config: ml_collections.ConfigDict) -> dict[str, typing.Any]:
  """Returns the options of the configured rule: the experiment's defaults, then what was asked."""
  return {**config.rule_defaults.get(config.rule, {}), **chosen(config.rule_options)}


def chosen(options: ml_collections.ConfigDict) -> dict[str, typing.Any]:
  """Returns the options that are not None, as keyword arguments."""
  return {name: value for name, value in options.items() if value is not None}


def unknown(name: str, value: typing.Any, valid: collections.abc.Iterable[str]) -> ConfigError:
  """Returns the error for a value of config.<name> that does not exist."""
  close = nearest(value, valid)
  guess = f' Did you mean {close!r}?' if close else ''
  example = close or next(iter(valid))
  return ConfigError(f'there is no {name} {value!r}.{guess} Valid: {", ".join(valid)}. '
                     f'Type for instance --config.{name}={example}.')


def _check_steps(config):
  """Raises ConfigError if the step schedule could not be followed."""
  at, least = config.step_epochs, 0
  rises = isinstance(at, collections.abc.Sequence) and bool(at)
  for epoch in at if rises else ():
    rises, least = rises and _is_finite(epoch) and epoch > least, epoch
  if not rises:
    raise _impossible('step_epochs', config, 'the epochs, more than 0 and each later than the one '
                      'before, after which the step schedule lowers the learning rate',
                      f'{max(1, config.epochs // 2)},{max(2, config.epochs * 3 // 4)}')
  if not (_is_finite(config.step_factor) and config.step_factor > 0):
    raise _impossible('step_factor', config, 'a finite factor of the learning rate, more than 0')


def _is_finite(value):
  """Whether it is a number, and one of float32."""
  return (isinstance(value, numbers.Real) and not isinstance(value, bool)
          and abs(value) <= float(np.finfo(np.float32).max))


def _impossible(name, config, wanted, example=None):
  """The error for a value of config.<name>, the default being the example."""
  return ConfigError(f'config.{name} is {config[name]}, and must be {wanted}. Type for instance '
                     f'--config.{name}={base()[name] if example is None else example}.')


def fields(maker: collections.abc.Callable) -> dict[str, typing.Any]:
  """Returns the options of a model or rule, a dataclass or a partial of one: name to type."""
  cls = getattr(maker, 'func', maker)
  hints = typing.get_type_hints(cls)
  return {field.name: hints[field.name] for field in dataclasses.fields(cls)
          if field.init and field.name not in ('classes', 'parent', 'name')}


def _options(makers):
  """Every option of every maker as a typed placeholder, so that a locked config can set it."""
  options = ml_collections.ConfigDict()
  for maker in makers:
    for name, hint in fields(maker).items():
      if name not in options:
        options[name] = config_dict.placeholder(_value_type(hint))
  return options


def _value_type(hint):
  """The type that a flag gives to a field of this type: 'str | Callable' is set by a str."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    hint = next(part for part in typing.get_args(hint) if part is not type(None))
  if typing.get_origin(hint) in (collections.abc.Sequence, tuple, list):
    return tuple
  return hint if hint in (bool, int, float, str) else object
