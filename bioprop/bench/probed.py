"""Epochs of `bioprop.training` with all probes beside the same epochs without any."""
import functools
import pathlib
import statistics
import tempfile
import time

from bioprop.bench.epochs import random_images
from bioprop.probes import TYPES
from bioprop.training import base, probing
from bioprop.training.trainer import Trainer

EVERY = 500
CASES = {'mlp': (28, 28, 1), 'lenet': (28, 28, 1)}  # Model name to the shape of an image.
_BATCH = 64


def measure(name: str, rule: str, rounds: int) -> list[dict]:
  """Times epochs of 500 steps; all probes measure at the start of each, and write their files.

  Args:
    name: a key of `CASES`.
    rule: a key of `RULES`.
    rounds: how many epochs each gets, in turn.

  Returns:
    A row without ('none') and one with probes ('all'): model, rule, probes, epoch_s (median), ratio
    (median over rounds of the epoch's time over that without of the same round).
  """
  data = random_images(EVERY * _BATCH, CASES[name])
  config = base()
  config.update(rule=rule, model=name, validation=0, batch_size=_BATCH, learning_rate=1e-3,
                schedule='constant')
  with tempfile.TemporaryDirectory() as folder:
    see = functools.partial(probing.write, pathlib.Path(folder))
    trainers = {'none': Trainer(config, data=data)}
    for kind in TYPES:
      config.probes[kind] = {'type': kind, 'every': EVERY, 'batch': 64}
    trainers['all'] = Trainer(config, data=data)
    states = {probes: trainer.init() for probes, trainer in trainers.items()}
    times = {probes: [] for probes in trainers}
    for number in range(rounds + 1):
      for probes, trainer in trainers.items():
        began = time.perf_counter()
        states[probes], _ = trainer.epoch(states[probes], number + 1, see=see)
        if number:  # The first compiles.
          times[probes].append(time.perf_counter() - began)
  return [{'model': name, 'rule': rule, 'probes': probes,
           'epoch_s': round(statistics.median(times[probes]), 4),
           'ratio': round(statistics.median(
               own / none for own, none in zip(times[probes], times['none'])), 3)}
          for probes in trainers]
