"""Refusals that theory's functions share."""
import math

import jax.numpy as jnp

from bioprop.errors import TheoryError
from bioprop.typing import Array


def inputs(x, name: str) -> Array:
  """x as a floating array [n, D] with n > 0 and D > 0.

  Raises:
    TheoryError: if it is none.
  """
  x = jnp.asarray(x)
  if x.ndim != 2 or not x.size:
    raise TheoryError(f'{name} has the shape {x.shape}, and must be [samples, features], with at '
                      f'least one of each. Of images give {name}.reshape(len({name}), -1).')
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TheoryError(f'{name} is {x.dtype}, and must be floating: say {name}.astype(jnp.float32).')
  if not bool(jnp.isfinite(x).all()):
    raise TheoryError(f'{name} has entries that are infinite or NaN, and so would all kernels be.')
  return x


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  """Raises TheoryError unless a value is one of several."""
  if value not in choices:
    raise TheoryError(f'{name}={value!r} is none of {", ".join(choices)}. Say for instance '
                      f'{name}={choices[0]!r}.')


def fraction(name: str, value: float) -> None:
  """Raises TheoryError unless a value is in [0, 1]."""
  if not 0 <= value <= 1:
    raise TheoryError(f'{name}={value!r} is not in [0, 1], and a correlation is. Say for instance '
                      f'{name}=0.5.')


def correlation(rule: str, rho: float) -> None:
  """Raises TheoryError unless rho is in [0, 1], and 0 but of fa."""
  fraction('rho', rho)
  if rho and rule != 'fa':
    raise TheoryError(f'rho={rho:g} was given for {rule!r}: only fa has feedback that may be '
                      f'correlated with the weights. Say rule=\'fa\', or leave rho out.')


def positive(name: str, value: float) -> None:
  """Raises TheoryError unless a value is positive and finite."""
  if not 0 < value < math.inf:
    raise TheoryError(f'{name}={value!r} must be positive and finite. Say for instance {name}=1.0.')


def whole(name: str, value: int, least: int) -> None:
  """Raises TheoryError unless a value is a whole number, and not too small."""
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise TheoryError(f'{name}={value!r} must be a whole number, at least {least}.')
