r"""Uniform sign-concordant feedback, uSF (Liao, Leibo & Poggio 2016, arXiv 1510.05067).

  B = sign(W) c ,   dW = x^T g ,   dx = B^T g .

The published c is a constant per layer, 1 (with gradient normalisation) or the initialiser's
standard deviation (Xiao et al. 2019). Here c = rms(W): B then has the Frobenius norm of W at every
moment of training, so backprop's learning rate stays a good one, and no state is kept.
"""
import dataclasses

from bioprop.rules.base import check_range
from bioprop.rules.sign import SignRule, rms, signed


@dataclasses.dataclass(frozen=True)
class UniformSign(SignRule):
  """Uniform sign-concordant feedback.

  Attributes:
    scale: factor on the feedback; at 1 it has the Frobenius norm of the weights.
  """
  scale: float = 1.0

  def __post_init__(self):
    check_range(self, 'scale', 0.0)

  def sent_through(self, weights, feedback):
    """sign(W) rms(W); see `Rule.sent_through`."""
    del feedback
    return signed(weights, lambda _, w: self.scale * rms(w))
