"""Multi-layer perceptron."""
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from bioprop.models.parametrization import Parametrization


class MLP(nn.Module):
  """Dense layers with one nonlinearity between them.

  Attributes:
    classes: width of the readout.
    hidden: width of each hidden layer, from the input up.
    activation: name of a function in `flax.linen` ('tanh', 'relu', ...), or a callable.
    parametrization: 'standard', 'ntk' or 'mup'; see bioprop/models/parametrization.py.
    gamma0: richness, in 'ntk' and 'mup'.
    use_bias: whether layers have biases, which the theory of wide networks mostly leaves out.
  """
  classes: int = 10
  hidden: Sequence[int] = (800, 800)
  activation: str | Callable[[jax.Array], jax.Array] = 'tanh'
  parametrization: str = 'standard'
  gamma0: float = 1.0
  use_bias: bool = True

  @property
  def learning_rate_factor(self) -> float:
    """What learning rates are to be multiplied by."""
    how = Parametrization(self.parametrization, self.gamma0)
    return how.learning_rate_factor(self.hidden[-1]) if self.hidden else 1.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps x [n, ...] to logits [n, classes]; all axes but the first are flattened."""
    del train  # The same in training and evaluation.
    phi = getattr(nn, self.activation) if isinstance(self.activation, str) else self.activation
    how = Parametrization(self.parametrization, self.gamma0)
    x = x.reshape((x.shape[0], -1))
    for width in self.hidden:
      x = phi(how.dense(x, width, self.use_bias))
    return how.readout(x, self.classes, self.use_bias)
