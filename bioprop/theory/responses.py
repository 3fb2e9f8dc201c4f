r"""Which responses a rule's equations have, and how they are found where phi has kinks.

Where it has none, copies carry derivatives (bioprop/theory/march.py). At a kink phi' jumps, and
g = phi'(h) z has no derivative that a copy could carry; its mean over copies has one. For any F of
a Gaussian x, over all that it depends on beside x,

  <F x^T> = <dF/dx> <x x^T> ,

which is Stein's identity: the response <dF/dx> is the coefficient of least squares of F on x, over
the copies.

Noise. What is regressed at each time is how far F has moved since the time before, and the
coefficients add up: of a static part of F, which has no response and most of the variance, nothing
is seen, and what has come to rest stays as it is.

Ridge. Fields at neighbouring times are nearly the same, and data cannot tell them apart: directions
of x with less than 1 / samples of its mean variance are left out. A response is therefore known in
sums with fields of x's own covariance, which is all that the equations ask for, and not entry by
entry.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.theory.activations import Activation
from bioprop.typing import Array

SOURCE = {'a': 'r', 'b': 'u', 'c': 'v', 'd': 'u'}  # What each letter is the response to.


def sources(rule: str, depth: int) -> str:
  """The fields to which a rule's equations have responses."""
  if depth == 1:
    return ''
  return {'bp': 'ur', 'gln': 'ur', 'fa': 'uv'}.get(rule, 'u')


def carried(rule: str, phi: Activation) -> bool:
  """Whether copies carry derivatives: gln's own units have no kinks."""
  return not phi.kinks or rule == 'gln'


def of_layer(rule: str, depth: int, layer: int) -> str:
  """The fields of one layer, 0 to depth - 1, to which there are responses.

  Those to u are of what the layer sends down, and those to r and v of what it sends up.
  """
  return ''.join(one for one in sources(rule, depth)
                 if (layer > 0 if one == 'u' else layer < depth - 1))


def letters(rule: str, depth: int) -> str:
  """The responses."""
  return {'bp': 'ab', 'gln': 'ab', 'fa': 'bcd'}.get(rule, 'b') if sources(rule, depth) else ''


class Estimate(NamedTuple):
  """What is known of a response so far.

  Attributes:
    row: <dF(t) / dx(nu, s)> [Q, T, P] at the newest t, of Q fields F.
    field: F at that time [Q, S].
  """
  row: Array
  field: Array


def nothing(steps: int, size: int, samples: int, dtype: jnp.dtype, fields: int) -> Estimate:
  """Before the first time."""
  return Estimate(jnp.zeros((fields, steps, size), dtype), jnp.zeros((fields, samples), dtype))


def grown(before: Estimate, field: Array, past: Array) -> Estimate:
  """The response at the next time.

  Args:
    before: that of the time before.
    field: F [Q, S], of S copies.
    past: x [T, P, S], 0 at the times of which F knows nothing.
  """
  samples = field.shape[-1]
  x = past.reshape(-1, samples)
  moments = x @ x.T / samples
  variances = jnp.diagonal(moments)
  mean = jnp.sum(variances) / jnp.maximum(jnp.sum((variances > 0).astype(x.dtype)), 1)
  # No less than what rounding leaves of the matrix's definiteness.
  ridge = mean * max(1 / samples, 10 * len(x) * float(jnp.finfo(x.dtype).eps))
  ridge = jnp.where(mean > 0, ridge, 1)  # There is nothing to answer to, and the answer is 0.
  cross = (field - before.field) @ x.T / samples
  found = jax.scipy.linalg.solve(moments + ridge * jnp.eye(len(x), dtype=x.dtype), cross.T,
                                 assume_a='pos')
  return Estimate(before.row + found.T.reshape(before.row.shape), field)
