"""Finds where a function, its derivative or its second derivative jump, by its values alone.

An interval in which a polynomial of degree 32 is the function, its derivative and its second
derivative to rounding has no such place inside; others are halved, until they are too short to
hold anything but a jump.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory.jumps import Jumps

REACH = 64.0  # How far from 0 functions are seen.
MOST = 16  # Places.
ROUNDED = 1e-11  # Relative difference of two numbers, or functions, that are one.
_DEGREE = 32
_BATCH = 64  # Intervals of one evaluation, which compiles once.
# Halvings of intervals of length 2 until what is left is a jump, and until its place is known.
_SHORT, _PLACED = 20, 44
_MANY = 2000  # Intervals that are halved at once: of noise.
_ORDERS = 8  # Jumps that are measured: of phi, phi', ..., phi^(7).
# Below these, jumps of each order are what rounding makes of none.
_NOISE = (1e-12, 1e-11, 1e-9, 1e-8, 1e-6, 1e-4, 1e-2, 1e-1)


class Smooth(NamedTuple):
  """A function as it was seen.

  Attributes:
    jumps: its places, of increasing order, and what jumps there.
    edges: of intervals [K + 1] in which it is a polynomial of degree 32 to rounding; the places are
      among them.
    values: phi, phi' and phi'' at points [N] -> [3, N], in NumPy.
    noise: relative to values, of these.
  """
  jumps: Jumps
  edges: np.ndarray
  values: Callable[[np.ndarray], np.ndarray]
  noise: float


def decimal(value: float) -> float:
  """A number; a short one where it is as close as rounding can tell."""
  rounded = float(f'{value:.9g}')
  return rounded if abs(rounded - value) <= ROUNDED * abs(value) else float(value)


def smooth(function: Callable[[jax.Array], jax.Array], name: str) -> Smooth:
  """Finds a function's places.

  Args:
    function: of each entry of an array, with two derivatives in forward mode.
    name: for messages.

  Raises:
    TheoryError: if it is not finite in (-64, 64), or not smooth between at most 16 places.
  """
  values = _evaluator(function, name)
  for noise in (1e-11, 1e-4):  # Of functions that compute in float64; and in float32.
    found = _search(values, noise)
    if found is not None:
      places, edges = found
      jumps = tuple((place, _jumps(values, place, places, noise, name)) for place in places)
      return Smooth(tuple(one for one in jumps if any(one[1])), edges, values, noise)
  raise TheoryError(
      f'phi={name} jumps at more than {MOST} places between -{REACH:g} and {REACH:g}, or nowhere '
      f'has a smooth derivative (floor, round and noise are such): expectations are taken of '
      f'functions that are smooth between few places. To bear errors of any size, type '
      f'phi=Quadrature(function).')


def _evaluator(function, name):
  """phi, phi' and phi'', [N] -> [3, N]."""
  one = lambda f: lambda h: jax.jvp(f, (h,), (jnp.ones_like(h),))
  both = one(lambda h: one(function)(h))
  size = _BATCH * (_DEGREE + 1)

  def all_three(h):
    (value, slope), (_, second) = both(h)
    return jnp.stack([value, slope, second])

  compiled = jax.jit(all_three)

  def values(points):
    flat, parts = np.ravel(points), []
    for start in range(0, flat.size, size):
      part = flat[start:start + size]
      # The user's function may have constants of float32.
      with (jax.ensure_compile_time_eval(), jax.enable_x64(True),
            jax.numpy_dtype_promotion('standard')):
        try:
          found = np.asarray(compiled(jnp.asarray(np.pad(part, (0, size - part.size)))))
        except (TypeError, ValueError) as error:
          raise TheoryError(
              f'phi={name} cannot be evaluated in float64, in which its kinks are looked for: '
              f'{type(error).__name__} (see above). Let it keep its argument\'s dtype, with Python '
              f'numbers as constants, and depend on nothing that is being traced.') from error
      parts.append(found[:, :part.size])
    found = np.concatenate(parts, 1).astype(np.float64).reshape(3, *np.shape(points))
    if not np.isfinite(found).all():
      at = float(np.ravel(points)[np.argmax(~np.isfinite(found).all(0).ravel())])
      raise TheoryError(
          f'phi={name} or one of its first two derivatives is infinite or NaN at h={at:.3g}, and '
          f'its expectations are over all numbers: exp(h**2), 1 / h and sqrt have none. Take a '
          f'function that is finite everywhere and grows no faster than exp(h), for instance '
          f'phi=lambda h: f(jnp.clip(h, -5, 5)).')
    return found

  return values


