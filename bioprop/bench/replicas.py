"""Epochs of several seeds in one program beside the same epochs one after the other."""
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from bioprop.bench.epochs import random_images
from bioprop.training import base, loop, together
from bioprop.training.trainer import Trainer


class Case(NamedTuple):
  """A model on random images: how many, their shape, examples of a step, and model options."""
  model: str
  examples: int
  shape: tuple[int, ...]
  batch: int
  options: dict


CASES = {
    'digits_mlp': Case('mlp', 1248, (8, 8, 1), 32, {'hidden': (128,), 'activation': 'relu'}),
    'lenet': Case('lenet', 640, (28, 28, 1), 64, {}),
    'resnet20': Case('resnet20', 512, (32, 32, 3), 128, {}),
}


def measure(name: str, rule: str, replicas: int, rounds: int,
            tell: Callable[[str], None] = print) -> list[dict]:
  """Times whole epochs, in turns: of all replicas together, and of each by itself.

  Both are compiled before anything is timed.

  Args:
    name: a key of `CASES`.
    rule: a key of `RULES`.
    replicas: seeds that are trained.
    rounds: how many epochs each gets.
    tell: prints a line where memory holds fewer at once.

  Returns:
    A row for 'one by one' and one for 'together': model, rule, replicas, how, epoch_s (median, of
    all replicas), ratio (median over rounds of the time together over that one by one of the same
    round), together (how many one program holds).
  """
  case = CASES[name]
  data = random_images(case.examples, case.shape)
  trainers: list[Trainer] = []
  for seed in range(replicas):
    config = base()
    config.update(rule=rule, model=case.model, validation=0, batch_size=case.batch, seed=seed,
                  learning_rate=1e-3, schedule='constant')
    config.model_options.update(case.options)
    trainers.append(Trainer(config, data=data, like=trainers[0] if trainers else None))
  engines = list(together.within_memory(trainers))
  if len(engines) > 1:
    tell(f'{name}: memory holds {len(engines[0].trainers)} at once')
  quiet = loop.Progress().steps
  groups = [engine.stack([trainer.init() for trainer in engine.trainers]) for engine in engines]
  # One trainer runs all of them: its program is that of the others too.
  single, alone = trainers[0], [trainer.init() for trainer in trainers]

  def all_together(epoch):
    for at, engine in enumerate(engines):
      groups[at], _ = engine.epoch(groups[at], epoch, quiet, _nothing)
    jax.block_until_ready(groups)

  def one_by_one(epoch):
    for at, state in enumerate(alone):
      alone[at], _ = single.epoch(state, epoch)
    jax.block_until_ready(alone)

  ways = {'one by one': one_by_one, 'together': all_together}
  times: dict[str, list[float]] = {how: [] for how in ways}
  for number in range(rounds + 1):
    for how, epoch in ways.items():
      began = time.perf_counter()
      epoch(number + 1)
      if number:  # The first compiles.
        times[how].append(time.perf_counter() - began)
  return [{'model': name, 'rule': rule, 'replicas': replicas, 'how': how,
           'epoch_s': round(statistics.median(times[how]), 4),
           'ratio': round(statistics.median(
               own / each for own, each in zip(times[how], times['one by one'])), 3),
           'together': 1 if how == 'one by one' else len(engines[0].trainers)} for how in ways]


def _nothing(number, measured):
  """What probes found: there are none."""
