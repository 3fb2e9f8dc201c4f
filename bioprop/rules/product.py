"""Product feedback alignment; see `ProductFeedbackAlignment`."""
import dataclasses
import math

import jax
import jax.numpy as jnp

from bioprop.errors import FeedbackMemoryError
from bioprop.rules.base import SendingRule, check_range
from bioprop.rules.broadcast import at_least_float32

_GRAM = 'gram'


@dataclasses.dataclass(frozen=True)
class ProductFeedbackAlignment(SendingRule):
  r"""Product feedback alignment: `dx = g B Rᵀ`, `B` frozen, `R` gets `xᵀ(g B)`, `W` and `R` decay.

  Errors come back through two populations, so that no neuron needs a synapse on the one that it
  hears: first through fixed random weights $B$, then through weights $R$ that learn from what
  arrives there, and both decay, as under Kolen-Pollack (Li & Benna 2024, "Deep Learning without
  Weight Symmetry", arXiv 2405.20594, PMC11160852):

  $$ dW = x^\top g , \qquad dR = x^\top (g B) , \qquad dx = (g B) R^\top $$

  $B$ is [out, expansion * out] with entries of variance 1 / (expansion * out), so that
  $E\, B B^\top = 1$ (the authors draw them from a uniform distribution; here they are normal). Of
  convolutions $B$ is 1 x 1, and $R$ has the kernel's shape. $R$ is only seen through
  $P = R B^\top$, shaped like $W$, with $dx = g P^\top$ and

  $$ dP = dR\, B^\top = dW\, G , \qquad G = B B^\top $$

  so $P$ is what is kept here as the parameter, and $G$ beside it, frozen. Under optimisers that are
  linear in the gradient (SGD, with momentum and decay) this is the paper's rule to rounding, from
  $R(0) = P(0) G^{-1} B$; under others, such as Adam, $P$ takes the place of $R$. $G$ is used with a
  mean of 1 on its diagonal, so that an optimiser that is handed all feedback and lets $G$ decay
  changes nothing. In time, errors travel back through the $P$ of a recurrent weight.

  With weight decay $P$ becomes $W G$, and by the moments of a Wishart matrix its cosine with $W$
  tends to $1 / \sqrt{1 + 1 / \mathrm{expansion}}$: 45 degrees at expansion 1, 17.5 at the authors'
  10. Orthogonal $B$, their other choice, has $G = 1$ and is `kp` step by step; so is expansion
  without end. The equations are those of the authors' code
  (github.com/jil095/product_feedback_alignment: its `weight_backward_B` and `weight_backward_R`),
  and of the relation $W \sim (RB)^\top$ that the paper states; the paper's own numbering was not at
  hand.

  Attributes:
    expansion: neurons of the second population for each of the layer's outputs, at least 1.
    scale: factor on the initial feedback; 1 draws P as large as the layer's initial weights.
    max_gib: the largest B that one layer may have, in GiB (2**30 bytes).

  Scale:
    As under feedback alignment, P that is as large as the weights does not descend until it has
    aligned with them, and the default is 0.3. Validation accuracy in % on MNIST with LeNet-5, after
    2 epochs on 8000 images (learning rate 0.05, weight decay 1e-3, gradients clipped to a norm of
    1, in which the updates of P are counted too):

    | scale | 1 | 0.3 | 0.1 |
    |---|---|---|---|
    | pfa | 90.76 | 93.74 | 93.58 |
    | kp | 91.10 | 94.40 | |

    against 96.62 of backprop and 80.06 of fa at its scale 1. The table is printed by

    ```
    python train.py --config=configs/mnist_lenet.py --config.epochs=2 --config.examples=8000 \
        --config.rule=pfa --config.rule_options.scale=0.3 --data_dir=...
    ```

  Cost:
    A product of W with a matrix [out, out] more than `kp` in each layer, nothing per sample; memory
    as `kp`, and G. Not measured.

  When it works:
    With weight decay, where `kp` does: MNIST 98.2 % (bp 98.2) with two hidden layers after 5
    epochs, 99.3 (99.3) with LeNet-5, CIFAR-10 66 with LeNet after 8 epochs, where fa is at 52.
    Without, as on digits (97.6, fa 96.6, bp 97.8), see `kp`. In NNX make the optimiser
    after `plug`.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax, optax
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'pfa')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    optimizer = optax.adamw(1e-3, weight_decay=1e-2).init(variables['params'])
    ```
  """
  expansion: float = 10.0
  scale: float = 0.3
  max_gib: float = 1.0
  papers = ('li2024deep',)
  learns = True
  needs_sample = True

  def __post_init__(self):
    check_range(self, 'expansion', 1.0)
    check_range(self, 'scale', 0.0)
    check_range(self, 'max_gib', 0.0)

  def init_feedback(self, key, site):
    """P(0) for each weight of the op, shaped like it, and G; see `Rule.init_feedback`.

    Raises:
      FeedbackMemoryError: if B would take more than `max_gib`.
    """
    drawn = site.draw(key, self.scale)
    if drawn is None:
      return None
    if site.weight is None:  # G is not shaped like the parameter.
      return drawn
    axis, dtype = site.op.features, at_least_float32(site.weight.dtype)
    out = 1 if axis is None else site.weight.shape[axis]
    middle = math.ceil(self.expansion * out)
    self._check_memory(site.path, (out, middle), dtype)
    b = jax.random.normal(jax.random.fold_in(key, 1), (out, middle), dtype)
    return {**drawn, _GRAM: _balanced(b @ b.T)}

  def sent_through(self, weights, feedback):
    """P; see `Rule.sent_through`."""
    del weights
    return {name: value for name, value in feedback.items() if name != _GRAM}

  def backward(self, op, params, x, feedback, g, e):
    """g sent through P, which gets the update of W times G; see `Rule.backward`."""
    credit = super().backward(op, params, x, feedback, g, e)
    if feedback is None:
      return credit
    learned = {name: credit.params[name] for name in feedback if name != _GRAM}
    if _GRAM in feedback:  # A lookup of tokens has none: its update of a tied weight is P's too.
      gram = _balanced(feedback[_GRAM])
      learned = {name: _times(d, gram, op.features) for name, d in learned.items()}
      learned[_GRAM] = None
    return credit._replace(feedback=learned)

  def _check_memory(self, path, shape, dtype):
    """Raises FeedbackMemoryError if B is too large."""
    gib = math.prod(shape) * dtype.itemsize / 2**30
    if gib > self.max_gib:
      raise FeedbackMemoryError(
          f'the fixed feedback of the layer {path!r} would be {dtype.name} {shape}, which takes '
          f'{gib:.3g} GiB, and max_gib allows {self.max_gib:g} GiB for one layer. Leave the layer '
          f'on kp, to which this rule tends with its expansion: {{{path!r}: \'kp\', \'*\': '
          f'\'pfa\'}}; or choose a smaller expansion (it is {self.expansion:g}), or a larger '
          f'bound: --config.rule_options.max_gib={math.ceil(gib)}.')


def _balanced(gram):
  """The matrix over the mean of its diagonal."""
  return gram / jnp.mean(jnp.diagonal(gram))


def _times(d, gram, axis):
  """An update shaped like the weight, times G along the axis of the output's features."""
  d, dtype = d.astype(gram.dtype), d.dtype
  if axis is None:
    return (d * gram[0, 0]).astype(dtype)
  return jnp.moveaxis(jnp.moveaxis(d, axis, -1) @ gram, -1, axis).astype(dtype)
