"""What moves the axes of hidden values about, or puts hidden values side by side."""
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.limit.algebra import Algebra
from bioprop.limit.values import (
  Axes,
  Factor,
  Hidden,
  Known,
  Value,
  has,
  only,
  positions_of,
  refuse,
  sizes_of,
)
from bioprop.theory.fields.leaves import Field
from bioprop.theory.fields.positions import PositionMap

_SPLIT = 'Keep features in one axis of their own.'


class Moves:
  """Moves of hidden values, by the name of their primitive: maps (equation, inputs, place)."""

  def __init__(self, algebra: Algebra):
    self._algebra = algebra
    self.known: dict[str, Callable[..., Any]] = {
        'reshape': self._reshape, 'squeeze': self._reshape, 'expand_dims': self._reshape,
        'transpose': self._transpose, 'broadcast_in_dim': self._broadcast, 'slice': self._slice,
        'dynamic_slice': self._slice, 'split': self._split, 'rev': self._reverse,
        'pad': self._pad}

  def _reshape(self, eqn, ins, place: str) -> Hidden:
    x, shape = ins[0], eqn.outvars[0].aval.shape
    factors = [factor for axis in x.axes for factor in axis if factor.size > 1 or (
        factor.kind != 'p')]
    axes, parts = [], list(factors)
    for size in shape:
      own, have = [], 1
      while have < size or (not own and parts and parts[0].size == 1 and size == 1):
        if not parts:
          raise _merged(place)
        factor = parts.pop(0)
        if have * factor.size > size:  # The rest of it belongs to the next axis.
          wanted = size // have
          if size % have or factor.size % wanted or factor.kind == 's':
            raise _merged(place)
          parts.insert(0, Factor(factor.kind, factor.size // wanted))
          factor = Factor(factor.kind, wanted)
        own.append(factor)
        have *= factor.size
      axes.append(tuple(own) if own else (Factor('p', 1),))
    if any(factor.size > 1 or factor.kind == 's' for factor in parts):
      raise _merged(place)
    return self._resized(x, tuple(axes))

  def _resized(self, x: Hidden, axes: Axes) -> Hidden:
    """Axes whose positions lie in the same order."""
    before, after = x.sizes, sizes_of(axes)
    if before == after:
      return Hidden(axes, x.parts)
    move = PositionMap(lambda a: a.reshape(after + a.shape[-1:]), before, after, False)
    return x.each(lambda field: self._algebra.moved(field, move), axes)

  def _transpose(self, eqn, ins, place: str) -> Hidden:
    x, order = ins[0], eqn.params['permutation']
    places = positions_of(x.axes)
    axes = tuple(x.axes[i] for i in order)
    moved = tuple(at for i in order for at in places[i])
    if moved == tuple(range(len(moved))):
      return Hidden(axes, x.parts)
    move = PositionMap(lambda a: a.transpose(*moved, len(moved)), x.sizes, sizes_of(axes), False)
    return x.each(lambda field: self._algebra.moved(field, move), axes)

  def _broadcast(self, eqn, ins, place: str) -> Hidden:
    return self._repeated(ins[0], eqn.params['shape'], eqn.params['broadcast_dimensions'], place)

  def grown(self, x: Hidden, shape, place: str) -> Hidden:
    """With axes of one position as long as a shape has them."""
    lead = len(shape) - len(x.axes)
    return self._repeated(x, shape, tuple(range(lead, len(shape))), place)

  def _repeated(self, x: Hidden, shape, where, place: str) -> Hidden:
    axes, lead = [], []
    for at, size in enumerate(shape):
      if at not in where:
        axes.append((Factor('p', size),))
        lead.append(None)
        continue
      axis = x.axes[where.index(at)]
      grows = math.prod(factor.size for factor in axis) != size
      if grows and not only(axis, 'p'):
        raise refuse(place, 'a hidden value that is repeated along samples or features',
                     'its copies would not be independent', 'Repeat positions only.')
      axes.append((Factor('p', size),) if grows else axis)
      lead.append(axis)
    before, after = x.sizes, sizes_of(tuple(axes))
    if before == after:
      return Hidden(tuple(axes), x.parts)
    # Each new axis stands where an axis of one position is put in.
    inner = tuple(1 if own is None else size for own, axis in zip(lead, axes)
                  for size in (sizes_of((own if own is not None else axis,))))

    def repeat(array):
      return jnp.broadcast_to(array.reshape(inner + array.shape[-1:]), after + array.shape[-1:])

    move = PositionMap(repeat, before, after, False)
    return x.each(lambda field: self._algebra.moved(field, move), tuple(axes))

  def _slice(self, eqn, ins, place: str) -> Hidden:
    x, sizes = ins[0], [math.prod(f.size for f in axis) for axis in ins[0].axes]
    if eqn.primitive.name == 'dynamic_slice':
      lengths = eqn.params['slice_sizes']
      if not all(isinstance(one, Known) for one in ins[1:]):
        raise refuse(place, 'a slice that begins where data says', 'it is no linear map of '
                     'positions', 'Begin it at a constant.')
      # As JAX does, a start too large is moved back.
      starts = [min(max(int(one.value), 0), size - length)
                for one, size, length in zip(ins[1:], sizes, lengths)]
      limits, strides = [s + n for s, n in zip(starts, lengths)], [1] * len(sizes)
    else:
      starts, limits = eqn.params['start_indices'], eqn.params['limit_indices']
      strides = eqn.params['strides'] or [1] * len(sizes)
    return self._taken(x, [slice(*one) for one in zip(starts, limits, strides)], place)

  def _taken(self, x: Hidden, slices: Sequence[slice], place: str) -> Hidden:
    """A slice along each axis."""
    axes, index, parts = [], [], x.parts
    for axis, own in zip(x.axes, slices):
      size = math.prod(factor.size for factor in axis)
      length = len(range(*own.indices(size)))
      if (own.start, length) == (0, size) and own.step == 1:
        axes.append(axis)
        index += [slice(None)] * sum(factor.kind == 'p' for factor in axis)
        continue
      if len(axis) != 1 or axis[0].kind == 's' or axis[0].kind == 'w' and own.step != 1:
        raise refuse(place, 'a slice of samples, or of features and positions in one axis',
                     'what is left are not all features of a position', _SPLIT)
      if axis[0].kind == 'w':
        if sum(has(one, 'w') for one in x.axes) > 1:
          raise refuse(place, 'a slice of features that lie in several axes', 'it is not followed',
                       _SPLIT)
        parts = self._features(parts, own.start, own.stop)
      else:
        index.append(own)
      axes.append((Factor(axis[0].kind, length),))
    axes = tuple(axes)
    if all(one == slice(None) for one in index):
      return Hidden(axes, parts)
    move = PositionMap(lambda a: a[tuple(index)], x.sizes, sizes_of(axes), False)
    return Hidden(axes, parts).each(lambda field: self._algebra.moved(field, move))

  def _features(self, parts, start: int, stop: int):
    """The parts of features from start to stop."""
    found, at = [], 0
    for count, field in parts:
      first, last = max(start - at, 0), min(stop - at, count)
      if first < last:
        whole = (first, last) == (0, count)
        found.append((last - first, field if whole else self._algebra.take(field, (first, last))))
      at += count
    return tuple(found)

  def _split(self, eqn, ins, place: str) -> list[Hidden]:
    x, at, start, outs = ins[0], eqn.params['axis'], 0, []
    for size in eqn.params['sizes']:
      slices = [slice(0, None, 1)] * len(x.axes)
      slices[at] = slice(start, start + size, 1)
      outs.append(self._taken(x, slices, place))
      start += size
    return outs

  def _reverse(self, eqn, ins, place: str) -> Hidden:
    x, index = ins[0], []
    for at, axis in enumerate(x.axes):
      turned = at in eqn.params['dimensions']
      if turned and len(axis) > 1 and not only(axis, 'w') or turned and has(axis, 's'):
        raise refuse(place, 'samples that are reversed, or features together with positions',
                     'it is not followed', _SPLIT)
      index += [slice(None, None, -1 if turned else 1)] * sum(f.kind == 'p' for f in axis)
    move = PositionMap(lambda a: a[tuple(index)], x.sizes, x.sizes, False)
    return x.each(lambda field: self._algebra.moved(field, move))

  def _pad(self, eqn, ins, place: str) -> Hidden:
    x, config, axes = ins[0], eqn.params['padding_config'], []
    if not isinstance(ins[1], Known) or ins[1].uniform != 0:
      raise refuse(place, 'padding with another number than 0', 'it is no linear map', 'Pad by 0.')
    own = []
    for axis, one in zip(x.axes, config):
      if one == (0, 0, 0):
        axes.append(axis)
        own += [one] * sum(factor.kind == 'p' for factor in axis)
        continue
      if not only(axis, 'p') or len(axis) != 1:
        raise refuse(place, 'samples or features that are padded', 'they would differ', _SPLIT)
      low, high, inner = one
      axes.append((Factor('p', axis[0].size + low + high + inner * max(axis[0].size - 1, 0)),))
      own.append(one)

    def padded(a):
      return jax.lax.pad(a, jnp.zeros((), a.dtype), [*own, (0, 0, 0)])

    move = PositionMap(padded, x.sizes, sizes_of(tuple(axes)), False)
    return x.each(lambda field: self._algebra.moved(field, move), tuple(axes))

  def joined(self, eqn, ins: Sequence[Value], place: str) -> Hidden:
    """Hidden values side by side, along features or positions."""
    at = eqn.params['dimension']
    if not all(isinstance(one, Hidden) for one in ins):
      raise refuse(place, 'hidden features that are joined with numbers that are given',
                   'the features differ from each other in what they are', 'Give the numbers a '
                   'weight of their own, and add what the two weights make.')
    axes = [list(one.axes) for one in ins]
    if all(only(own[at], 'w') for own in axes) and all(len(own[at]) == 1 for own in axes):
      first = list(ins[0].axes)
      first[at] = (Factor('w', sum(one.axes[at][0].size for one in ins)),)
      return Hidden(tuple(first), tuple(part for one in ins for part in one.parts))
    if not all(only(own[at], 'p') and len(own[at]) == 1 for own in axes):
      raise refuse(place, 'samples that are joined, or features with positions', 'it is not '
                   'followed', _SPLIT)
    sizes = [own[at][0].size for own in axes]
    axis = sum(factor.kind == 'p' for one in ins[0].axes[:at] for factor in one)
    result, start = None, 0
    for one, size in zip(ins, sizes):
      config = [(0, 0, 0)] * (len(one.sizes) + 1)
      config[axis] = (start, sum(sizes) - start - size, 0)
      new = list(one.axes)
      new[at] = (Factor('p', sum(sizes)),)
      padded = lambda a, config=config: jax.lax.pad(a, jnp.zeros((), a.dtype), config)
      move = PositionMap(padded, one.sizes, sizes_of(tuple(new)), False)
      own = one.each(lambda field, move=move: self._algebra.moved(field, move), tuple(new))
      result = own if result is None else self.added(result, own, place)
      start += size
    return result

  def added(self, a: Hidden, b: Hidden, place: str) -> Hidden:
    """The sum of two hidden values."""
    return self.together(a, b, self._algebra.plus, place)

  def together(self, a: Hidden, b: Hidden, join: Callable[[Field, Field], Field],
               place: str) -> Hidden:
    """Two hidden values with the same axes, feature by feature."""
    if a.axes != b.axes:
      raise refuse(place, 'two hidden values whose features lie along different axes',
                   'features of one would meet positions of the other', _SPLIT)
    ends = sorted({0, *itertools.accumulate(count for count, _ in a.parts),
                   *itertools.accumulate(count for count, _ in b.parts)})
    if len(ends) == 2:
      return Hidden(a.axes, ((a.parts[0][0], join(a.parts[0][1], b.parts[0][1])),))
    parts = []
    for start, stop in itertools.pairwise(ends):
      (_, one), = self._features(a.parts, start, stop)
      (_, other), = self._features(b.parts, start, stop)
      parts.append((stop - start, join(one, other)))
    return Hidden(a.axes, tuple(parts))


def _merged(place: str):
  return refuse(place, 'a reshape that brings samples, features and positions into one axis, or '
                'takes them apart, otherwise than they lie', 'what is a feature is no longer known',
                _SPLIT)
