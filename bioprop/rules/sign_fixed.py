"""Sign-concordant feedback of fixed magnitudes; see `FixedSign`."""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.rules.base import SendingRule, check_range
from bioprop.rules.sign import signed


@dataclasses.dataclass(frozen=True)
class FixedSign(SendingRule):
  r"""Fixed sign-concordant feedback: `B = sign(W) ∣M∣`, `M` frozen.

  The signs of the weights as they are now, with magnitudes that were drawn once (frSF; Liao, Leibo
  & Poggio 2016, arXiv 1510.05067):

  $$ dW = x^\top g , \qquad dx = B^\top g , \qquad B = \operatorname{sign}(W) \odot |M| $$

  $M$ is drawn by the layer's own initialiser, as $W$ was.

  Attributes:
    scale: factor on the feedback; 1 draws the magnitudes as large as the layer's initial weights.

  Cost:
    A step takes 1.02 of plain Flax's on the MLP. Memory: a frozen copy of the weights.

  When it works:
    As `usf`: digits 97.3 % (bp 97.8), MNIST 99.3 (99.3) with LeNet-5.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'frsf')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  scale: float = 1.0
  papers = ('liao2016important',)

  def __post_init__(self):
    check_range(self, 'scale', 0.0)

  def init_feedback(self, key, site):
    """|M| for each weight of the op, shaped like it; see `Rule.init_feedback`."""
    return jax.tree.map(jnp.abs, site.draw(key, self.scale))

  def sent_through(self, weights, feedback):
    """sign(W) |M|; see `Rule.sent_through`."""
    # What a model makes of M, as a normalised weight, may be negative again.
    return signed(weights, lambda name, _: jnp.abs(jax.tree.leaves(feedback[name])[0]))
