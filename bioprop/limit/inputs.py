"""Numbers that inputs determine, before they meet a weight and beside hidden values."""
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bioprop.jaxprs.layout import bind
from bioprop.limit.expressions import ELEMENTWISE
from bioprop.limit.values import Known, Param, Plain, Value, refuse
from bioprop.network import axes as network_axes
from bioprop.theory.fields.leaves import Applied, Given


def operand(one: Value) -> Value | float:
  """A constant as a number, or as numbers that inputs might have determined."""
  if not isinstance(one, Known):
    return one
  number = one.uniform
  if number is not None:
    return number
  shape = np.shape(one.value)
  flat = frozenset(at for at in range(len(shape)) if _is_flat(one.value, at))
  return Plain(Applied(lambda: jnp.asarray(one.value), ()), shape, None, flat)


def inputs_of(leaves: Sequence[Any]) -> list[Plain]:
  """The inputs of a network; the samples' axis is the first of those that are as long as it."""
  shapes = [tuple(leaf.shape) for leaf in leaves]
  count = next((shape[0] for shape in shapes if shape), None)
  return [Plain(Given(at), shape, 0 if shape and shape[0] == count else None)
          for at, shape in enumerate(shapes)]


def plain(eqn, ins: Sequence[Known | Plain]) -> list[Value]:
  """An equation of inputs and constants."""
  where = network_axes.moved(eqn, [one.axis if isinstance(one, Plain) else None for one in ins])
  plain = [one for one in ins if isinstance(one, Plain)]
  values = [one.value if isinstance(one, Known) else None for one in ins]

  def run(*arrays):
    rest = iter(arrays)
    return bind(eqn, [next(rest) if value is None else value for value in values])

  shared = Applied(run, tuple(one.data for one in plain))
  return [Plain(Applied(lambda outs, at=at: outs[at], (shared,)), tuple(var.aval.shape), axis,
                _flat(eqn, ins, tuple(var.aval.shape)))
          for at, (var, axis) in enumerate(zip(eqn.outvars, where))]


def _flat(eqn, ins, shape) -> frozenset[int]:
  """Axes along which an output is known to be equal everywhere."""
  name = eqn.primitive.name
  if name in ELEMENTWISE:
    own = []
    for one in ins:
      if isinstance(one, Plain):
        own.append(one.flat)
      elif np.ndim(one.value) and one.uniform is None:
        own.append(frozenset(at for at in range(np.ndim(one.value)) if _is_flat(one.value, at)))
    return frozenset(range(len(shape))).intersection(*own)
  first = ins[0]
  if not isinstance(first, Plain):
    return frozenset()
  if name == 'broadcast_in_dim':
    where = eqn.params['broadcast_dimensions']
    return frozenset(at for at in range(len(shape)) if at not in where or (
        where.index(at) in first.flat or first.shape[where.index(at)] == 1))
  if name in ('reshape', 'squeeze', 'expand_dims'):
    return frozenset(at for old, new in _groups(first.shape, shape)
                     if all(own in first.flat or first.shape[own] == 1 for own in old)
                     for at in new)
  if name == 'transpose':
    return frozenset(at for at, own in enumerate(eqn.params['permutation']) if own in first.flat)
  return frozenset()


def _groups(old, new) -> list[tuple[list[int], list[int]]]:
  """Axes before and after a reshape that have the same entries."""
  groups, at, start = [], 0, 0
  for stop in range(1, len(new) + 1):
    size, own = math.prod(new[start:stop]), []
    while at + len(own) < len(old) and math.prod(old[at:at + len(own)]) < size:
      own.append(at + len(own))
    if math.prod(old[at:at + len(own)]) == size:
      groups.append((own, list(range(start, stop))))
      at, start = at + len(own), stop
  return groups


def _is_flat(value, at: int) -> bool:
  own = np.asarray(value)
  return bool(np.all(own == np.take(own, [0], at)))


def step_of(value: Value, step: int, place: str) -> Value:
  """A slice of what a scan runs over."""
  if isinstance(value, Known):
    return Known(value.value[step])
  if isinstance(value, Param):
    index = None if value.index is None else value.index[step]
    return dataclasses.replace(value, value=value.value[step], index=index)
  if isinstance(value, Plain) and value.axis != 0:
    return Plain(Applied(lambda a: a[step], (value.data,)), value.shape[1:],
                 None if value.axis is None else value.axis - 1,
                 frozenset(at - 1 for at in value.flat if at))
  raise refuse(place, 'a loop over hidden values, or over samples', 'its steps share weights, or '
               'samples meet', 'Scan over layers, whose weights are stacked.')
