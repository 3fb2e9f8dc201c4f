"""The choice among values that were tuned: one for a sweep's table and for reports."""
from collections.abc import Mapping, Sequence

import numpy as np


def best(results: Sequence[Mapping[int, float]], diverged: Sequence[int]
         ) -> tuple[int | None, list[float | None]]:
  """Returns which candidate is best, and the mean that each has.

  What diverges on fewer seeds goes before what is better on those where it does not; then the mean
  over the seeds that all candidates have finished (if they share none: over its own) decides, for
  seeds that are easier must not. Of equals it is the first.

  Args:
    results: by candidate: by seed, a number that is better when larger.
    diverged: by candidate: on how many seeds.

  Returns:
    The index, None where there are no results; by candidate the mean, None without results.
  """
  tried = [set(found) for found in results if found]
  shared = set.intersection(*tried) if tried else set()
  scores = [float(np.mean([found[seed] for seed in sorted(shared or found)])) if found else None
            for found in results]
  keys = {at: (diverged[at], -score) for at, score in enumerate(scores) if score is not None}
  return min(keys, key=lambda at: keys[at], default=None), scores
