"""What the reader knows of every value of a network whose hidden widths are infinite."""
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory.fields.leaves import Applied, Data, Field

Size = int


class Factor(NamedTuple):
  """A part of an axis: 's' samples, 'p' positions, 'w' features."""
  kind: str
  size: Size


Axes = tuple[tuple[Factor, ...], ...]


@dataclasses.dataclass(frozen=True)
class Known:
  """A constant."""
  value: Any

  @property
  def uniform(self) -> float | None:
    """The number that it has everywhere, None if it has several."""
    value = np.asarray(self.value)
    if not value.size or value.dtype == object or jax.dtypes.issubdtype(
        getattr(self.value, 'dtype', value.dtype), jax.dtypes.prng_key):
      return None
    first = value.reshape(-1)[0]
    return first.item() if np.all(value == first) else None


@dataclasses.dataclass(frozen=True)
class Plain:
  """Numbers that inputs determine.

  Attributes:
    data: the numbers, shaped as in the jaxpr.
    shape: their shape.
    axis: which axis is the samples'.
    flat: axes along which they are all equal.
  """
  data: Data
  shape: tuple[int, ...]
  axis: int | None
  flat: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Param:
  """What is made of parameters alone.

  Attributes:
    value: as it is drawn.
    index: whose entry each one is: numbers [shape] of all parameters' entries; None if they are
      more than moved and multiplied by a constant.
    scale: this constant.
    paths: the parameters.
    made: the primitive that did more.
  """
  value: Any
  index: np.ndarray | None
  scale: float
  paths: tuple[str, ...]
  made: str = ''


@dataclasses.dataclass(frozen=True)
class Gain:
  """A parameter times numbers that are alike for all features, as in a norm."""
  plain: Plain
  param: Param


@dataclasses.dataclass(frozen=True)
class Hidden:
  """Features of infinite width.

  Attributes:
    axes: what each axis of the array is made of.
    parts: how many features there are of each field.
  """
  axes: Axes
  parts: tuple[tuple[int, Field], ...]

  @property
  def sizes(self) -> tuple[int, ...]:
    """Of its positions, in their order."""
    return sizes_of(self.axes)

  @property
  def width(self) -> int:
    """How many features there are."""
    return sum(count for count, _ in self.parts)

  def each(self, change: Callable[[Field], Field], axes: Axes | None = None) -> 'Hidden':
    """With other fields in place of its own."""
    return Hidden(self.axes if axes is None else axes,
                  tuple((count, change(field)) for count, field in self.parts))


Value = Known | Plain | Param | Gain | Hidden


def sizes_of(axes: Axes) -> tuple[int, ...]:
  """Sizes of the positions of some axes."""
  return tuple(factor.size for axis in axes for factor in axis if factor.kind == 'p')


def positions_of(axes: Axes) -> list[list[int]]:
  """The numbers of the positions in each axis, in their order."""
  numbers = itertools.count()
  return [[next(numbers) for factor in axis if factor.kind == 'p'] for axis in axes]


def has(axis: tuple[Factor, ...], kind: str) -> bool:
  """Whether an axis has a factor of a kind."""
  return any(factor.kind == kind for factor in axis)


def only(axis: tuple[Factor, ...], kind: str) -> bool:
  """Whether an axis has factors of one kind alone."""
  return all(factor.kind == kind for factor in axis)


def arranged(data: Data, axes: Axes, features: bool) -> Data:
  """Numbers shaped as in the jaxpr, as [n, *P], or [n, *P, features].

  Args:
    data: the numbers.
    axes: of the hidden value that they meet.
    features: whether they differ between features; else those of the first are taken.
  """
  factors = [factor for axis in axes for factor in axis]
  order = sorted(range(len(factors)), key=lambda at: ('spw'.index(factors[at].kind), at))
  sizes = tuple(factor.size for factor in factors)
  lead = 1 + sum(factor.kind == 'p' for factor in factors)

  def arrange(array):
    moved = array.reshape(sizes).transpose(order)
    moved = moved.reshape(moved.shape[:lead] + (-1,))
    return moved if features else moved[..., 0]

  return Applied(arrange, (data,))


def refuse(place: str, what: str, why: str, instead: str) -> TheoryError:
  """The refusal of what has no limit of infinite width."""
  return TheoryError(f'{place}: {what} has no kernel at infinite width here: {why}. {instead}')
