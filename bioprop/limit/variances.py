"""The variances that parameters are drawn with: given, or estimated from the model's own draws."""
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.limit.parameters import Uses
from bioprop.limit.values import Param
from bioprop.network.store import matches
from bioprop.typing import Array, Key

Draw = Callable[[Key], Mapping[str, Array]]

_ROUNDS = (1, 16, 256, 4096, 65536)  # Draws of those parameters that need as many.
_CENTRED = 6.0  # Standard errors that a mean may be from 0.


@dataclasses.dataclass(frozen=True)
class Variance:
  """Of one entry of a parameter where it is used.

  Attributes:
    value: E w^2, w with mean 0; 0 of what starts as a constant.
    error: its relative standard error, 0 where it is given or nothing was drawn.
  """
  value: float
  error: float


def estimate(uses: Uses, draw: Draw | None, given: Mapping[str, float], key: Key,
             accuracy: float) -> dict[str, Variance]:
  """The variances of all uses, by name.

  Args:
    uses: what is asked for.
    draw: draws all parameters anew; None: there is one draw, which `uses` has.
    given: variances by pattern of the parameter's path, of its entries.
    key: of draws.
    accuracy: relative error that draws are to reach, as far as 65536 of them do.

  Raises:
    TheoryError: if a pattern names nothing, a variance is negative, or weights have another mean
      than 0.
  """
  _check_given(uses, given)
  paths = dict.fromkeys(path for path, _, _ in uses.entries.values())
  asked = {path: next((value for pattern, value in given.items() if matches(pattern, path)), None)
           for path in paths}
  sums = _moments(uses, {path for path, value in asked.items() if value is None}, draw, key,
                  accuracy)
  found = {}
  for name, (path, entries, scale) in uses.entries.items():
    if asked[path] is not None:
      found[name] = Variance(float(asked[path]) * scale**2, 0.0)
      continue
    own = uses.values[path].reshape(-1)[entries]
    number = uses.uniform(Param(own, entries, 1.0, (path,)))
    if number is not None:
      if name in uses.weights and number:
        _check_centred(path, math.inf, number, number**2)
      found[name] = Variance(0.0, 0.0)
      continue
    count, first, second, fourth = sums[path]
    _check_centred(path, count, first, second)
    spread = max(fourth / second**2 - 1, 0.0)
    found[name] = Variance(second * scale**2, math.sqrt(spread / count))
  return found


def _moments(uses: Uses, paths: set[str], draw: Draw | None, key: Key, accuracy: float
             ) -> dict[str, tuple[float, float, float, float]]:
  """Number of entries, and means of their powers 1, 2 and 4, by path."""
  if draw is None:
    return {path: _of_one(uses.values[path]) for path in paths}
  # A Gaussian's estimate of its variance has the relative error sqrt(2 / entries).
  wanted = {path: 2 / accuracy**2 / uses.values[path].size for path in paths}
  found, least = {}, 0
  for draws in _ROUNDS:
    own = sorted(path for path, number in wanted.items()
                 if number > least and (number <= draws or draws == _ROUNDS[-1]))
    least = draws
    if own:
      means = _drawn(draw, tuple(own), jax.random.split(key, draws))
      found |= {path: (draws * uses.values[path].size, *map(float, row))
                for path, row in zip(own, np.asarray(means))}
  return found


def _drawn(draw: Draw, paths: tuple[str, ...], keys: Key) -> Array:
  """[paths, 3]; of parameters that are not asked for nothing is drawn."""

  def one(key):
    params = draw(key)
    return jnp.stack([jnp.stack([jnp.mean(params[path].astype(jnp.float32)**power)
                                 for power in (1, 2, 4)]) for path in paths])

  batch = min(len(keys), 256) if len(keys) > 16 else None  # Then the parameters are small.
  return jax.jit(lambda keys: jnp.mean(jax.lax.map(one, keys, batch_size=batch), 0))(keys)


def _of_one(value: Any) -> tuple[float, float, float, float]:
  own = np.asarray(value, np.float64)
  return own.size, own.mean(), np.square(own).mean(), (own**4).mean()


def _check_centred(path: str, count: float, first: float, second: float) -> None:
  if abs(first) > _CENTRED * math.sqrt(second / count) + 1e-6 * math.sqrt(second):
    raise TheoryError(
        f'the entries of {path!r} have the mean {first:.3g} and the root mean square '
        f'{math.sqrt(second):.3g}, and are to have the mean 0: with another, the outputs of a '
        f'weight grow with the width. Draw it around 0, as nn.initializers.lecun_normal() does; '
        f'or say its variance where one small draw misleads: variances={{{path!r}: 0.1}}.')


def _check_given(uses: Uses, given: Mapping[str, float]) -> None:
  paths = {path for path, _, _ in uses.entries.values()}
  for pattern, value in given.items():
    if not any(matches(pattern, path) for path in paths):
      raise TheoryError(f'variances has the pattern {pattern!r}, which matches no parameter that '
                        f'the network uses: they are {", ".join(sorted(paths))}.')
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
      raise TheoryError(f'variances[{pattern!r}]={value!r} is no variance: it must be a number of '
                        f'at least 0, that of one entry. Say for instance 2 / fan_in.')
