"""Second moments of fields, E v(s, p) v'(s', p'), and means."""
import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from bioprop.errors import TheoryError
from bioprop.theory.activations import Activation, Linear, Quadrature
from bioprop.theory.fields import sampled
from bioprop.theory.fields.bilinear import Bilinear, Kernel, independent, total
from bioprop.theory.fields.leaves import (
  Added,
  Atom,
  Data,
  Features,
  Field,
  Function,
  Gained,
  Gate,
  Leaf,
  Moved,
  One,
  Squared,
  Weighted,
)
from bioprop.theory.fields.positions import Lookup, equal_positions
from bioprop.theory.fields.sides import View
from bioprop.theory.piecewise import Piecewise
from bioprop.typing import Array

_LINEAR = Linear()


class Moments(Bilinear):
  """Second moments, and means.

  Attributes:
    given: the arrays of `Given` data, of each side.
    same: both sides are the same samples.
    variances: of one entry of each parameter, by name.
    dtype: of kernels.
    seed: of what is sampled.
  """

  def __init__(self, given: tuple[Sequence[Array], Sequence[Array]], same: bool,
               variances: Mapping[str, Array | float], dtype: jnp.dtype, seed: int = 0):
    super().__init__()
    self.given, self.same, self.variances = given, same, variances
    self.dtype, self.seed = dtype, seed
    self._data: dict[tuple[Data, int], Array] = {}
    self._inputs: dict[tuple, Kernel] = {}
    self._products: dict[tuple, Kernel] = {}
    self._summed: list[Array] = []  # Largest variances of what has no closed form.

  def data(self, data: Data, side: int) -> Array:
    """The array of some data for a side's samples."""
    key = data, 0 if self.same else side
    if key not in self._data:
      self._data[key] = data.array(self, key[1])
    return self._data[key]

  def numbers(self, data: Data, side: int) -> Array:
    return self.data(data, side).astype(self.dtype)

  def leaves(self, a: Leaf, b: Leaf, view: View = View.FULL, pairs: bool = False) -> Kernel:
    if not self.same or view is View.FULL:
      return super().leaves(a, b, view, pairs)
    # Samples with themselves lie in the kernel: what was rounded otherwise would be an angle.
    full = super().leaves(a, b, View.FULL, pairs)
    if full is None or full.shape[:2] == (1, 1):
      return full
    count = max(full.shape[:2])
    full = jnp.broadcast_to(full, (count, count, *full.shape[2:]))
    own = jnp.moveaxis(jnp.diagonal(full, axis1=0, axis2=1), -1, 0)
    return own[:, None] if view is View.ROWS else own[None]

  @property
  def largest(self) -> Array:
    """The largest variance of which a function without closed form was taken, 0 if none was."""
    return functools.reduce(jnp.maximum, self._summed, jnp.zeros((), self.dtype))

  def mean(self, field: Field, side: int) -> Array:
    """E v, [n or 1, *P]."""
    found = [self._scaled(term, own, side) for term in field
             if (own := self.leaf_mean(term.leaf, side)) is not None]
    sizes = field[0].leaf.sizes if field else ()
    return sum(found[1:], start=found[0]) if found else jnp.zeros((1, *sizes), self.dtype)

  def square(self, field: Field, side: int) -> Array:
    """E v^2, [n or 1, *P]."""
    found = self.fields(field, field, View.ROWS if side == 0 else View.COLUMNS)
    sizes = field[0].leaf.sizes if field else ()
    if found is None:
      return jnp.zeros((1, *sizes), self.dtype)
    return found[:, 0] if side == 0 else found[0]

  def variance(self, atom: Leaf, side: int, pairs: bool = False) -> Array | None:
    """E u^2 of an atom, [n, *P], as it stands in the kernel of pairs or of equal positions."""
    view = View.ROWS if side == 0 else View.COLUMNS
    found = self.leaves(atom, atom, view, pairs)
    if found is None:
      return None
    if pairs:
      found = equal_positions(found, len(atom.sizes))
    return found[:, 0] if side == 0 else found[0]

  def covariances(self, u: Atom, v: Atom, view: View, pairs: bool) -> tuple[Array, Array, Array]:
    """What a dual is a function of: E u^2, E u v and E v^2."""
    ab = self.leaves(u, v, view, pairs)
    aa, bb = self.variance(u, view.sides[0], pairs), self.variance(v, view.sides[1], pairs)
    zero = lambda sizes: jnp.zeros((1, *sizes), self.dtype)
    aa = view.left(zero(u.sizes) if aa is None else aa, pairs, len(v.sizes))
    bb = view.right(zero(v.sizes) if bb is None else bb, pairs, len(u.sizes))
    ab = jnp.zeros(jnp.broadcast_shapes(aa.shape, bb.shape), self.dtype) if ab is None else ab
    return aa, ab, bb

  def inputs(self, op: Weighted, view: View, pairs: bool) -> Array:
    """Sums of products of what an op's outputs see, at the output's positions."""
    key = op, view, pairs
    if not pairs and (op, view, True) in self._inputs:
      return equal_positions(self._inputs[op, view, True], len(op.sizes))
    if key not in self._inputs:
      needed = op.contraction.needs_pairs(pairs)
      found = total([self._features(count, one, op, view, needed) for count, one in op.inputs])
      if found is None:
        sizes = op.contraction.before * (2 if needed else 1)
        found = jnp.zeros((1, 1, *sizes), self.dtype)
      self._inputs[key] = op.contraction(found, pairs)
    return self._inputs[key]

  def _features(self, count: int, one: 'Field | Data', op: Weighted, view: View,
                pairs: bool) -> Kernel:
    if not isinstance(one, Data):
      own = self.fields(one, one, view, pairs)
      return None if own is None else float(count) * own
    left, right = (self.data(one, side) for side in view.sides)
    if isinstance(op.contraction, Lookup):
      rank = left.ndim - 1
      return (view.left(left, pairs, rank) == view.right(right, pairs, rank)).astype(self.dtype)
    return view.gram(left.astype(self.dtype), right.astype(self.dtype), pairs)

  def _scaled(self, term, own: Array, side: int) -> Array:
    for data in term.data:
      own = own * self.numbers(data, side)
    return term.scale * own

  def leaf_mean(self, leaf: Leaf, side: int) -> Array | None:
    """E of a leaf, [n or 1, *P]; None is 0."""
    if leaf.gaussian or isinstance(leaf, Atom):
      return None
    if isinstance(leaf, One):
      return jnp.ones((1, *leaf.sizes), self.dtype)
    if isinstance(leaf, Features):
      return jnp.mean(self.numbers(leaf.values, side), -1)
    if isinstance(leaf, Moved):
      own = self.mean(leaf.field, side)
      return leaf.map.of(own)
    if isinstance(leaf, Gained):
      return leaf.value * self.mean(leaf.field, side)
    if isinstance(leaf, Squared):
      return self.square(leaf.field, side)
    return self._function_mean(leaf, side)

  def _function_mean(self, leaf: Function, side: int) -> Array:
    found = [self.variance(atom, side) for atom in leaf.atoms]
    variances = [jnp.zeros((1, *leaf.sizes), self.dtype) if one is None else one for one in found]
    if leaf.factors is not None:
      return functools.reduce(jnp.multiply, (
          phi.mean(aa) for phi, aa in zip(leaf.factors, variances)))
    data = [self.numbers(one, side) for one in leaf.data]
    return sampled.mean(leaf.function, variances, data, self.seed)

  def base(self, a, b, view, pairs):
    if isinstance(a, One) and isinstance(b, One):
      return jnp.ones((1, 1, *a.sizes, *(b.sizes if pairs else ())), self.dtype)
    if isinstance(a, Features) and isinstance(b, Features):
      left, right = (self.numbers(one.values, side) for one, side in zip((a, b), view.sides))
      return view.gram(left, right, pairs) / left.shape[-1]
    if independent(a, b):
      return self._means(a, b, view, pairs)
    if a is b and isinstance(a, Weighted):
      return self.variances[a.weight.name] * self.inputs(a, view, pairs)
    if a is b and isinstance(a, Gate):
      left, right = (self.numbers(a.seen, side) for side in view.sides)
      return view.gram(left, right, pairs) / left.shape[-1]
    if a is b and isinstance(a, Added):
      shared = same_entry(a.pattern, a.sizes, pairs, self.dtype)
      return jnp.asarray(self.variances[a.parameter.name], self.dtype) * shared
    return self.product(a, b, view, pairs)

  def _means(self, a: Leaf, b: Leaf, view: View, pairs: bool) -> Kernel:
    left, right = self.leaf_mean(a, view.sides[0]), self.leaf_mean(b, view.sides[1])
    if left is None or right is None:
      return None
    return view.left(left, pairs, len(b.sizes)) * view.right(right, pairs, len(a.sizes))

  def product(self, a: Leaf, b: Leaf, view: View, pairs: bool,
              moved: tuple[int | None, int | None] = (None, None)) -> Kernel:
    """E of the product of two functions of atoms that are not independent.

    Args:
      a, b: atoms, or functions of such.
      view, pairs: as of all kernels.
      moved: of which of its atoms the derivative is taken in place of the function, of each.
    """
    key = a, b, view, pairs, moved
    if key not in self._products:
      self._products[key] = self._product(*key)
    return self._products[key]

  def _product(self, a: Leaf, b: Leaf, view: View, pairs: bool,
               moved: tuple[int | None, int | None]) -> Kernel:
    one, other = factors_of(a), factors_of(b)
    if one is None or other is None:
      return sampled.product(self, a, b, view, pairs, moved)
    kernel, met = None, set()
    for i, (u, phi) in enumerate(one):
      partners = [(j, v, psi) for j, (v, psi) in enumerate(other) if not independent(u, v)]
      if len(partners) > 1 or any(j in met for j, _, _ in partners):
        raise TheoryError(
            'two hidden activities are multiplied that both depend on the same sums of others in '
            'several ways, and their product has no closed form. Put a weight between them.')
      if not partners:
        own = self._alone(u, phi, view.sides[0], i == moved[0])
        own = None if own is None else view.left(own, pairs, len(b.sizes))
      else:
        (j, v, psi), = partners
        met.add(j)
        found = self.covariances(u, v, view, pairs)
        self._note(phi, found[0])
        self._note(psi, found[2])
        own = expectation(phi, psi, (i == moved[0], j == moved[1]), found)
      if own is None:
        return None
      kernel = own if kernel is None else kernel * own
    for j, (v, psi) in enumerate(other):
      if j not in met:
        own = self._alone(v, psi, view.sides[1], j == moved[1])
        if own is None:
          return None
        kernel = kernel * view.right(own, pairs, len(a.sizes))
    return kernel

  def _note(self, phi: Activation, variances: Array) -> None:
    if is_summed(phi):
      self._summed.append(jnp.max(variances))

  def _alone(self, atom: Atom, phi: Activation, side: int, derived: bool) -> Array | None:
    if isinstance(phi, Linear) and not derived:
      return None
    aa = self.variance(atom, side)
    aa = jnp.zeros((1, *atom.sizes), self.dtype) if aa is None else aa
    return phi.mean_derivative(aa) if derived else phi.mean(aa)


