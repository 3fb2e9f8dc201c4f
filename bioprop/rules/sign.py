"""What the sign-symmetric rules share: feedback with the signs of the weights.

Liao, Leibo & Poggio 2016 (arXiv 1510.05067); Xiao et al. 2019 (arXiv 1811.03567). Only the
magnitudes differ, and each rule says what they are.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bioprop.rules.base import Credit, Op
from bioprop.typing import Array, Params


def signed_credit(
    op: Op, params: Params, x: Array, g: Array, magnitude: Callable[[str, Array], Array]
) -> Credit:
  """Credit with B = sign(W) * magnitude(name, W) for each weight W of the op."""
  signed = lambda name: jax.tree.map(lambda w: jnp.sign(w) * magnitude(name, w), params[name])
  sends = jnp.issubdtype(x.dtype, jnp.inexact)
  dx = op.send({name: signed(name) for name in op.weights}, params, x, g) if sends else None
  return Credit(op.update(params, x, g), dx)


def rms(w: Array) -> Array:
  """Root mean square of all entries of w, a scalar of w's dtype."""
  return jnp.sqrt(jnp.mean(jnp.square(w)))
