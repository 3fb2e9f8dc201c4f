"""Direct Kolen-Pollack; see `DirectKolenPollack`."""
import dataclasses

import jax.numpy as jnp

from bioprop.rules.base import check_range
from bioprop.rules.direct import DirectFeedbackAlignment


@dataclasses.dataclass(frozen=True)
class DirectKolenPollack(DirectFeedbackAlignment):
  r"""Direct Kolen-Pollack: `dx = B e`, `dB = eᵀ x`: direct feedback that learns, `W` and `B` decay.

  "Learning the connections in direct feedback alignment" (Webster, Choi & Ahn 2021, OpenReview
  zgGmAx9ZcY): the weights $B$ that bring the error $e$ to a layer's input $x$ receive the product
  of both, as the readout's weights do,

  $$ dW = x^\top g , \qquad dx = B e , \qquad dB = e^\top x $$

  The update of a readout's weights is $x^\top e$. So the $B$ of a readout gets its very update, and
  with the same decay it becomes its transpose, as under Kolen-Pollack; what is below receives the
  $B$ that would read the output off its own activities. B is a parameter, `feedback_error` beside
  `kernel`, and the optimiser moves it. With position axes, each position's error meets its own
  activities. In time it does as direct feedback alignment does, and adds the products of all steps.

  Attributes:
    scale: factor on the initial feedback, as in direct feedback alignment.
    spatial: as in direct feedback alignment; 'shared' feedback gets the mean over locations.
    max_gib: as in direct feedback alignment.
    normalise: as in direct feedback alignment.
    rate: factor on the feedback's pseudogradient: its learning rate over that of the weights.

  Rate:
    x has as many entries as the layer has inputs, and B as many columns: next to its updates those
    of W are small, and lost where gradients are clipped by their norm. The authors' code
    (github.com/webstah/dkp-gist) gives B an optimiser of its own, whose rate falls from epoch to
    epoch; here `rate` is a factor on dB. Validation accuracy in % on MNIST with LeNet-5, after 2
    epochs on 8000 images (learning rate 0.05, weight decay 1e-3, gradients clipped to a norm of 1):

    | rate | 1 | 0.1 | 0.03 | 0.01 | 0.003 |
    |---|---|---|---|---|---|
    | default scale | 74.22 | 91.12 | 91.76 | 89.86 | 88.82 |
    | scale 0.5 | | 86.04 | | 84.42 | |

    against 84.36 of dfa at scale 0.5 and 86.06 at 0.1. The default is 0.03, and the scale is that
    of direct feedback alignment: feedback that learns is best begun small. The table is printed by

    ```
    python train.py --config=configs/mnist_lenet.py --config.epochs=2 --config.examples=8000 \
        --config.rule=dkp --config.rule_options.rate=0.03 --data_dir=...
    ```

  Cost:
    That of `dfa`, a product of x and e in each layer, and the optimiser's state of B; not measured.

  When it works:
    With weight decay on W and B alike, little above `dfa`: MNIST 98.4 % with LeNet-5 in half
    of dfa's epochs (98.6); digits, without decay, 96.7 (dfa 96.5, bp 97.8). Not everywhere: on
    CIFAR-10 cifar10_lenet gives after 2 epochs on 12800 images 28.34, dfa 29.90. In NNX make the
    optimiser after `plug`.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax, optax
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'dkp')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    optimizer = optax.adamw(1e-3, weight_decay=1e-2).init(variables['params'])
    ```
  """
  rate: float = 0.03
  papers = ('webster2021learning',)
  learns = True
  learns_direct = ('error',)

  def __post_init__(self):
    super().__post_init__()
    check_range(self, 'rate', 0.0)

  def backward(self, op, params, x, feedback, g, e):
    """B e sent to the op's input; B gets the product of both; see `Rule.backward`."""
    credit = super().backward(op, params, x, feedback, g, e)
    if credit.x is None:
      return credit
    b = feedback['error']
    errors = e.reshape((-1, b.shape[0])).astype(b.dtype)
    inputs = x.reshape((errors.shape[0], -1, b.shape[1])).astype(b.dtype)
    learned = jnp.asarray(self.rate, b.dtype) * (errors.T @ jnp.mean(inputs, 1))
    return credit._replace(feedback={'error': learned})