# Chebyshev's points in (-1, 1), and the matrix that makes coefficients of values at them.
_ANGLES = np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1)
_POINTS = np.cos(_ANGLES)
_TO_COEFFICIENTS = np.cos(np.outer(np.arange(_DEGREE + 1), _ANGLES)) * 2 / (_DEGREE + 1)
_TO_COEFFICIENTS[0] /= 2


def _roughness(values, low, high, central):
  """What polynomials leave of the three functions in each interval, relative to their size."""
  points = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * _POINTS
  found = values(points)
  coefficients = found @ _TO_COEFFICIENTS.T
  size = np.maximum(np.abs(found).max(-1), central[:, None])
  last = np.abs(coefficients[..., -3:]).max(-1)
  return np.max(last / np.where(size > 0, size, 1), 0)


def _search(values, noise):
  """Places, and edges of smooth intervals; None if the former are too many."""
  # Not at round numbers, which are where functions have their places.
  edges = np.linspace(-REACH - 0.0137, REACH + 0.0241, 65)
  low, high = edges[:-1], edges[1:]
  central = np.abs(values(np.linspace(-4.01, 4.03, 400))).max(1)
  kept = []
  for _ in range(_SHORT):
    rough = _roughness(values, low, high, central) > noise
    kept.extend(low[~rough])
    low, high = low[rough], high[rough]
    if low.size > _MANY:
      return None
    if not low.size:
      break
    middle = (low + high) / 2
    low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
  order = np.argsort(low)
  low, high = low[order], high[order]
  rough = _roughness(values, low, high, central) > noise if low.size else np.zeros(0, bool)
  kept.extend(low[~rough])
  low, high = low[rough], high[rough]
  # One place in two intervals is that of the rougher one.
  first = np.concatenate([[True], np.diff(low) > 1e-5]) if low.size else rough[:0]
  groups = np.cumsum(first)
  if first.sum() > MOST:
    return None
  places = []
  for group in range(1, first.sum() + 1):
    places.append(_place(values, low[groups == group].min(), high[groups == group].max(), central))
  kept.extend(places)
  return places, np.concatenate([np.sort(kept), [REACH]])


def _place(values, low, high, central):
  """Of a jump between two numbers; a decimal number where it is as close as rounding can tell."""
  for _ in range(_PLACED - _SHORT):
    middle = (low + high) / 2
    # Overlapping, or a place at the middle would be in neither.
    third = (high - low) / 8
    left, right = _roughness(values, np.array([low, middle - third]),
                             np.array([middle + third, high]), central)
    low, high = (low, middle + third) if left >= right else (middle - third, high)
  place = (low + high) / 2
  rounded = round(place, 6)
  return float(rounded if abs(place - rounded) < 1e-8 * max(1, abs(place)) else place) + 0.0


def _jumps(values, place, places, noise, name):
  """Of phi, phi', ... at a place: derivatives of polynomials on both sides."""
  gaps = [abs(place - other) for other in places if other != place]
  above, below = (_one_sided(values, place, sign, min([1.0, *gaps]), noise, name)
                  for sign in (1, -1))
  size = np.maximum(np.abs(above), np.abs(below))
  jumps = above - below
  least = np.asarray(_NOISE) * max(1.0, noise / 1e-11) * np.maximum(1, size[:3].max())
  return tuple(decimal(jump) if abs(jump) > one else 0.0 for jump, one in zip(jumps, least))


def _one_sided(values, place, sign, length, noise, name):
  """phi, phi', ..., phi^(7) [8] beside a place, above (1) or below it (-1)."""
  for _ in range(12):
    found = values(place + sign * length * (1 + _POINTS) / 2)  # None at the place itself.
    coefficients = found @ _TO_COEFFICIENTS.T
    size = np.abs(coefficients).sum(1)
    rest = np.abs(coefficients[:, 20:]).max(1)
    if np.all(rest <= 1e-14 * np.maximum(size, 1) * max(1.0, noise / 1e-11)):
      break
    length /= 2
  else:
    raise TheoryError(
        f'phi={name} is singular at h={place:.6g}: beside it, it is no smooth function, as 1 / h, '
        f'log and abs(h)**1.5 beside 0, and no sum of its expectations would converge. Take one '
        f'that is smooth on both sides of each kink, for instance phi=lambda h: f(jnp.maximum(h, '
        f'0.01)).')
  derivatives = [np.polynomial.chebyshev.chebval(-1.0, one[:20]) for one in coefficients[:2]]
  series = coefficients[2, :20]
  for _ in range(_ORDERS - 2):
    derivatives.append(np.polynomial.chebyshev.chebval(-1.0, series))
    series = np.polynomial.chebyshev.chebder(series) * 2 / length * sign
  return np.asarray(derivatives)
