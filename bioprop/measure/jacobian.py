"""The derivatives of samples' outputs in the parameters, as factors where they have them."""
import dataclasses
from collections.abc import Callable, Mapping

import jax

from bioprop.typing import Array, PyTree, jitted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Jacobian:
  """The derivatives of each sample's outputs [C] in the parameters, by the parameter's path.

  A weight [K, O] that multiplies the vectors at T locations of a sample has the derivative
  SUM_t a_t g_ct^T; a dense layer has T = 1, a convolution sees patches at T places.

  Attributes:
    outer: factors of those that are sums of outer products, a [n, T, K] and g [n, C, T, O].
    full: the others, [n, C, p], p the parameter's size; a matrix [K, O] in this order where the
      other Jacobian has factors.
    biases: by the path of each bias that has the derivative SUM_t g_ct, the weight whose g it is.
  """
  outer: Mapping[str, tuple[Array, Array]]
  full: Mapping[str, Array]
  biases: tuple[tuple[str, str], ...] = dataclasses.field(
      default=(), metadata={'static': True})

  def by_path(self) -> dict[str, tuple[Array, Array] | Array]:
    """Of each parameter its factors, or its derivative [n, C, p]."""
    biases = {bias: summed(self.outer[weight][1]) for bias, weight in self.biases}
    return {**self.outer, **self.full, **biases}


# Maps samples [n, ...] to their Jacobian.
Differentiate = Callable[[PyTree], Jacobian]


@jitted
def evaluate(function: Callable[[PyTree], PyTree], samples: PyTree) -> PyTree:
  """Calls a function that is a pytree (`jax.tree_util.Partial`), compiled once for each.

  The arrays that it holds are arguments, so that new ones compile nothing.
  """
  return function(samples)


def summed(g: Array) -> Array:
  """A bias's derivative [n, C, O], from the cotangents [n, C, T, O] at its layer's output."""
  return g.sum(2)


def matrices(a: Array, g: Array) -> Array:
  """The derivative [n, C, K, O] in a weight, from its factors."""
  # In this order of axes each sample is one matrix product, of contiguous arrays.
  product = jax.numpy.einsum('ntk,ntco->nkco', a, g.swapaxes(1, 2))
  return product.swapaxes(1, 2)
