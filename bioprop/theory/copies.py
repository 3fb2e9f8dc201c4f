"""What is random in copies of a neuron, [..., S], drawn so that second moments are exact."""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bioprop.typing import Array, Key

Rotation = Callable[[Array], Array]


def normal(key: Key, rows: int, samples: int, dtype: jnp.dtype) -> Array:
  """[rows, S] of normal numbers whose second moments are exactly those of their law."""
  drawn = jax.random.normal(key, (samples, rows), dtype)
  return jnp.linalg.qr(drawn)[0].T * math.sqrt(samples)


def rotation(key: Key, samples: int, dtype: jnp.dtype) -> Rotation:
  """A random rotation of copies: it maps [..., S] to what is independent of it."""
  keys = jax.random.split(key)
  before, after = (jax.random.rademacher(one, (samples,), dtype) for one in keys)
  along = lambda signs, a: signs.reshape(*(1,) * (a.ndim - 1), samples) * a
  return lambda a: along(after, jax.scipy.fft.dct(along(before, a), norm='ortho'))


def directions(key: Key, shape: tuple[int, ...], samples: int, dtype: jnp.dtype) -> Array:
  """Directions p [*shape, S]: over the copies, SUM_i p_i p_i^T = S; no more entries than copies."""
  signs, order = jax.random.split(key)
  column = jax.random.permutation(order, samples)[:math.prod(shape), None]
  # Of a cosine transform. Whole turns are taken off: of a product in two parts, as 32 bits hold.
  turn, wave = 4 * samples, 2 * jnp.arange(samples)[None] + 1
  angle = (wave * (column // 256) % turn * 256 + wave * (column % 256)) % turn
  basis = jnp.cos(angle.astype(dtype) * (math.pi / (2 * samples)))
  basis = basis * jnp.where(column == 0, 1.0, math.sqrt(2.0)).astype(dtype)
  drawn = jax.random.rademacher(signs, (samples,), dtype)
  return (basis * drawn[None]).reshape(*shape, samples)
