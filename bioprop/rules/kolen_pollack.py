r"""Kolen-Pollack learning (Kolen & Pollack 1994; Akrout et al. 2019, arXiv 1904.05391, eqs 16-17).

The feedback weights learn too: they receive the same update as the forward weights, and both decay.

  dW = x^T g ,   dB = dW (B is kept in the layout of W) ,   dx = B^T g .

With weight decay lambda and learning rate eta, W - B shrinks by (1 - eta lambda) at every step, so
B converges to W and the rule to backprop. B is therefore a parameter, beside the kernel in
`params`, and the optimiser must treat both alike: with decay (optax.adamw,
optax.add_decayed_weights) they align; without it their difference stays what it was at the start.
In time, errors travel back through the B of a recurrent weight.
"""
import dataclasses

from bioprop.rules.base import Credit, Rule, check_range


@dataclasses.dataclass(frozen=True)
class KolenPollack(Rule):
  """Kolen-Pollack: feedback weights that learn as the forward weights do.

  Attributes:
    scale: factor on the initial feedback; 1 draws it as large as the layer's initial weights.
  """
  scale: float = 1.0
  learns = True
  multiplies = True

  def __post_init__(self):
    check_range(self, 'scale', 0.0)

  def init_feedback(self, key, site):
    """B(0) for each weight of the op, shaped like it; see `Rule.init_feedback`."""
    return site.draw(key, self.scale)

  def sent_through(self, weights, feedback):
    """B; see `Rule.sent_through`."""
    del weights
    return feedback

  def backward(self, op, params, x, feedback, g, e):
    """g sent through B; B gets the update of W; see `Rule.backward`."""
    del e
    update = op.update(params, x, g)
    if feedback is None:
      return Credit(update, None)
    learned = {name: update[name] for name in feedback}
    return Credit(update, op.send(feedback, params, x, g), learned)
