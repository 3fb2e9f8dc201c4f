"""What is made of parameters alone, followed entry by entry; and parameters that meet features."""
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.jaxprs.layout import bind
from bioprop.limit.values import Axes, Known, Param, refuse
from bioprop.theory.fields.leaves import Parameter

MOVES = frozenset('''transpose reshape squeeze expand_dims broadcast_in_dim slice dynamic_slice rev
    concatenate gather copy copy_p split squeeze'''.split())
_SAME = frozenset('convert_element_type reduce_precision copy copy_p stop_gradient'.split())


class Uses:
  """The parameters that a network uses, each at one place.

  Attributes:
    entries: of each use by name, the parameter's path and which of its entries, and by what they
      are multiplied.
    weights: names of those that multiply data in products.
  """

  def __init__(self, params: Mapping[str, Any], again: Mapping[str, Any] | None = None):
    """Args: the parameters by path; and a second draw, to tell constants from single numbers."""
    self.values = {path: np.asarray(value) for path, value in params.items()}
    self._again = self.values if again is None else again
    starts = itertools.accumulate((value.size for value in self.values.values()), initial=0)
    self._starts = dict(zip(self.values, starts))
    self.entries: dict[str, tuple[str, np.ndarray, float]] = {}
    self.weights: set[str] = set()
    self._used: dict[str, np.ndarray] = {}

  def param(self, path: str) -> Param:
    """A parameter as it comes in."""
    value = self.values[path]
    index = self._starts[path] + np.arange(value.size).reshape(value.shape)
    return Param(value, index, 1.0, (path,))

  def uniform(self, param: Param) -> float | None:
    """The number that a parameter starts as everywhere, in all draws; None if it has several."""
    value = Known(param.value).uniform
    if value is None or param.index is None:
      return value
    again = [np.asarray(self._again[path]).reshape(-1) for path in param.paths]
    return value if all(np.all(own == own[:1]) and own[0] * param.scale == value
                        for own in again) else None

  def use(self, param: Param, place: str, index: np.ndarray | None = None) -> Parameter:
    """Notes that entries of a parameter meet features.

    Raises:
      TheoryError: if they did before, are made of others by more than moves and a constant factor,
        or are of several parameters.
    """
    if param.index is None:
      raise refuse(place, f'a weight that {param.made!r} makes of {", ".join(param.paths)}',
                   'its entries are no longer independent numbers with the variance of their '
                   'initialiser', 'Use the parameter itself, moved or multiplied by a constant.')
    if len(param.paths) > 1:
      raise refuse(place, f'a weight of several parameters, {", ".join(param.paths)}',
                   'they may differ in variance and in how they learn',
                   'Use them one by one, and add or join what they give.')
    path, = param.paths
    own = np.unique((param.index if index is None else index) - self._starts[path])
    used = self._used.setdefault(path, np.zeros(self.values[path].size, bool))
    if used[own].any():
      raise refuse(place, f'the parameter {path!r}, which is used a second time',
                   'two uses of one weight are correlated (recurrent and tied networks have other '
                   'limits)', 'Give each place its own weight.')
    used[own] = True
    whole = own.size == used.size
    count = sum(1 for name in self.entries if name.partition('[')[0] == path)
    name = path if whole else f'{path}[{count}]'
    self.entries[name] = path, own, param.scale
    return Parameter(name, param.scale)


def follow(eqn, ins: Sequence[Any]) -> list[Param]:
  """Runs an equation on parameters and constants."""
  values = bind(eqn, [jnp.asarray(one.value) for one in ins])
  params = [one for one in ins if isinstance(one, Param)]
  paths = tuple(dict.fromkeys(path for one in params for path in one.paths))
  made = next((one.made for one in params if one.index is None), eqn.primitive.name)
  lost = [Param(value, None, 1.0, paths, made) for value in values]
  if any(one.index is None for one in params):
    return lost
  name = eqn.primitive.name
  if name in _SAME:
    return [Param(values[0], params[0].index, params[0].scale, paths)]
  if name in MOVES and len({one.scale for one in params}) == 1 and (
      isinstance(ins[0], Param) and (name != 'concatenate' or len(params) == len(ins))):
    numbers = [jnp.asarray(one.index if isinstance(one, Param) else one.value) for one in ins]
    moved = _rows(eqn, numbers) if name == 'gather' else bind(eqn, numbers)
    return [Param(value, np.asarray(index), params[0].scale, paths)
            for value, index in zip(values, moved)]
  if name in ('mul', 'div', 'neg') and len(params) == 1 and isinstance(ins[0], Param) or (
      name == 'mul' and len(params) == 1):
    factor = next((one.uniform for one in ins if isinstance(one, Known)), -1.0)
    if factor is not None and factor != 0:
      param = params[0]
      scale = param.scale / factor if name == 'div' else param.scale * factor
      index = np.broadcast_to(param.index, values[0].shape)
      return [Param(values[0], index, scale, paths)]
  return lost


def _rows(eqn, numbers):
  """A lookup of whole numbers, which have no NaN for what is out of range."""
  options = {**eqn.params, 'mode': jax.lax.GatherScatterMode.CLIP, 'fill_value': None}
  return [eqn.primitive.bind(*numbers, **options)]


def entries_of(param: Param, axes: Axes, place: str) -> np.ndarray | None:
  """Which positions share an entry of a parameter that meets features, [*P]; None: all do.

  Raises:
    TheoryError: if samples or features do not each have their own in the same way.
  """
  if param.index is None:
    return None  # `Uses.use` refuses it.
  factors = [factor for axis in axes for factor in axis]
  order = sorted(range(len(factors)), key=lambda at: ('spw'.index(factors[at].kind), at))
  full = param.index.reshape(tuple(factor.size for factor in factors)).transpose(order)
  positions = tuple(factor.size for factor in factors if factor.kind == 'p')
  full = full.reshape((full.shape[0], *positions, -1))
  if np.any(full != full[:1]):
    raise refuse(place, f'the parameter {param.paths[0]!r}', 'it has entries for single samples',
                 'Share it between samples.')
  one = full[0]
  if one.shape[-1] > 1 and np.unique(one.reshape(-1, one.shape[-1])[0]).size < one.shape[-1]:
    raise refuse(place, f'the parameter {param.paths[0]!r}, of which one number is shared by '
                 f'several features', 'its gradient is a sum over all of them, which does not '
                 'average out, so that its kernel stays random however wide the network is',
                 'Give every feature its own, or make it a constant.')
  pattern = one[..., 0]
  return None if np.all(pattern == pattern.reshape(-1)[:1]) else pattern

