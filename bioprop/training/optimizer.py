"""The optimiser and its learning rate, built from the configuration in this one place."""
import jax
import jax.numpy as jnp
import ml_collections
import optax

from bioprop.training import config as config_lib


def make_schedule(config: ml_collections.ConfigDict, steps_per_epoch: int,
                  factor: float = 1.0) -> optax.Schedule:
  """Returns the learning rate as a function of the step (0 is the first).

  Args:
    config: the configuration of the run.
    steps_per_epoch: steps of one epoch.
    factor: the model's own factor on the learning rate, by its parametrization.

  Raises:
    ConfigError: if config.schedule names none, or the warm-up leaves it no step.
  """
  rate = config.learning_rate * factor
  warmup = round(config.warmup_epochs * steps_per_epoch)
  if warmup >= config.epochs * steps_per_epoch:
    raise config_lib.too_long_a_warmup(config)
  if config.schedule == 'constant':
    schedule = optax.constant_schedule(rate)
  elif config.schedule == 'cosine':
    schedule = optax.cosine_decay_schedule(rate, config.epochs * steps_per_epoch - warmup)
  elif config.schedule == 'step':
    schedule = optax.piecewise_constant_schedule(rate, {
        epoch * steps_per_epoch - warmup: config.step_factor for epoch in config.step_epochs})
  else:
    raise config_lib.unknown('schedule', config.schedule, config_lib.CHOICES['schedule'])
  if warmup:
    # The first step already moves: rate / warmup, not zero.
    ramp = optax.linear_schedule(rate / warmup, rate, max(warmup - 1, 1))
    schedule = optax.join_schedules([ramp, schedule], [warmup])
  # optax mixes the count with floats, which strict dtype promotion refuses of an integer.
  return lambda step: schedule(jnp.asarray(step, jnp.float32))


def make_optimizer(
    config: ml_collections.ConfigDict, steps_per_epoch: int, factor: float = 1.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimiser and its learning rate.

  Weight decay is the gradient of an L2 penalty, added before momentum and before Adam's moments
  (what torch.optim.SGD and Adam call weight_decay); adamw decays apart from both. Arguments as in
  `make_schedule`.

  Raises:
    ConfigError: if config.optimizer or config.schedule names none, or the warm-up is too long.
  """
  schedule = make_schedule(config, steps_per_epoch, factor)
  mask = _kernels if config.decay_kernels_only else None
  decay = optax.add_decayed_weights(config.weight_decay, mask)
  l2 = [decay] if config.weight_decay else []
  if config.optimizer == 'sgd':
    momentum = [optax.trace(config.momentum, config.nesterov)] if config.momentum else []
    chain = [*l2, *momentum]
  elif config.optimizer == 'adam':
    chain = [*l2, optax.scale_by_adam()]
  elif config.optimizer == 'adamw':
    chain = [optax.scale_by_adam(), *l2]
  else:
    raise config_lib.unknown('optimizer', config.optimizer, config_lib.CHOICES['optimizer'])
  clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
  return optax.chain(*clip, *chain, optax.scale_by_learning_rate(schedule)), schedule


def _kernels(params):
  return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
