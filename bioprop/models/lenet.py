"""LeNet-5 (LeCun et al., 1998) with ReLU and max pooling."""
from collections.abc import Sequence

import flax.linen as nn
import jax


class LeNet(nn.Module):
  """Three 5x5 convolutions, two of them pooled, and two dense layers.

  On 28x28 images the first convolution pads to 32x32, as LeCun et al. did, so that the third one
  sees 5x5 positions and has one output position. Attributes give LeNet-5; (32, 64, 128) with the
  same dense layer is the CIFAR-10 variant of BioTorch's benchmark.

  Attributes:
    classes: width of the readout.
    features: channels of the three convolutions.
    dense: width of the hidden dense layer.
  """
  classes: int = 10
  features: Sequence[int] = (6, 16, 120)
  dense: int = 84

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images [n, 28, 28, c] or [n, 32, 32, c] to logits [n, classes]."""
    del train  # The same in training and evaluation.
    first, second, third = self.features
    x = nn.relu(nn.Conv(first, (5, 5), padding='SAME' if x.shape[1] == 28 else 'VALID')(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Conv(second, (5, 5), padding='VALID')(x))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Conv(third, (5, 5), padding='VALID')(x))
    x = x.reshape((x.shape[0], -1))
    x = nn.relu(nn.Dense(self.dense)(x))
    return nn.Dense(self.classes)(x)
