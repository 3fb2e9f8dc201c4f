"""What two fields have in common, term by term: the recursion that all kernels are found by."""
import abc
import math
from collections.abc import Sequence

from bioprop.errors import TheoryError
from bioprop.theory.fields.leaves import (
  Atom,
  Data,
  Field,
  Gained,
  Leaf,
  Mixed,
  Moved,
  Part,
  Squared,
  Term,
  base_of,
)
from bioprop.theory.fields.positions import equal_positions
from bioprop.theory.fields.sides import View
from bioprop.typing import Array

Kernel = Array | None  # None is 0.


class Bilinear(abc.ABC):
  """A bilinear form of fields, as kernels [a, b, *P] or, of `pairs`, [a, b, *P, *P'].

  Found kernels are kept, so that every layer is computed once.
  """

  def __init__(self):
    self._found: dict[tuple, Kernel] = {}

  @abc.abstractmethod
  def numbers(self, data: Data, side: int) -> Array:
    """The numbers of a side's samples."""

  @abc.abstractmethod
  def base(self, a: Leaf, b: Leaf, view: View, pairs: bool) -> Kernel:
    """Of leaves that are neither sums nor maps of others."""

  def gained(self, a: Gained, b: Leaf, view: View, pairs: bool) -> Kernel:
    """Of a field that is multiplied by a parameter, with another."""
    own = self.fields(a.field, (Term(b),), view, pairs)
    return None if own is None else a.value * own

  def fields(self, a: Field, b: Field, view: View = View.FULL, pairs: bool = False) -> Kernel:
    """Of two fields."""
    return total([self._terms(s, t, view, pairs) for s in a for t in b])

  def leaves(self, a: Leaf, b: Leaf, view: View = View.FULL, pairs: bool = False) -> Kernel:
    """Of two leaves."""
    key = a, b, view, pairs
    if key not in self._found:
      there = None if pairs else self._found.get((a, b, view, True))
      self._found[key] = (self._leaves(a, b, view, pairs) if there is None else
                          equal_positions(there, len(a.sizes)))
    return self._found[key]

  def _terms(self, s: Term, t: Term, view: View, pairs: bool) -> Kernel:
    kernel = self.leaves(s.leaf, t.leaf, view, pairs)
    if kernel is None:
      return None
    ranks = len(t.leaf.sizes), len(s.leaf.sizes)
    for data in s.data:
      kernel = kernel * view.left(self.numbers(data, view.sides[0]), pairs, ranks[0])
    for data in t.data:
      kernel = kernel * view.right(self.numbers(data, view.sides[1]), pairs, ranks[1])
    scale = s.scale * t.scale
    return kernel if scale == 1 else scale * kernel

  def _leaves(self, a: Leaf, b: Leaf, view: View, pairs: bool) -> Kernel:
    for leaf in (a, b):
      if isinstance(leaf, Squared):
        raise TheoryError(
            'the square of hidden features is used for more than their mean over features, and of '
            'a sum of several activities this has no closed form. Normalise by mean and mean '
            'square, as LayerNorm and RMSNorm do.')
    if isinstance(a, Moved) or isinstance(b, Moved):
      return self._moved(a, b, view, pairs)
    if isinstance(a, Gained):
      return self.gained(a, b, view, pairs)
    if isinstance(b, Gained):
      own = self.fields((Term(a),), b.field, view, pairs)
      return None if own is None else b.value * own
    if isinstance(a, Mixed):
      return self.fields(a.field, b.field if a is b else (Term(b),), view, pairs)
    if isinstance(b, Mixed) and isinstance(a, Atom):
      return self.fields((Term(a),), b.field, view, pairs)
    if isinstance(a, Part) and isinstance(b, Part) and a.features == b.features:
      return self.leaves(a.whole, b.whole, view, pairs)
    return self.base(a, b, view, pairs)

  def _moved(self, a: Leaf, b: Leaf, view: View, pairs: bool) -> Kernel:
    if isinstance(a, Moved) and isinstance(b, Moved) and a.map is b.map and (
        not pairs and not a.map.mixes):
      own = self.fields(a.field, b.field, view)
      return None if own is None else a.map.left(own)
    if not pairs:
      own = self.leaves(a, b, view, True)
      return None if own is None else equal_positions(own, len(a.sizes))
    if isinstance(a, Moved):
      own = self.fields(a.field, (Term(b),), view, True)
      return None if own is None else a.map.left(own)
    own = self.fields((Term(a),), b.field, view, True)
    return None if own is None else b.map.right(own)


def total(kernels: Sequence[Kernel]) -> Kernel:
  """The sum of those that are not 0."""
  there = [kernel for kernel in kernels if kernel is not None]
  return sum(there[1:], start=there[0]) if there else None


def independent(a: Leaf, b: Leaf) -> bool:
  """Whether two leaves have nothing random in common.

  Raises:
    TheoryError: if one has all features of what the other has a part of.
  """
  if a.bases.isdisjoint(b.bases):
    return True
  if not a.roots.isdisjoint(b.roots):
    return False
  span = lambda root: root[1] if isinstance(root, tuple) else (0, math.inf)
  for one in a.roots:
    for other in b.roots:
      (start, stop), (first, last) = span(one), span(other)
      if base_of(one) is base_of(other) and max(start, first) < min(stop, last):
        raise TheoryError(
            'features that one weight makes are split, and added to or multiplied by others of '
            'the same that overlap them: the theory takes features that are split for independent. '
            'Split them into parts that do not overlap.')
  return True
