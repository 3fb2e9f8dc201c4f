r"""Fixed random-magnitude sign-concordant feedback, frSF (Liao et al. 2016, arXiv 1510.05067).

  B = sign(W) |M| ,  M frozen ,   dW = x^T g ,   dx = B^T g .

M is drawn once by the layer's own initialiser, as W was.
"""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.rules.base import check_range
from bioprop.rules.sign import SignRule, signed


@dataclasses.dataclass(frozen=True)
class FixedSign(SignRule):
  """Fixed random-magnitude sign-concordant feedback.

  Attributes:
    scale: factor on the feedback; 1 draws the magnitudes as large as the layer's initial weights.
  """
  scale: float = 1.0

  def __post_init__(self):
    check_range(self, 'scale', 0.0)

  def init_feedback(self, key, site):
    """|M| for each weight of the op, shaped like it; see `Rule.init_feedback`."""
    return jax.tree.map(jnp.abs, site.draw(key, self.scale))

  def sent_through(self, weights, feedback):
    """sign(W) |M|; see `Rule.sent_through`."""
    # What a model makes of M, as a normalised weight, may be negative again.
    return signed(weights, lambda name, _: jnp.abs(jax.tree.leaves(feedback[name])[0]))
