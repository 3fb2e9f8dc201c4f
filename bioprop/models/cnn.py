"""A plain convolutional network whose width is one number.

The network of Boopathy & Fiete (2022, arXiv 2106.08453) for CIFAR-10: seven 3x3
convolutions, each followed by normalisation over the batch and a ReLU, global average pooling, a
readout.
"""
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bioprop.models.parametrization import Parametrization


class CNN(nn.Module):
  """Convolutions of one width.

  Attributes:
    classes: width of the readout.
    width: channels of every convolution.
    strides: of each convolution, from the input up.
    normalised: over the batch, after each convolution.
    parametrization: 'standard', 'ntk' or 'mup'; see bioprop/models/parametrization.py.
    gamma0: richness, in 'ntk' and 'mup'.
    use_bias: whether layers have biases, which the theory of wide networks mostly leaves out.
  """
  classes: int = 10
  width: int = 64
  strides: Sequence[int] = (1, 1, 1, 2, 1, 2, 1)
  normalised: bool = True
  parametrization: str = 'standard'
  gamma0: float = 1.0
  use_bias: bool = True

  @property
  def learning_rate_factor(self) -> float:
    """What learning rates are to be multiplied by."""
    return Parametrization(self.parametrization, self.gamma0).learning_rate_factor(self.width)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images [n, h, w, c] to logits [n, classes], which depend on the batch if normalised."""
    del train  # The batch's own moments in evaluation too, as the authors have it.
    how = Parametrization(self.parametrization, self.gamma0)
    for strides in self.strides:
      x = how.conv(x, self.width, (3, 3), strides, self.use_bias)
      x = nn.relu(_normalised(x) if self.normalised else x)
    return how.readout(jnp.mean(x, axis=(1, 2)), self.classes, self.use_bias)


def _normalised(x: jax.Array) -> jax.Array:
  """Mean 0, variance 1 over the batch, for each location and channel by itself; no parameters."""
  centred = x - jnp.mean(x, axis=0, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=0, keepdims=True)
  return centred * jax.lax.rsqrt(variance + 1e-6)
