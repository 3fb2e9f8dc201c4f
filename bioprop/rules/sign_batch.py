r"""Batchwise random-magnitude sign-concordant feedback, brSF (Liao et al. 2016, arXiv 1510.05067).

  B = sign(W) |M| ,  M drawn anew at every step ,   dW = x^T g ,   dx = B^T g .

M ~ N(0, rms(W)^2), so that B has in expectation the Frobenius norm of W. The key comes from an rng
stream of its own, `apply(..., rngs={'feedback': key})`; drawing M is most of the cost of the rule.
"""
import dataclasses
import zlib

import jax
import jax.numpy as jnp

from bioprop.rules.base import check_range
from bioprop.rules.sign import SignRule, rms, signed


@dataclasses.dataclass(frozen=True)
class BatchSign(SignRule):
  """Batchwise random-magnitude sign-concordant feedback.

  Attributes:
    scale: factor on the feedback; at 1 it has in expectation the Frobenius norm of the weights.
  """
  scale: float = 1.0
  redraws = True

  def __post_init__(self):
    check_range(self, 'scale', 0.0)

  def sent_through(self, weights, feedback):
    """sign(W) |M|, M drawn from the call's key; see `Rule.sent_through`."""

    def magnitude(name, w):
      key = jax.random.fold_in(feedback['key'], zlib.crc32(name.encode()))
      return self.scale * rms(w) * jnp.abs(jax.random.normal(key, w.shape, w.dtype))

    return signed(weights, magnitude)
