"""Multi-layer perceptron."""
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
  """Dense layers with one nonlinearity between them.

  Attributes:
    classes: width of the readout.
    hidden: width of each hidden layer, from the input up.
    activation: name of a function in `flax.linen` ('tanh', 'relu', ...), or a callable.
  """
  classes: int = 10
  hidden: Sequence[int] = (800, 800)
  activation: str | Callable[[jax.Array], jax.Array] = 'tanh'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps x [n, ...] to logits [n, classes]; all axes but the first are flattened."""
    del train  # The same in training and evaluation.
    phi = getattr(nn, self.activation) if isinstance(self.activation, str) else self.activation
    x = x.reshape((x.shape[0], -1))
    for width in self.hidden:
      x = phi(nn.Dense(width)(x))
    return nn.Dense(self.classes)(x)