def is_summed(phi: Activation) -> bool:
  """Whether a function's expectations are sums of so many terms as its variance asks for."""
  inner = getattr(phi, 'inner', getattr(phi, 'of', None))
  return isinstance(phi, Quadrature | Piecewise) or isinstance(inner, Activation) and (
      is_summed(inner))


def factors_of(leaf: Leaf) -> tuple[tuple[Atom, Activation], ...] | None:
  """Independent atoms with functions of which a leaf is the product; None if it is none."""
  if isinstance(leaf, Atom):
    return ((leaf, _LINEAR),)
  if isinstance(leaf, Function) and leaf.factors is not None:
    return tuple(zip(leaf.atoms, leaf.factors))
  return None


def expectation(phi: Activation, psi: Activation, derived: tuple[bool, bool],
                moments: tuple[Array, Array, Array]) -> Array:
  """E phi(u) psi(v), or of both derivatives: tangent kernels join what depends on one another."""
  aa, ab, bb = moments
  if all(derived):
    return phi.cross_derivative(psi, aa, ab, bb)
  return phi.cross(psi, aa, ab, bb)


def same_entry(pattern, sizes, pairs: bool, dtype: jnp.dtype) -> Array:
  """1 where two positions share an entry of a parameter, else 0."""
  if pattern is None or not pairs:
    return jnp.ones((1, 1, *sizes, *(sizes if pairs else ())), dtype)
  pattern = jnp.asarray(pattern)
  rank = len(sizes)
  left = pattern.reshape(sizes + (1,) * rank)
  return (left == pattern.reshape((1,) * rank + sizes)).astype(dtype)[None, None]
