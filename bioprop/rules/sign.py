"""What the sign-symmetric rules share: feedback with the signs of the weights.

Liao, Leibo & Poggio 2016 (arXiv 1510.05067); Xiao et al. 2019 (arXiv 1811.03567). Only the
magnitudes differ, and each rule says what they are. In time, errors travel back through the signs
of recurrent weights.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bioprop.typing import Array, Params


def signed(weights: Params, magnitude: Callable[[str, Array], Array]) -> Params:
  """sign(W) * magnitude(name, W) for each weight W."""
  return {name: jax.tree.map(lambda w, name=name: jnp.sign(w) * magnitude(name, w), weight)
          for name, weight in weights.items()}


def rms(w: Array) -> Array:
  """Root mean square of all entries of w, a scalar of w's dtype."""
  return jnp.sqrt(jnp.mean(jnp.square(w)))
