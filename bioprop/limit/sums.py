"""Sums over the axes of hidden values: pooling, fixed mixtures of positions, means of features."""
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.limit.algebra import Algebra
from bioprop.limit.values import (
  Factor,
  Hidden,
  Known,
  Plain,
  Value,
  has,
  only,
  positions_of,
  refuse,
  sizes_of,
)
from bioprop.theory.fields.leaves import Applied, Expected, Field, One
from bioprop.theory.fields.positions import PositionMap
from bioprop.typing import Array

_POOL = 'Pool by means (nn.avg_pool, jnp.mean), or take a stride.'


class Sums:
  """Sums of hidden values, by the name of their primitive: maps (equation, inputs, place)."""

  def __init__(self, algebra: Algebra):
    self._algebra = algebra
    self.known: dict[str, Callable[..., Any]] = {
        'reduce_sum': self._sum, 'reduce_window_sum': self._windows, 'dot_general': self._product}

  def _sum(self, eqn, ins, place: str) -> Value:
    x, over = ins[0], eqn.params['axes']
    gone = [factor for at in over for factor in x.axes[at]]
    if any(factor.kind == 's' for factor in gone):
      raise refuse(place, 'a sum over samples (BatchNorm in training)',
                   'every sample would depend on the others', 'Use the running statistics '
                   '(use_running_average=True, train=False), or LayerNorm.')
    if any(factor.kind == 'w' for factor in gone):
      return self._expected(x, over, eqn.outvars[0].aval, place)
    axes = tuple(axis for at, axis in enumerate(x.axes) if at not in over)
    summed = tuple(number for at in over for number in positions_of(x.axes)[at])
    move = PositionMap(lambda a: a.sum(summed), x.sizes, sizes_of(axes), True)
    return x.each(lambda field: self._algebra.moved(field, move), axes)

  def _expected(self, x: Hidden, over, aval, place: str) -> Plain | Known:
    """A sum over features: as many times their expectation."""
    left = [factor.size for at, axis in enumerate(x.axes) if at not in over
            for factor in axis if factor.kind == 'w']
    if left and len(x.parts) > 1:
      raise refuse(place, 'a mean over groups of features of several kinds', 'their kernels differ',
                   'Normalise before they are joined.')
    groups = math.prod(left)
    numbers = [_constant_mean(field) for _, field in x.parts]
    if None not in numbers:
      positions = math.prod(f.size for at in over for f in x.axes[at] if f.kind == 'p')
      total = positions * sum(n * count for n, (count, _) in zip(numbers, x.parts)) / groups
      return Known(np.full(aval.shape, total, aval.dtype))
    means = tuple(Expected(field) for _, field in x.parts)
    counts = [count // groups for count, _ in x.parts]
    factors = [(factor, at) for at, axis in enumerate(x.axes) for factor in axis]
    positions = [(factor, at) for factor, at in factors if factor.kind == 'p']
    summed = tuple(1 + i for i, (_, at) in enumerate(positions) if at in over)
    kept = [factor for factor, at in factors if at not in over]
    samples = next(factor.size for factor, _ in factors if factor.kind == 's')

    def gather(*arrays):
      whole = sum(count * array for count, array in zip(counts, arrays))
      whole = jnp.broadcast_to(whole, (samples, *(factor.size for factor, _ in positions)))
      whole = whole.sum(summed)
      # From [samples, *positions] to the order in which they lie, features of one entry.
      order = [i for i, factor in enumerate(kept) if factor.kind == 's'] + [
          i for i, factor in enumerate(kept) if factor.kind == 'p']
      rank = len(order)
      whole = whole.reshape(whole.shape + (1,) * (len(kept) - rank))
      order += [i for i, factor in enumerate(kept) if factor.kind == 'w']
      whole = whole.transpose(np.argsort(order))
      return jnp.broadcast_to(whole, tuple(factor.size for factor in kept)).reshape(
          aval.shape).astype(aval.dtype)

    outer = [axis for at, axis in enumerate(x.axes) if at not in over]
    flat = frozenset(i for i, axis in enumerate(outer) if only(axis, 'w'))
    at = next(i for i, axis in enumerate(outer) if has(axis, 's'))
    return Plain(Applied(gather, means), tuple(aval.shape), at, flat)

  def _windows(self, eqn, ins, place: str) -> Hidden:
    x, params = ins[0], eqn.params
    names = ('window_dimensions', 'window_strides', 'padding', 'base_dilation', 'window_dilation')
    own = [params[name] for name in names]
    still = lambda at: tuple(one[at] for one in own) == (1, 1, (0, 0), 1, 1)
    if any(not still(at) and not (only(axis, 'p') and len(axis) == 1)
           for at, axis in enumerate(x.axes)):
      raise refuse(place, 'a window over samples or features', 'they are no positions',
                   'Pool positions only.')
    where = [at for at, axis in enumerate(x.axes) for factor in axis if factor.kind == 'p']
    if len(set(where)) < len(where):
      raise refuse(place, 'a window over one of several positions in one axis',
                   'it is not followed', 'Reshape them apart.')
    take = lambda values, more: (*(values[at] for at in where), more)
    window, strides, padding, base, dilation = (
        take(one, more) for one, more in zip(own, (1, 1, (0, 0), 1, 1)))

    def pooled(a: Array) -> Array:
      zero = np.zeros((), a.dtype)  # As a known number, for which it has a derivative.
      return jax.lax.reduce_window(a, zero, jax.lax.add, window, strides, padding, base, dilation)

    shape = eqn.outvars[0].aval.shape
    axes = tuple((Factor('p', shape[at]),) if only(axis, 'p') and len(axis) == 1 else axis
                 for at, axis in enumerate(x.axes))
    move = PositionMap(pooled, x.sizes, sizes_of(axes), True)
    return x.each(lambda field: self._algebra.moved(field, move), axes)

  def _product(self, eqn, ins, place: str) -> Hidden:
    """A product with a fixed matrix, over positions."""
    at = 0 if isinstance(ins[0], Hidden) else 1
    x, matrix = ins[at], ins[1 - at]
    contracting, batch = eqn.params['dimension_numbers']
    if not isinstance(matrix, Known) or batch[0] or any(
        not only(x.axes[i], 'p') for i in contracting[at]):
      raise refuse(place, 'a product of two activities, or of features with numbers that are given',
                   'products of activities (attention) have kernels only in the limit of many '
                   'heads, and fixed mixtures of features are not independent',
                   'Mix features by weights, and positions by constants.')
    value = jnp.asarray(matrix.value)
    rows = contracting[1 - at]
    free = [i for i in range(value.ndim) if i not in rows]
    new = tuple((Factor('p', value.shape[i]),) for i in free)
    kept = tuple(axis for i, axis in enumerate(x.axes) if i not in contracting[at])
    axes = (*kept, *new) if at == 0 else (*new, *kept)
    places = positions_of(x.axes)
    over = [number for i in contracting[at] for number in places[i]]
    stay = [number for own in places for number in own if number not in over]

    def mixed(a: Array) -> Array:
      weights = value.astype(a.dtype).transpose(*rows, *free)
      weights = weights.reshape((-1,) + tuple(value.shape[i] for i in free))
      flat = a.transpose(*stay, a.ndim - 1, *over)
      flat = flat.reshape(flat.shape[:len(stay) + 1] + (-1,))
      out = jnp.tensordot(flat, weights, 1, precision='highest')
      order = ([*range(len(stay)), *range(len(stay) + 1, out.ndim)] if at == 0 else
               [*range(len(stay) + 1, out.ndim), *range(len(stay))])
      return out.transpose(*order, len(stay))

    move = PositionMap(mixed, x.sizes, sizes_of(axes), True)
    return x.each(lambda field: self._algebra.moved(field, move), axes)


def _constant_mean(field: Field) -> float | None:
  """The mean of a sum of Gaussian fields and numbers, None of anything else."""
  if any(not term.leaf.gaussian and (term.data or not isinstance(term.leaf, One))
         for term in field):
    return None
  return sum(term.scale for term in field if not term.leaf.gaussian)


def reason(name: str) -> tuple[str, str, str] | None:
  """Why a primitive of hidden values has no limit, for those that are often met."""
  if name in ('reduce_max', 'reduce_min', 'argmax', 'argmin', 'reduce_window_max',
              'reduce_window_min', 'reduce_window', 'select_and_gather_add', 'sort', 'top_k'):
    return ('the largest of several hidden values (max pooling, softmax)',
            'it is no function of one position and one feature', _POOL)
  if name in ('cumsum', 'cumlogsumexp', 'cummax', 'cumprod'):
    return 'a running sum', 'it is not followed', 'Write it as a product with a fixed matrix.'
  if name in ('while', 'gather', 'scatter', 'scatter-add', 'dynamic_update_slice', 'fft'):
    return (f'{name!r} of hidden values', 'it is not followed',
            'Take slices at constant places, and write loops of a fixed length.')
  return None
