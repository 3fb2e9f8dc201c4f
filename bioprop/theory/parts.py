r"""Expectations of functions that are smooth but at some places: closed forms and series.

With phi = r + s, s the sum of what jumps (bioprop/theory/jumps.py) and r smooth, and coefficients
r_k, s_k (bioprop/theory/hermite.py), those of s in closed form,

  E phi(u) psi(v) = E s(u) s'(v) + SUM_k [(r_k + s_k) (r'_k + s'_k) - s_k s'_k] c^k ,

where ' is of psi. The first term is exact; the series converges as if nothing had jumped in one of
the two. Ramps grow faster than functions do: where variances are so large that more than 1e-6 of an
expectation (in float32, 3e-4) is rounding, it is NaN.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.theory import hermite
from bioprop.theory import jumps as closed
from bioprop.typing import Array

NODES = 320
_MOST = 1e-6  # Relative error by rounding, beyond which expectations are NaN.


class Parts(NamedTuple):
  """A function.

  Attributes:
    function: phi.
    jumps: where it is not smooth.
    nodes: the points of the rule for the rest, and the terms of its series.
  """
  function: Callable[[Array], Array]
  jumps: closed.Jumps = ()
  nodes: int = NODES


def product(one: Parts, other: Parts, aa: Array, ab: Array, bb: Array) -> Array:
  """E phi(u) psi(v); covariances as of `Activation.dual`."""
  c = hermite.correlation(aa, ab, bb)
  nodes = max(one.nodes, other.nodes)
  first, second = _coefficients(one, aa, nodes), _coefficients(other, bb, nodes)

  def horner(total, terms):
    (r, s), (rest, ramps) = terms
    return total * c + (r * (rest + ramps) + s * rest), None

  series = jax.lax.scan(horner, jnp.zeros_like(c), (first, second), reverse=True)[0]
  ours, others = (closed.orders(part.jumps, c.dtype) for part in (one, other))
  if ours and others:
    series = series + closed.product(ours, others, aa, ab, bb)
  if not ours and not others:
    return series
  lost = _rounded(*first) | _rounded(*second)
  series = jnp.where(lost, jnp.nan, series)
  return jnp.where(aa * bb > 0, series, mean(one, aa) * mean(other, bb))


def _rounded(rest: Array, ramps: Array) -> Array:
  """Where ramps, taken out and added again, are so large that little is left of the function."""
  eps = float(jnp.finfo(rest.dtype).eps)
  size = lambda terms: jnp.sum(jnp.square(terms), 0)
  return eps * size(ramps) > max(eps**0.5, _MOST) * size(rest + ramps)


def mean(one: Parts, variance: Array) -> Array:
  """E phi(u)."""
  rest, ramps = _coefficients(one, variance, 1)
  at_zero = one.function(jnp.zeros_like(variance))
  return jnp.where(variance > 0, rest[0] + ramps[0], at_zero)


def _coefficients(one: Parts, variance: Array, terms: int) -> tuple[Array, Array]:
  """Those of the rest and of what jumps, [terms, ...]; 0 beyond the part's own nodes."""
  taken = closed.orders(one.jumps, variance.dtype)
  rest = hermite.coefficients(lambda h: one.function(h) - closed.values(taken, h), variance,
                              one.nodes, min(terms, one.nodes))
  beyond = jnp.zeros((terms - len(rest), *variance.shape), variance.dtype)
  rest = jnp.concatenate([rest, beyond])
  return rest, closed.coefficients(taken, variance, terms) if taken else jnp.zeros_like(rest)
