r"""The kernels of one layer at a time: of what it sees, and of the errors that reach it.

  Phi(x, x') = SUM_t a_t . a'_t / (T K)     G(x, x') = SUM_c SUM_t g_ct . g'_ct

a are the vectors [K] that a weight multiplies at the T locations of a sample, g_c the cotangents of
output c at its layer's output. G~ joins g with those of a learning rule, g~, and G~~ these with
each other (Bordelon & Pehlevan 2023, arXiv 2210.02157, section 2, where they are divided by the
layer's width). Where a rule multiplies the same vectors, the traced
eNTK of a dense layer's weight is K Phi * G~.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.measure.contraction import inner
from bioprop.measure.jacobian import Jacobian
from bioprop.typing import Array, Float


class LayerKernels(NamedTuple):
  """Of one weight.

  Attributes:
    phi: of the vectors that it multiplies.
    g: of the true cotangents at its layer's output, traced over the network's outputs.
    g_pseudo: of the true ones, in rows, with the rule's; None where the rule has no such.
    pseudo: of the rule's; None likewise.
  """
  phi: Float[Array, 'n n']
  g: Float[Array, 'n n']
  g_pseudo: Float[Array, 'n n'] | None
  pseudo: Float[Array, 'n n'] | None


def features(true: Jacobian, pseudo: Jacobian) -> dict[str, LayerKernels]:
  """Computes Phi, G, G~ and G~~ of each layer.

  Args:
    true: the Jacobian of samples, `jacobians.true(variables)(x)`.
    pseudo: the rule's, of the same.

  Returns:
    The kernels by the path of the weight, of all weights whose Jacobians are factors; the others
    (of norms, in loops) have no vectors of their own.
  """
  return {path: _kernels(factors, pseudo.outer.get(path)) for path, factors in true.outer.items()}


@jax.jit
@jax.default_matmul_precision('highest')
def _kernels(factors, ruled) -> LayerKernels:
  a, g = factors
  vectors = a.reshape(len(a), -1)
  traced = lambda g, h: inner(g.reshape(*g.shape[:2], -1), h.reshape(*h.shape[:2], -1), True)
  phi = vectors @ vectors.T / jnp.asarray(vectors.shape[1], a.dtype)
  if ruled is None:
    return LayerKernels(phi, traced(g, g), None, None)
  return LayerKernels(phi, traced(g, g), traced(g, ruled[1]), traced(ruled[1], ruled[1]))
