"""Refusals that theory's functions share."""
import math
import operator
from typing import NamedTuple

import numpy as np

from bioprop.errors import TheoryError

GROWTH = 10.0  # Errors that have grown so much no longer follow a loss downwards.


def inputs(x, name: str) -> np.ndarray:
  """x as a NumPy array [n, D] of float32 or float64, with n > 0 and D > 0.

  Raises:
    TheoryError: if it is none.
  """
  x = array(x, name)
  if x.ndim != 2 or not x.size:
    raise TheoryError(f'{name} has the shape {x.shape}, and must be [samples, features], with at '
                      f'least one of each. Of images give {name}.reshape(len({name}), -1).')
  if x.dtype not in (np.float32, np.float64):
    raise TheoryError(f'{name} is {x.dtype}, and must be floating, of 32 or 64 bits: say '
                      f'{name}.astype(\'float32\').')
  if not np.isfinite(x).all():
    raise TheoryError(f'{name} has entries that are infinite or NaN, and so would all kernels be.')
  return x


def targets(y, count: int, outputs: bool = False) -> np.ndarray:
  """y as a NumPy array of float64: one output's targets [n], or with `outputs` also [n, C].

  Raises:
    TheoryError: if it is none.
  """
  y = array(y, 'targets')
  if y.shape[:1] != (count,) or y.ndim > 1 + outputs or not y.size:
    several = f', or ({count}, C) of C outputs' if outputs else ''
    raise TheoryError(
        f'targets have the shape {y.shape}, and there are {count} samples: each needs one number '
        f'for each output. Give targets of shape ({count},) of one output, for instance +1 and -1 '
        f'for two classes{several}.')
  if y.dtype.kind not in 'biuf' or not np.isfinite(y).all():
    raise TheoryError(f'targets are {y.dtype}, with entries that are infinite, NaN or no numbers '
                      f'at all. Give finite ones, for instance +1 and -1 for two classes.')
  return y.astype(np.float64)


def per_layer(name: str, value, count: int) -> tuple[float, ...]:
  """One number of at least 0, or `count` such, as a tuple of `count`.

  Raises:
    TheoryError: if it is none.
  """
  many = (value,) * count if np.ndim(value) == 0 else value
  values = tuple(map(number_of, many))
  if len(values) != count or not all(0 <= one < math.inf for one in values):
    raise TheoryError(f'{name}={value} is to be a number of at least 0, or a sequence of {count} '
                      f'such, of {count - 1} hidden layers and the readout, from the first up: it '
                      f'is a variance or a rate. Type {name}=1.0.')
  return values


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  """Raises TheoryError unless a value is one of several."""
  if not isinstance(value, str) or value not in choices:
    raise TheoryError(f'{name}={value!r} is none of {", ".join(choices)}. Say for instance '
                      f'{name}={choices[0]!r}.')


def rule(value: str, rho: float, choices: tuple[str, ...]) -> tuple[str, float]:
  """The rule and rho as numbers; 'align_prop' is fa with rho = 1.

  Raises:
    TheoryError: if there is no such rule, or rho is not in [0, 1], or given to another than fa.
  """
  choice('rule', value, (*choices, 'align_prop'))
  rho = fraction('rho', rho)
  if rho and value != 'fa':
    raise TheoryError(f'rho={rho:g} was given for {value!r}: only fa has feedback that may be '
                      f'correlated with the weights. Say rule=\'fa\', or leave rho out.')
  return ('fa', 1.0) if value == 'align_prop' else (value, rho)


class Training(NamedTuple):
  """What is solved for, by whatever method; see `training`."""
  rule: str
  rho: float
  depth: int
  steps: int
  gamma0: float
  learning_rate: float


def training(rules: tuple[str, ...], value: str, rho: float, depth: int, steps: int, gamma0: float,
             learning_rate: float) -> Training:
  """A rule of several and the numbers of a training, of their types.

  Raises:
    TheoryError: if one is out of its range.
  """
  return Training(*rule(value, rho, rules), whole('depth', depth, 1), whole('steps', steps, 2),
                  positive('gamma0', gamma0), positive('learning_rate', learning_rate))


def fraction(name: str, value: float) -> float:
  """A number in [0, 1]; raises TheoryError if it is none."""
  number = number_of(value)
  if not 0 <= number <= 1:
    raise TheoryError(f'{name}={value!r} is not in [0, 1], and a correlation is. Say for instance '
                      f'{name}=0.5.')
  return number


def positive(name: str, value: float) -> float:
  """A number above 0, and finite; raises TheoryError if it is none."""
  number = number_of(value)
  if not 0 < number < math.inf:
    raise TheoryError(f'{name}={value!r} must be positive and finite. Say for instance {name}=1.0.')
  return number


def whole(name: str, value: int, least: int) -> int:
  """A whole number that is not too small; raises TheoryError if it is none."""
  try:
    number = operator.index(value)
  except TypeError:
    number = None
  if number is None or isinstance(value, bool) or number < least:
    raise TheoryError(f'{name}={value!r} must be a whole number, at least {least}. Say for '
                      f'instance {name}={max(least, 1)}.')
  return number


def growth(name: str, gamma0: float, learning_rate: float, errors: np.ndarray) -> None:
  """Raises TheoryError where errors [T, n] grow instead of falling."""
  largest = np.abs(errors).max(1)
  grown = ~(largest <= GROWTH * largest[0])  # NaN has grown, too.
  if not grown.any():
    return
  at = int(grown.argmax())
  cure = (f'hebb\'s features grow with the square of the error, and gamma_0 has to be small: say '
          f'gamma0={gamma0 / 4:g}' if name == 'hebb' else
          f'the steps may be too large: say learning_rate={learning_rate / 4:g}')
  raise TheoryError(f'{name} diverges at gamma0={gamma0:g} and learning_rate={learning_rate:g}: '
                    f'after {at} steps the largest error is {largest[at]:.3g}, from '
                    f'{largest[0]:.3g}. Most likely {cure}.')


def array(value, name: str) -> np.ndarray:
  """A value as a NumPy array; raises TheoryError if it cannot be read as one."""
  try:
    return np.asarray(value)
  except (TypeError, ValueError) as error:
    raise TheoryError(f'{name} cannot be read as an array ({error}). Give a NumPy or JAX '
                      f'array.') from error


def number_of(value) -> float:
  """A value as a number; NaN, which no range has in it, if it is none."""
  if np.ndim(value) or isinstance(value, str):
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan
