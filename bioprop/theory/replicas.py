"""Averages of independent marches: how accurate they are, and how many copies that needs."""
import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
import scipy  # Its parts load when they are first used; scipy.stats takes half a second.

from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory import checks
from bioprop.theory.march import march
from bioprop.theory.problem import March, Program, Setting
from bioprop.typing import Key

_CONFIDENCE = 0.95
_SPARE = 1.3  # How many times as many copies are taken as the last errors ask for; they are noisy.
_MOST_REPLICAS = 64
_ROUNDS = 8
_MISSED = 0.01  # Largest share of a time's variance that a summed past may leave out.


class Average(NamedTuple):
  """The mean over replicas.

  Attributes:
    march: as NumPy arrays.
    error: relative error of 'f', 'phi' and 'entk', which the true one is below for 95 of 100 keys.
    samples: copies of a neuron in each replica.
    replicas: how many there are.
  """
  march: March
  error: dict[str, float]
  samples: int
  replicas: int

  @property
  def worst(self) -> float:
    """The larger error of the outputs and of the eNTK."""
    return max(self.error['f'], self.error['entk'])


def search(program: Program, setting: Setting, key: Key, replicas: int, most: int,
           tolerance: float) -> Average:
  """As many copies as the tolerance needs, and then replicas.

  Args:
    program: with the copies to begin with.
    setting: what is solved.
    key: of all random numbers.
    replicas: to begin with.
    most: copies that there is memory for.
    tolerance: largest error of the outputs and of the eNTK.

  Returns:
    The first average within the tolerance, or the last if there is none.

  Raises:
    TheoryError, ConvergenceError: as `average`.
  """
  for last in range(_ROUNDS - 1, -1, -1):
    try:
      found = average(program, setting, key, replicas)
      wanted = max(2.0, _SPARE * (found.worst / tolerance)**2)
    except ConvergenceError:  # Some of the replicas diverge.
      if not last or program.samples == most:
        raise
      found, wanted = None, 16.0
    if found and found.worst <= tolerance or not last or (
        program.samples == most and replicas == _MOST_REPLICAS):
      return found
    copies = min(math.ceil(program.samples * wanted), most)
    left = wanted * program.samples / copies
    program = program._replace(samples=copies)
    replicas = min(math.ceil(replicas * max(left, 1)), _MOST_REPLICAS)


def average(program: Program, setting: Setting, key: Key, replicas: int) -> Average:
  """Solves the equations `replicas` times; a bar shows how long it will take where that is long.

  Raises:
    TheoryError: if training diverges in all replicas, or a kernel leaves the range of its dtype.
    ConvergenceError: if it diverges in some: the averages are too noisy to follow.
  """
  mean, squares, diverged = None, None, []
  for number, own in enumerate(_watched(jax.random.split(key, replicas), program.samples)):
    found = march(program, setting, own)
    try:
      checks.growth(program.rule, float(setting.gamma0), float(setting.rate),
                    _errors(found))
    except TheoryError as error:
      diverged.append(error)
      continue
    if diverged:
      continue
    one = jax.tree.map(np.asarray, found)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one)):
      raise TheoryError(f'kernels of {program.rule} leave the range of {setting.root.dtype}. Say '
                        f'gamma0={float(setting.gamma0) / 4:g} or '
                        f'learning_rate={float(setting.rate) / 4:g}.')
    if one.missed > _MISSED:
      raise ConvergenceError(
          f'{float(one.missed):.2g} of the variance that there may be answers to is left out, as '
          f'{program.samples} copies hold too few directions of the past. Say '
          f'samples={2 * program.samples}, or fewer steps or samples to learn.')
    if mean is None:
      mean, squares = one, jax.tree.map(lambda a: 0.0, one)
      continue
    # Welford's sums: replicas are not kept.
    apart = jax.tree.map(np.subtract, one, mean)
    mean = jax.tree.map(functools.partial(_moved, 1 / (number + 1)), mean, apart)
    squares = jax.tree.map(
        functools.partial(_moved, number / (number + 1)), squares,
        jax.tree.map(lambda a: float(np.square(a, dtype=np.float64).sum()), apart))
  if len(diverged) == replicas:
    raise diverged[0]
  if diverged:
    raise ConvergenceError(
        f'{len(diverged)} of {replicas} replicas of {program.rule} diverge and the others do not, '
        f'so that it is not training: averages over {program.samples} copies are too noisy to '
        f'follow it. Say samples={4 * program.samples}, or samples=None for as many as are needed.')
  relative = _relative(replicas)
  return Average(mean, {name: relative(getattr(squares, name), getattr(mean, name))
                        for name in ('f', 'phi', 'entk')}, program.samples, replicas)


def _watched(keys: Key, copies: int) -> Iterable[Key]:
  """The keys, and a bar that says how many are done, where tqdm is installed."""
  try:
    import tqdm
  except ModuleNotFoundError:  # Of the extra `train`.
    return keys
  return tqdm.tqdm(keys, unit='replica', delay=2, leave=False,
                   desc=f'mean-field theory, {copies} copies', disable=None)


def _relative(replicas: int) -> Callable[[float, np.ndarray], float]:
  """Maps a sum of squares around a mean, and the mean, to the mean's relative error."""
  quantile = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, replicas - 1))
  size = lambda mean: max(float(np.linalg.norm(mean.astype(np.float64))), 1e-300)
  return lambda squares, mean: (
      quantile * math.sqrt(squares / (replicas * (replicas - 1))) / size(mean))


def _moved(share, start, way):
  return start + share * way


def _errors(found: March) -> np.ndarray:
  """Delta [T, P C]."""
  return np.asarray(found.delta).reshape(len(found.delta), -1)
