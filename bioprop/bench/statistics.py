"""What some seeds say: means, deviations, and intervals by resampling."""
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # Its parts load when they are first used; scipy.stats takes half a second.

LEVEL = 0.95
LEAST = 3  # Values that an interval is given of: one or two, resampled, do not tell how they vary.
_RESAMPLES = 10_000


class Summary(NamedTuple):
  """Of one number in n runs.

  Attributes:
    mean: of all.
    sd: standard deviation of a sample, with n - 1; None of one run.
    n: how many.
  """
  mean: float
  sd: float | None
  n: int

  def __str__(self):
    """'97.94 ± 0.08': as many places of both as matter."""
    if self.sd is None:
      return number(self.mean)
    places = places_of(self.sd, self.mean)
    return f'{self.mean:.{places}f} ± {self.sd:.{places}f}'.replace('-', '−')


class Difference(NamedTuple):
  """Of two rules, by seed.

  Attributes:
    mean: of the differences.
    n: seeds that both have.
    low, high: of the interval; None if there are too few seeds.
  """
  mean: float
  n: int
  low: float | None
  high: float | None

  def __str__(self):
    if self.low is None:
      return f'{number(self.mean, "+")} (no interval: n = {self.n})'
    places = places_of((self.high - self.low) / 4, self.mean)
    texts = [f'{value:+.{places}f}' for value in (self.mean, self.low, self.high)]
    return '{} [{}, {}]'.format(*texts).replace('-', '−')


def summary(values: Sequence[float]) -> Summary:
  """Returns mean and standard deviation of at least one value."""
  sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return Summary(float(np.mean(values)), sd, len(values))


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
  """Returns the 95 % interval of the mean, by the bootstrap's percentiles, the same each time.

  Of less than three values, or any that is not finite, there is none.
  """
  if len(values) < LEAST or not np.isfinite(values).all():
    return None, None
  found = scipy.stats.bootstrap(
      (np.asarray(values),), np.mean, confidence_level=LEVEL, n_resamples=_RESAMPLES,
      method='percentile', rng=np.random.default_rng(0)).confidence_interval
  return float(found.low), float(found.high)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
  """Returns how much larger ours are on the seeds that both have, None if there is none.

  Args:
    ours, theirs: values by seed.
  """
  differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
  if not differences:
    return None
  return Difference(float(np.mean(differences)), len(differences), *interval(differences))


def places_of(deviation: float, mean: float) -> int:
  """Returns how many decimal places show two digits of a deviation, or four of a mean."""
  places = [digits - math.floor(math.log10(abs(value))) for digits, value in (
      (1, deviation), (3, mean)) if value and math.isfinite(value)]
  return max(min(places, default=2), 0)


def number(value: float, sign: str = '') -> str:
  """Returns four digits."""
  return f'{value:{sign}.4g}'.replace('-', '−')
