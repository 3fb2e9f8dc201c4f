r"""Expectations over two Gaussians as series in their correlation.

With h_k the orthonormal Hermite polynomials and c the correlation of u and v (Mehler 1866),

  E phi(u) psi(v) = SUM_k a_k(aa) b_k(bb) c^k ,   a_k(s) = E phi(sqrt(s) z) h_k(z) , z ~ N(0, 1),

which is finite at c = 1 and -1, where it is Gauss and Hermite's rule in one dimension.
"""
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from bioprop.typing import Array


def correlation(aa: Array, ab: Array, bb: Array) -> Array:
  """In [-1, 1], and 0 where a variance is 0; 1 or -1 where it is as close as rounding can tell.

  Else what rounding took from the correlation of a sample with itself would be an angle.
  """
  square = aa * bb
  c = ab / jnp.sqrt(jnp.where(square > 0, square, 1))
  rounded = jnp.where(jnp.abs(c) > 1 - 4 * jnp.finfo(c.dtype).eps, jnp.sign(c), c)
  return jnp.where(square > 0, rounded, 0)


def coefficients(function: Callable[[Array], Array], variance: Array, nodes: int,
                 terms: int) -> Array:
  """a_k of a function for k < terms, by that many nodes: [terms, ...] for variances [...]."""
  points, table = (jnp.asarray(a, variance.dtype) for a in rule(nodes))
  deviation = jnp.sqrt(jnp.maximum(variance, 0))[..., None]
  values = function(deviation * points.reshape((1,) * variance.ndim + (-1,)))
  return jnp.moveaxis(jnp.matmul(values, table[:, :terms], precision='highest'), -1, 0)


@functools.lru_cache(maxsize=8)
def rule(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Gauss and Hermite's points z_i [count], and w_i h_k(z_i) [i, k] with the weights w_i."""
  off = np.sqrt(np.arange(1.0, count))
  points = np.linalg.eigvalsh(np.diag(off, 1) + np.diag(off, -1))  # Golub & Welsch (1969).
  rows, sizes = np.stack([np.ones(count), points, *np.zeros((count - 2, count))]), np.ones(count)
  for k in range(1, count - 1):
    rows[k + 1] = (points * rows[k] - off[k - 1] * rows[k - 1]) / off[k]
    large = np.abs(rows[k + 1]) > 1e100  # Of its square is to be the weight, which is as small.
    rows[:, large] *= 1e-100
    sizes[large] *= 1e-100
  return points, (rows * sizes / np.sum(np.square(rows), 0)).T
