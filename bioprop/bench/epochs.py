"""Epochs of `bioprop.training` beside a bare hand-written loop on the same model and data."""
import functools
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioprop.data import Dataset, Split
from bioprop.models import MODELS
from bioprop.training import base
from bioprop.training.trainer import Trainer

# Model name to (training images, their shape).
CASES = {'mlp': (12800, (28, 28, 1)), 'lenet': (6400, (28, 28, 1)),
         'resnet20': (512, (32, 32, 3)), 'resnet18': (64, (32, 32, 3))}


def measure(name: str, rounds: int, rules: Sequence[str] = ('bp',)) -> list[dict]:
  """Times whole epochs: shuffling, gathering, normalising, stepping.

  The bare loop runs the plain Flax model under backprop; the others go through configuration, plug
  (under 'bp', the same mathematics) and trainer. The bare loop is what one writes by hand: a
  permutation and one `lax.scan` over steps inside one jit.

  Args:
    name: a key of `CASES`.
    rounds: how many epochs each loop gets, in turn.
    rules: of the training loop.

  Returns:
    A row for 'bare' and one for 'bioprop' under each rule: model, loop, rule, epoch_s (median),
    ratio (median over rounds of the epoch's time over the bare epoch's time of the same round).
  """
  data = random_images(*CASES[name])
  config = base()
  config.update(model=name, validation=0, batch_size=min(64, len(data.train.labels)),
                learning_rate=1e-3, schedule='constant')
  loops = {('bare', 'bp'): _bare(config, data)} | {
      ('bioprop', rule): _ours(config, rule, data) for rule in rules}
  times = {loop: [] for loop in loops}
  for number in range(rounds + 1):
    for loop, epoch in loops.items():
      began = time.perf_counter()
      epoch(number)
      if number:  # The first compiles.
        times[loop].append(time.perf_counter() - began)
  bare = times['bare', 'bp']
  return [{'model': name, 'loop': loop, 'rule': rule,
           'epoch_s': round(statistics.median(times[loop, rule]), 4),
           'ratio': round(statistics.median(
               own / other for own, other in zip(times[loop, rule], bare)), 3)}
          for loop, rule in loops]


def _ours(config, rule, data):
  config = config.copy_and_resolve_references()
  config.rule = rule
  trainer = Trainer(config, data=data)
  state = trainer.init()

  def epoch(number):
    nonlocal state
    state, _ = trainer.epoch(state, number + 1)

  return epoch


def _bare(config, data):
  model = MODELS[config.model]()
  tx = optax.sgd(config.learning_rate, momentum=config.momentum)
  images, labels = jnp.asarray(data.train.images), jnp.asarray(data.train.labels)
  variables = model.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
  params = variables.pop('params')
  state = (params, tx.init(params), variables)
  steps = len(labels) // config.batch_size
  mean, std = (value.reshape(1, 1, 1, -1) for value in (data.mean, data.std))

  def step(state, index):
    params, opt_state, extra = state

    def loss_fn(params):
      x = (images[index].astype(jnp.float32) - mean) / std
      logits, new = model.apply({'params': params, **extra}, x, train=True, mutable=list(extra))
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels[index])
      return jnp.mean(loss), (new, jnp.sum(jnp.argmax(logits, -1) == labels[index]))

    (loss, (extra, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, extra), (loss, correct)

  @functools.partial(jax.jit, donate_argnums=0)
  def train(state, key):
    order = jax.random.permutation(key, len(labels))[:steps * config.batch_size]
    return jax.lax.scan(step, state, order.reshape(steps, config.batch_size))

  def epoch(number):
    nonlocal state
    state, metrics = train(state, jax.random.fold_in(jax.random.key(1), number))
    jax.block_until_ready((state, metrics))

  return epoch


def random_images(examples: int, shape: tuple[int, ...]) -> Dataset:
  """Images of noise [examples, *shape] with labels 0..9; nothing to validate on."""
  rng = np.random.default_rng(0)
  split = Split(rng.integers(0, 256, (examples, *shape), np.uint8),
                rng.integers(0, 10, examples).astype(np.int32))
  empty = Split(split.images[:0], split.labels[:0])
  channels = np.full(shape[-1], 128, np.float32)
  return Dataset('random', 10, split, empty, split, channels, channels / 2)
