"""Products of a parameter with data: matrix products, convolutions and lookups, as ops."""
import math
from collections.abc import Sequence

import numpy as np

from bioprop.limit.algebra import Algebra
from bioprop.limit.parameters import Uses
from bioprop.limit.values import Axes, Factor, Hidden, Param, Plain, has, only, positions_of, refuse
from bioprop.theory.fields.leaves import Applied, Data, Parameter, Term, Weighted
from bioprop.theory.fields.positions import Contraction, Convolution, Dense, Lookup

_SHARED = ('a weight that is shared by all features gets a gradient that is a sum over them and '
           'does not average out, so that its kernel stays random however wide the network is')


class Products:
  """Makes ops, and counts them."""

  def __init__(self, uses: Uses, algebra: Algebra):
    self._uses, self._algebra, self._count = uses, algebra, 0
    self.ops: list[Weighted] = []

  def dot_general(self, eqn, ins: Sequence, place: str) -> Hidden:
    """A matrix product of data with a weight."""
    at = next(i for i, one in enumerate(ins) if isinstance(one, Param))
    param, x = ins[at], ins[1 - at]
    (contracting, batch) = eqn.params['dimension_numbers']
    if batch[0]:
      raise refuse(place, f'a product with one weight of {param.paths[0]!r} for each entry of an '
                   f'axis', 'these layers lie beside each other', 'Write them one by one.')
    summed, free = contracting[1 - at], [i for i in range(len(ins[1 - at].axes if isinstance(
        x, Hidden) else x.shape)) if i not in contracting[1 - at]]
    features = [size for i, size in enumerate(param.value.shape) if i not in contracting[at]]
    width = math.prod(features)
    new = tuple((Factor('w', size),) for size in features)
    if isinstance(x, Plain):
      kept = _input_axes(x, free, place)
      axes = (*new, *kept) if at == 0 else (*kept, *new)
      before = tuple(factor.size for axis in kept for factor in axis if factor.kind == 'p')
      inputs = ((1, _rows(x, free, summed)),)
      fan_in = math.prod(x.shape[i] for i in summed)
      op = self._op(param, inputs, Dense(before), fan_in, place)
      return Hidden(axes, ((width, (Term(op),)),))
    kept = tuple(x.axes[i] for i in free)
    inner = [factor for i in summed for factor in x.axes[i]]
    _check_contracted(x, kept, inner, param, place)
    axes = (*new, *kept) if at == 0 else (*kept, *new)
    places = positions_of(x.axes)
    over = tuple(sorted(number for i in summed for number in places[i]))
    inputs = tuple((count, self._algebra.settled(field)) for count, field in x.parts)
    op = self._op(param, inputs, Dense(x.sizes, over), math.prod(f.size for f in inner), place)
    return Hidden(axes, ((width, (Term(op),)),))

  def convolution(self, eqn, ins: Sequence, place: str) -> Hidden:
    """A convolution of data with a kernel."""
    x, param = ins
    params, numbers = eqn.params, eqn.params['dimension_numbers']
    if not isinstance(param, Param) or params['batch_group_count'] != 1:
      raise refuse(place, 'a convolution whose kernel is data', 'it is no product with a weight',
                   'Convolve data with a parameter.')
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    order = sorted(range(len(lhs) - 2), key=lambda i: lhs[2 + i])  # Positions, as they lie.
    if sorted(range(len(out) - 2), key=lambda i: out[2 + i]) != order:
      raise refuse(place, 'a convolution that exchanges its spatial axes', 'it is not followed',
                   'Transpose before or after it.')
    shape = x.shape if isinstance(x, Plain) else tuple(math.prod(f.size for f in axis)
                                                       for axis in x.axes)
    take = lambda values: tuple(values[i] for i in order)
    contraction = Convolution(
        take([shape[i] for i in lhs[2:]]), take([param.value.shape[i] for i in rhs[2:]]),
        take(params['window_strides']), take(params['padding']), take(params['rhs_dilation']),
        take(params['lhs_dilation']))
    groups, width = params['feature_group_count'], param.value.shape[rhs[0]]
    channels, taps = param.value.shape[rhs[1]], math.prod(contraction.window)
    axes: list = [None] * len(out)
    axes[out[0]], axes[out[1]] = (Factor('s', shape[lhs[0]]),), (Factor('w', width),)
    for i, size in zip(order, contraction.after):
      axes[out[2 + i]] = (Factor('p', size),)
    made = []
    for first, count, inputs in self._groups(x, lhs, groups, channels, place):
      index = None
      if groups > 1 and param.index is not None:
        by_output = np.moveaxis(param.index, rhs[0], 0).reshape(groups, -1)
        index = by_output[first:first + count]
      op = self._op(param, inputs, contraction, channels * taps, place, index)
      made.append((count * width // groups, (Term(op),)))
    return Hidden(tuple(axes), tuple(made))

  def lookup(self, eqn, ins: Sequence, place: str) -> Hidden:
    """Rows of a table, by whole numbers."""
    param, index = ins[:2]
    numbers, shape = eqn.params['dimension_numbers'], param.value.shape
    out = eqn.outvars[0].aval.shape
    offsets = numbers.offset_dims
    plain = isinstance(index, Plain) and index.shape[-1:] == (1,) and (
        tuple(numbers.start_index_map) == (0,) == tuple(numbers.collapsed_slice_dims)
        and tuple(eqn.params['slice_sizes']) == (1, *shape[1:])
        and offsets == tuple(range(len(out) - len(shape) + 1, len(out))))
    if not plain:
      raise refuse(place, f'a lookup in {param.paths[0]!r} that takes no whole rows',
                   'it is no embedding', 'Look up rows: table[ids].')
    free = list(range(len(index.shape) - 1))
    kept = _input_axes(index, free, place)
    sizes = tuple(factor.size for axis in kept for factor in axis if factor.kind == 'p')
    rows = Applied(lambda a: a[..., 0], (_rows(index, free, (len(index.shape) - 1,)),))
    op = self._op(param, ((1, rows),), Lookup(sizes), 1, place)
    new = tuple((Factor('w', size),) for size in shape[1:])
    return Hidden((*kept, *new), ((math.prod(shape[1:]), (Term(op),)),))

  def _op(self, param: Param, inputs, contraction: Contraction, fan_in: int, place: str,
          index=None) -> Weighted:
    if param.index is not None and np.unique(param.index).size < param.index.size:
      raise refuse(place, f'a weight of {param.paths[0]!r} that has entries twice',
                   'they are not independent', 'Give every product its own entry.')
    weight: Parameter = self._uses.use(param, place, index)
    self._uses.weights.add(weight.name)
    op = Weighted(contraction.after, weight, inputs, contraction, self._count, fan_in)
    self._count += 1
    self.ops.append(op)
    return op

  def _groups(self, x, lhs, groups: int, channels: int, place: str):
    """(first group, how many, their inputs) of groups that see the same."""
    if isinstance(x, Plain):
      free = [lhs[0], *sorted(lhs[2:])]
      data = _rows(x, free, (lhs[1],))
      if x.axis != lhs[0]:
        raise refuse(place, 'a convolution over samples', 'they would depend on each other',
                     'Keep the first axis for the samples.')
      for group in range(groups):
        yield group, 1, ((1, data if groups == 1 else _slice_of(data, group, channels)),)
      return
    if not only(x.axes[lhs[1]], 'w') or not only(x.axes[lhs[0]], 's') or any(
        not only(x.axes[i], 'p') for i in lhs[2:]):
      raise refuse(place, 'a convolution whose features are not one axis of their own',
                   'features and positions are merged', 'Reshape them apart.')
    if groups > 1 and channels == 1:
      raise refuse(place, 'a depthwise convolution', 'each of its outputs is a sum over the few '
                   'taps of one feature, and is not Gaussian however many features there are',
                   'Use groups that grow with the width.')
    parts = tuple((count, self._algebra.settled(field)) for count, field in x.parts)
    if groups == 1:
      yield 0, 1, parts
      return
    first = 0
    for count, field in parts:
      if count % channels:
        raise refuse(place, 'a grouped convolution whose groups see features of several kinds',
                     'their kernels differ', 'Join features after it.')
      yield first, count // channels, ((channels, field),)
      first += count // channels


def _slice_of(data: Data, group: int, channels: int) -> Data:
  return Applied(lambda a: a[..., group * channels:(group + 1) * channels], (data,))


def _input_axes(x: Plain, free: Sequence[int], place: str) -> Axes:
  if x.axis is None or x.axis not in free:
    raise refuse(place, 'a product over the axis of the samples, or with inputs that have none',
                 'samples would depend on each other', 'Keep the first axis for the samples.')
  return tuple((Factor('s' if i == x.axis else 'p', x.shape[i]),) for i in free)


def _rows(x: Plain, free: Sequence[int], summed: Sequence[int]) -> Data:
  """[n, *P, k] of inputs."""
  order = [x.axis, *(i for i in free if i != x.axis), *summed]
  lead = len(order) - len(summed)

  def arrange(array):
    moved = array.transpose(order)
    return moved.reshape(moved.shape[:lead] + (-1,))

  return Applied(arrange, (x.data,))


def _check_contracted(x: Hidden, kept: Axes, inner: Sequence[Factor], param: Param,
                      place: str) -> None:
  if any(factor.kind == 's' for factor in inner):
    raise refuse(place, 'a product over the axis of the samples',
                 'samples would depend on each other', 'Keep the first axis for the samples.')
  if any(has(axis, 'w') for axis in kept):
    raise refuse(place, f'the product of {param.paths[0]!r} with positions, apart for each feature '
                 f'(token mixing)', _SHARED, 'Mix positions by constants (a mean, a fixed matrix), '
                 'and features by weights.')

