"""How positions move: linear maps of them, and the sums over positions that weights make.

Kernels are arrays [a, b, *P], of equal positions, or [a, b, *P, *P'], of all pairs of them; a and b
are the two sides' samples. A map that does not mix positions closes on equal ones; one that does
(pooling) needs all pairs of what it pools.
"""
import abc
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bioprop.typing import Array

Sizes = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PositionMap:
  """A linear map of positions.

  Attributes:
    function: maps [*P, k] to [*Q, k].
    before, after: P and Q.
    mixes: several positions go into one.
  """
  function: Callable[[Array], Array]
  before: Sizes
  after: Sizes
  mixes: bool

  def left(self, kernel: Array) -> Array:
    """Of the positions of the left side; [a, b, *P, ...] to [a, b, *Q, ...]."""
    return self._at(kernel, 2)

  def right(self, kernel: Array) -> Array:
    """Of the right side's: the last axes."""
    return self._at(kernel, kernel.ndim - len(self.before))

  def of(self, array: Array) -> Array:
    """Of numbers [n, *P]."""
    return self._at(array, 1)

  def _at(self, array: Array, first: int) -> Array:
    rank = len(self.before)
    front = jnp.moveaxis(array, range(first, first + rank), range(rank))
    rest = front.shape[rank:]
    moved = self.function(front.reshape(self.before + (math.prod(rest),)))
    return jnp.moveaxis(moved.reshape(self.after + rest), range(len(self.after)),
                        range(first, first + len(self.after)))


class Contraction(abc.ABC):
  """Sums of products of inputs at the positions that one output of an op sees.

  Attributes:
    before, after: sizes of the input's and of the output's positions.
  """
  before: Sizes
  after: Sizes

  @abc.abstractmethod
  def needs_pairs(self, pairs: bool) -> bool:
    """Whether the input's kernel is needed of all pairs, for the output's of pairs or not."""

  @abc.abstractmethod
  def __call__(self, kernel: Array, pairs: bool) -> Array:
    """Maps the input's kernel, as `needs_pairs` has it, to the output's."""


@dataclasses.dataclass(frozen=True)
class Dense(Contraction):
  """A matrix product, over features and perhaps over some positions.

  Attributes:
    before: the input's positions.
    summed: which of them are summed over, by number.
  """
  before: Sizes
  summed: Sizes = ()

  @property
  def after(self):
    """Those that are not summed over."""
    return tuple(size for at, size in enumerate(self.before) if at not in self.summed)

  def needs_pairs(self, pairs):
    return pairs and bool(self.after)

  def __call__(self, kernel, pairs):
    rank = len(self.before)
    if pairs and self.after:
      for at in sorted(self.summed, reverse=True):
        kernel = jnp.trace(kernel, axis1=2 + at, axis2=2 + rank + at)
        rank -= 1
      return kernel
    return jnp.sum(kernel, tuple(2 + at for at in self.summed))


@dataclasses.dataclass(frozen=True)
class Convolution(Contraction):
  """A convolution over all positions, whose weights are alike at every tap.

  Attributes:
    before: the input's positions.
    window, strides, dilation: of the kernel, along each axis.
    padding: (low, high) along each.
    spread: the input's own dilation, as transposed convolutions have it.
  """
  before: Sizes
  window: Sizes
  strides: Sizes
  padding: tuple[tuple[int, int], ...]
  dilation: Sizes
  spread: Sizes

  @property
  def after(self):
    """The output's positions."""
    return tuple(self._length(at) for at in range(len(self.before)))

  def needs_pairs(self, pairs):
    return pairs

  def __call__(self, kernel, pairs):
    rank = len(self.before)
    for at in range(rank):
      axes = (2 + at, 2 + rank + at) if pairs else (2 + at,)
      kernel = self._along(kernel, at, axes)
    return kernel

  def _length(self, at: int) -> int:
    spread = (self.before[at] - 1) * self.spread[at] + 1 if self.before[at] else 0
    padded = spread + sum(self.padding[at])
    return max(0, (padded - (self.window[at] - 1) * self.dilation[at] - 1) // self.strides[at] + 1)

  def _along(self, kernel: Array, at: int, axes: Sequence[int]) -> Array:
    """The sum over the taps of one axis, at which both sides' positions move together."""
    zero = jnp.zeros((), kernel.dtype)
    config = [(0, 0, 0)] * kernel.ndim
    for axis in axes:
      config[axis] = (*self.padding[at], self.spread[at] - 1)
    padded = jax.lax.pad(kernel, zero, config)
    length = (self._length(at) - 1) * self.strides[at] + 1
    total = None
    for tap in range(self.window[at]):
      start = tap * self.dilation[at]
      index = [slice(None)] * kernel.ndim
      for axis in axes:
        index[axis] = slice(start, start + length, self.strides[at])
      own = padded[tuple(index)]
      total = own if total is None else total + own
    return total


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup(Contraction):
  """Rows of a table, by whole numbers [n, *P]: equal where these are."""
  after: Sizes

  @property
  def before(self):
    """The numbers'."""
    return self.after

  def needs_pairs(self, pairs):
    return pairs

  def __call__(self, kernel, pairs):
    del pairs
    return kernel


def equal_positions(kernel: Array, rank: int) -> Array:
  """[a, b, *P, *P] to [a, b, *P]."""
  for at in range(rank):
    # Of the remaining pairs the first is that of axis `at`; its diagonal goes to the end.
    kernel = jnp.diagonal(kernel, axis1=2, axis2=2 + rank - at)
  return kernel


def same_position(sizes: Sizes, dtype: jnp.dtype) -> Array:
  """1 of equal positions and else 0, [*P, *P]."""
  count = math.prod(sizes)
  return jnp.eye(count, dtype=dtype).reshape(sizes + sizes)
