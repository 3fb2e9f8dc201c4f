r"""Feedback alignment with feedback that is correlated with the initial weights (rho-FA).

Lillicrap et al. 2016 (arXiv 1411.0247) send errors back through fixed random weights B in place
of W. Bordelon & Pehlevan 2023 (arXiv 2210.02157, section 2) let B keep a correlation rho with the
initial weights:

  B = rho W(0) + sqrt(1 - rho^2) W~ ,   dW = x^T g ,   dx = B^T g ,

with W~ an independent draw. rho = 0 is feedback alignment; rho = 1 is B = W(0). The readout's
feedback is drawn in the same way.

In time. A recurrent weight has a B too, and errors travel back through it from step to step, as
through W under backprop through time; what a cell carries elementwise is exact.

Scale. W~ is drawn by the layer's own initialiser, as W was (Bordelon & Pehlevan draw both from
N(0, 1)), and the whole of B is multiplied by `scale`. At scale 1 the signal that travels back is at
the start as large as backprop's. It is not as harmless: it does not descend until the weights have
aligned with B, and until then the activities of ReLU layers grow. Mean training loss of the first
epoch on MNIST (SGD, learning rate 0.05, momentum 0.9, batch 64, gradients not clipped):

                                  bp      scale 1    0.5     0.3     0.1
  MLP, 2 x 800 ReLU               0.17    4e3        0.59    0.34    0.33
  LeNet-5                         0.17    4e12       5e4     0.51    0.72

The default is therefore 0.3 for feedback that knows nothing of the weights, rising to 1 with their
correlation: 0.3 + 0.7 rho, so that rho = 1 is exactly B = W(0). Larger feedback learns faster where
it can be borne: by saturating units (tanh), which bound their own activities, and with gradients
clipped by their norm. The table is printed by

  python train.py --config=configs/mnist_mlp.py --config.model_options.activation=relu
      --config.epochs=1 --config.rule=fa --config.rule_options.scale=0.3 --data_dir=...
  python train.py --config=configs/mnist_lenet.py --config.clip_norm=1e9 --config.weight_decay=0.0
      --config.epochs=1 --config.rule=fa --config.rule_options.scale=0.3 --data_dir=...
"""
import dataclasses
import math

import jax

from bioprop.rules.base import Credit, Rule, check_range


@dataclasses.dataclass(frozen=True)
class FeedbackAlignment(Rule):
  """Feedback alignment, optionally correlated with the initial weights.

  Attributes:
    rho: correlation of the feedback with the initial weights, in [0, 1].
    scale: factor on the feedback; 1 draws it as large as the layer's initial weights. None: 0.3 +
      0.7 rho.
  """
  rho: float = 0.0
  scale: float | None = None
  multiplies = True

  def __post_init__(self):
    check_range(self, 'rho', 0.0, 1.0)
    if self.scale is not None:
      check_range(self, 'scale', 0.0)

  def init_feedback(self, key, site):
    """B for each weight of the op, shaped like it; see `Rule.init_feedback`."""
    if not site.sends:
      return None
    scale = 0.3 + 0.7 * self.rho if self.scale is None else self.scale
    own, fresh = scale * self.rho, scale * math.sqrt(1 - self.rho**2)
    drawn = site.redraw(key)
    mix = lambda w, other: own * w + fresh * other
    return {name: jax.tree.map(mix, site.params[name], drawn[name]) for name in site.op.weights}

  def sent_through(self, weights, feedback):
    """B; see `Rule.sent_through`."""
    del weights
    return feedback

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; g sent through B; see `Rule.backward`."""
    del e
    dx = None if feedback is None else op.send(feedback, params, x, g)
    return Credit(op.update(params, x, g), dx)
