r"""Stein's regression on a past that is not kept.

<F x^T> = <dF/dx> <x x^T> (bioprop/theory/responses.py) makes the answer of F to fields x(s) a
projection: with B an orthonormal basis, over the copies, of all that x has been, and Y what takes
the place of x, combined as B is of x,

  SUM_s <dF/dx(s)> y(s) = F B^T Y .

As there, what is projected is how far F has moved since the time before, and the answers add up.
What F is at the first time is left out: signals are as likely as their negatives then, and have no
answer. Directions that a time adds with less than 1% of x's mean variance are left out: what is
projected on too many of them is noise. (Of ten classes of 50 digits at gamma_0 = 1, .1% in its
place moves K by .0025, and 5% by .006.) The cost of a time does not depend on how many there were.
"""
from typing import NamedTuple

import jax.numpy as jnp

from bioprop.typing import Array

_LEAST = 0.01  # Variance of a direction.


class Basis(NamedTuple):
  """Of fields x, and what takes their place.

  Attributes:
    own: B [R, S], rows of 0 where there is nothing yet.
    other: Y [R, S].
    count: how many rows there are [].
    missed: largest share of x's variance that found no row [].
  """
  own: Array
  other: Array
  count: Array
  missed: Array


def nothing(room: int, samples: int, dtype: jnp.dtype) -> Basis:
  """Before the first time, with room for R directions."""
  rows = jnp.zeros((room, samples), dtype)
  return Basis(rows, rows, jnp.zeros((), jnp.int32), jnp.zeros((), dtype))


def extended(basis: Basis, x: Array, y: Array) -> Basis:
  """With the fields of one more time, [P, S] each."""
  room = len(basis.own)
  variance = jnp.mean(jnp.sum(jnp.square(x), 1))
  for _ in range(2):  # Once more for what rounding left.
    shares = x @ basis.own.T
    x, y = x - shares @ basis.own, y - shares @ basis.other
  values, vectors = jnp.linalg.eigh(x @ x.T)
  values, vectors = values[::-1], vectors[:, ::-1].T
  wanted = values > jnp.maximum(_LEAST * variance, jnp.finfo(x.dtype).tiny)
  fits = wanted & (jnp.arange(len(values)) < room - basis.count)
  scale = jnp.where(fits, 1 / jnp.sqrt(jnp.where(fits, values, 1)), 0)[:, None] * vectors
  # Rows that do not fit are 0, and are dropped with those after the last.
  rows = basis.count + jnp.arange(len(values))
  put = lambda old, new: old.at[rows].set(new, mode='drop')
  missed = jnp.sum(jnp.where(wanted & ~fits, values, 0)) / jnp.maximum(
      variance * len(values), jnp.finfo(x.dtype).tiny)
  return Basis(put(basis.own, scale @ x), put(basis.other, scale @ y),
               basis.count + jnp.sum(fits, dtype=jnp.int32), jnp.maximum(basis.missed, missed))


class Answer(NamedTuple):
  """SUM_s <dF/dx(s)> y(s) and F, at the newest time, [..., S]."""
  value: Array
  field: Array

  def moved(self, field: Array, basis: Basis, first: Array) -> 'Answer':
    """At the next time; `first` says whether it is the first."""
    change = jnp.where(first, 0, field - self.field).reshape(-1, field.shape[-1])
    return Answer(self.value + (change @ basis.own.T @ basis.other).reshape(field.shape), field)
