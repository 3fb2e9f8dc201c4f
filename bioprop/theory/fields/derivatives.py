r"""Neural tangent kernels of fields: SUM_theta dv(s, p)/dtheta dv'(s', p')/dtheta, under a rule.

Of a weight W, v = W a has the kernel

  K_v = own E W^2 [a a'] + sends E W^2 [K_a] ,   [.] the sums over what one output sees;

own is 1 where the weight learns from what arrives at it, and 0 where that knows nothing of the
gradient; sends is the correlation E W B / E W^2 of what the rule sends back through, 1 under
backprop. Of functions, K_phi(v) = E phi'(v) phi'(v') K_v. Fields of different weights have none.

The kernels of gradients are the derivatives of the result in what each op adds to it.
"""
import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from bioprop.theory.fields.bilinear import Bilinear, Kernel, independent, total
from bioprop.theory.fields.leaves import (
  Added,
  Atom,
  Data,
  Function,
  Gate,
  Leaf,
  Weighted,
)
from bioprop.theory.fields.moments import Moments, factors_of, same_entry
from bioprop.theory.fields.positions import same_position
from bioprop.theory.fields.sides import View
from bioprop.typing import Array


@dataclasses.dataclass(frozen=True)
class Credit:
  """What a rule does at each op, by its number; see the module.

  Attributes:
    own: of what its parameters learn from.
    sends: of what it sends to its input.
  """
  own: Mapping[int, float]
  sends: Mapping[int, float]


# What is added, [n, n'], to find derivatives in it: of gradients at ops, and shares of parameters.
Taps = Mapping[tuple[str, int | str], Array]


class Derivatives(Bilinear):
  """Tangent kernels of fields of two different sets of samples, or of one."""

  def __init__(self, moments: Moments, credit: Credit, taps: Taps):
    super().__init__()
    self._moments, self._credit, self._taps = moments, credit, taps
    self._dtype = moments.dtype

  def numbers(self, data: Data, side: int) -> Array:
    return self._moments.numbers(data, side)

  def gained(self, a, b, view, pairs):
    found = super().gained(a, b, view, pairs)
    if a is not b:
      return found
    own = self._moments.fields(a.field, a.field, view, pairs)
    if own is not None:
      own = own * same_entry(a.pattern, a.sizes, pairs, self._dtype)
    return total([found, self._learned(own, a.parameter.name, a.parameter.slope)])

  def base(self, a, b, view, pairs):
    if independent(a, b) or not isinstance(a, Atom | Function) or (
        not isinstance(b, Atom | Function)):
      return None
    if a is b and isinstance(a, Weighted):
      return self._weighted(a, view, pairs)
    if a is b and isinstance(a, Added):
      shared = same_entry(a.pattern, a.sizes, pairs, self._dtype)
      slope = a.parameter.slope if self._own(a.beside) else 0.0
      return self._learned(shared, a.parameter.name, slope)
    if isinstance(a, Gate) and isinstance(b, Gate):
      return None  # It is frozen.
    found = []
    for i, u in enumerate(_atoms(a)):
      for j, v in enumerate(_atoms(b)):
        kernel = None if independent(u, v) else self.leaves(u, v, view, pairs)
        if kernel is not None:
          slopes = self._moments.product(a, b, view, pairs, (i, j))
          found.append(None if slopes is None else slopes * kernel)
    return total(found)

  def _own(self, op: Weighted | None) -> float:
    return 1.0 if op is None else self._credit.own[op.number]

  def _learned(self, kernel: Kernel, name: str, slope: float) -> Kernel:
    """What a parameter adds by learning."""
    if kernel is None or not slope:
      return None
    kernel = kernel * slope**2
    share = self._taps.get(('share', name))
    return kernel if share is None else kernel * (1 + _at(share, kernel))

  def _weighted(self, op: Weighted, view: View, pairs: bool) -> Kernel:
    slope = op.weight.slope if self._own(op) else 0.0
    own = self._learned(self._moments.inputs(op, view, pairs), op.weight.name, slope)
    needed = op.contraction.needs_pairs(pairs)
    sends, below = self._credit.sends[op.number], None
    if sends:
      found = [(count, self.fields(field, field, view, needed)) for count, field in op.inputs
               if not isinstance(field, Data)]
      below = total([float(count) * own for count, own in found if own is not None])
    if below is not None:
      variance = jnp.asarray(self._moments.variances[op.weight.name], self._dtype)
      below = sends * variance * op.contraction(below, pairs)
    tap = self._taps.get(('g', op.number))
    if tap is not None:
      sizes = op.sizes
      where = same_position(sizes, self._dtype)[None, None] if pairs else (
          jnp.ones((1, 1, *sizes), self._dtype))
      tap = _at(tap, where) * where
    return total([own, below, tap])


def _at(numbers: Array, kernel: Array) -> Array:
  """[n, n'] to be multiplied by a kernel."""
  return numbers.reshape(numbers.shape + (1,) * (kernel.ndim - 2))


def _atoms(leaf: Leaf) -> tuple[Atom, ...]:
  found = factors_of(leaf)
  return leaf.atoms if found is None else tuple(atom for atom, _ in found)
