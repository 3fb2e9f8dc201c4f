"""Feedback alignment; see `FeedbackAlignment`."""
import dataclasses
import math

import jax

from bioprop.rules.base import SendingRule, check_choice, check_range
from bioprop.rules.normalise import CHOICES, following


@dataclasses.dataclass(frozen=True)
class FeedbackAlignment(SendingRule):
  r"""Feedback alignment: `dx = Bᵀ g`, `B = ρ W(0) + √(1−ρ²) W̃` frozen.

  Lillicrap et al. 2016 (arXiv 1411.0247) send errors back through fixed random weights $B$ in place
  of $W$. Bordelon & Pehlevan 2023 (arXiv 2210.02157, section 2) let $B$ keep a correlation $\rho$
  with the initial weights, $\tilde W$ being an independent draw:

  $$ dW = x^\top g , \qquad dx = B^\top g , \qquad B = \rho\, W(0) + \sqrt{1 - \rho^2}\, \tilde W $$

  $\rho = 0$ is feedback alignment; $\rho = 1$ is $B = W(0)$. The readout's feedback is drawn in the
  same way. In time, a recurrent weight has a $B$ too, and errors travel back through it from step
  to step; what a cell carries elementwise is exact.

  Attributes:
    rho: correlation of the feedback with the initial weights, in [0, 1].
    scale: factor on the feedback; 1 draws it as large as the layer's initial weights. None: 0.3 +
      0.7 rho.
    normalise: 'none', or 'weights': B has `scale` times the weights' norm (normalise.py).

  Scale:
    $\tilde W$ is drawn by the layer's own initialiser, as $W$ was (Bordelon & Pehlevan draw both
    from N(0, 1)), and the whole of $B$ is multiplied by `scale`. At scale 1 the signal that travels
    back is at the start as large as backprop's. It is not as harmless: it does not descend until
    the weights have aligned with $B$, and until then the activities of ReLU layers grow. Mean
    training loss of the first epoch on MNIST (SGD, learning rate 0.05, momentum 0.9, batch 64,
    gradients not clipped):

    | | bp | scale 1 | 0.5 | 0.3 | 0.1 |
    |---|---|---|---|---|---|
    | MLP, 2 x 800 ReLU | 0.17 | 4e3 | 0.59 | 0.34 | 0.33 |
    | LeNet-5 | 0.17 | 4e12 | 5e4 | 0.51 | 0.72 |

    The default is therefore 0.3 for feedback that knows nothing of the weights, rising to 1 with
    their correlation, so that $\rho = 1$ is exactly $B = W(0)$. Larger feedback learns faster where
    it can be borne: by saturating units (tanh), which bound their own activities, and with
    gradients clipped by their norm. The table is printed by

    ```
    python train.py --config=configs/mnist_mlp.py --config.model_options.activation=relu \
        --config.epochs=1 --config.rule=fa --config.rule_options.scale=0.3 --data_dir=...
    python train.py --config=configs/mnist_lenet.py --config.clip_norm=1e9 \
        --config.weight_decay=0.0 --config.epochs=1 --config.rule=fa \
        --config.rule_options.scale=0.3 --data_dir=...
    ```

  Cost:
    A step takes 0.97 of plain Flax's on the MLP, 0.69 on LeNet-5, 0.95 on ResNet-20, 1.03 on
    ResNet-18, 0.99 on a transformer. Memory 1.18 on ResNet-18: a frozen copy of the weights.

  When it works:
    Shallow networks: MNIST 98.0 % (bp 98.3) with two hidden layers, 98.5 (99.3) with LeNet-5. The
    deeper and the more convolutional, the further behind: CIFAR-10 with LeNet 52 after 8 epochs (65
    after 3), 2.27 nats (1.53) for a transformer on characters. Linear and wide networks follow
    theory.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    net = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
    model = bioprop.plug(net, bioprop.make('fa', rho=0.5))
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  rho: float = 0.0
  scale: float | None = None
  normalise: str = 'none'
  papers = ('lillicrap2016random', 'bordelon2023influence')

  def __post_init__(self):
    check_range(self, 'rho', 0.0, 1.0)
    if self.scale is not None:
      check_range(self, 'scale', 0.0)
    check_choice(self, 'normalise', CHOICES)

  @property
  def _scale(self):
    return 0.3 + 0.7 * self.rho if self.scale is None else self.scale

  def init_feedback(self, key, site):
    """B for each weight of the op, shaped like it; see `Rule.init_feedback`."""
    if not site.sends:
      return None
    own, fresh = self._scale * self.rho, self._scale * math.sqrt(1 - self.rho**2)
    drawn = site.redraw(key)
    mix = lambda w, other: own * w + fresh * other
    return {name: jax.tree.map(mix, site.params[name], drawn[name]) for name in site.op.weights}

  def sent_through(self, weights, feedback):
    """B, normalised; see `Rule.sent_through`."""
    if self.normalise == 'none':
      return feedback
    return {name: following(b, weights[name], self._scale) for name, b in feedback.items()}
