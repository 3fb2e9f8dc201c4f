"""Sign-concordant feedback drawn at every step; see `BatchSign`."""
import dataclasses
import zlib

import jax
import jax.numpy as jnp

from bioprop.rules.base import SendingRule, check_range
from bioprop.rules.sign import rms, signed


@dataclasses.dataclass(frozen=True)
class BatchSign(SendingRule):
  r"""Batchwise sign-concordant feedback: `B = sign(W) ∣M∣`, `M` drawn at every step.

  The signs of the weights with magnitudes that are new at every step (brSF; Liao, Leibo & Poggio
  2016, arXiv 1510.05067):

  $$ dW = x^\top g , \qquad dx = B^\top g , \qquad
     B = \operatorname{sign}(W) \odot |M| , \qquad M \sim N(0, \operatorname{rms}(W)^2) $$

  so that $B$ has in expectation the Frobenius norm of $W$. The key comes from a random stream of
  its own, `apply(..., rngs={'feedback': key})`; an NNX model needs nothing.

  Attributes:
    scale: factor on the feedback; at 1 it has in expectation the Frobenius norm of the weights.

  Cost:
    A step takes 1.63 of plain Flax's on the MLP: drawing M is most of it. No state is kept.

  When it works:
    As `usf`: digits 97.7 % (bp 97.8), MNIST 99.1 (99.3) with LeNet-5.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    x = jax.numpy.ones((8, 64))
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'brsf')
    variables = model.init(jax.random.key(0), x)
    out = model.apply(variables, x, rngs={'feedback': jax.random.key(1)})
    ```
  """
  scale: float = 1.0
  papers = ('liao2016important',)
  redraws = True

  def __post_init__(self):
    check_range(self, 'scale', 0.0)

  def sent_through(self, weights, feedback):
    """sign(W) |M|, M drawn from the call's key; see `Rule.sent_through`."""

    def magnitude(name, w):
      key = jax.random.fold_in(feedback['key'], zlib.crc32(name.encode()))
      return self.scale * rms(w) * jnp.abs(jax.random.normal(key, w.shape, w.dtype))

    return signed(weights, magnitude)
