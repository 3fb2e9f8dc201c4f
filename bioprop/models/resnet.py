"""Residual networks for 32x32 images (He et al., 2016, arXiv 1512.03385, section 4.2)."""
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bioprop.models.parametrization import Parametrization


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions with BatchNorm and a shortcut (a 1x1 projection where shapes change)."""
  features: int
  strides: int = 1
  how: Parametrization = Parametrization('standard')

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x [n, h, w, c] to [n, h / strides, w / strides, features]."""
    conv = functools.partial(self.how.conv, features=self.features, use_bias=False)
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    y = nn.relu(norm()(conv(x, size=(3, 3), strides=self.strides)))
    y = norm()(conv(y, size=(3, 3)))
    if x.shape != y.shape:
      x = norm()(conv(x, size=(1, 1), strides=self.strides))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A 3x3 stem, stages of residual blocks that halve the grid, global average pooling, a readout.

  Attributes:
    stages: number of residual blocks in each stage.
    width: channels of the first stage; each later stage has twice as many.
    classes: width of the readout.
    parametrization: 'standard', 'ntk' or 'mup'; see bioprop/models/parametrization.py.
    gamma0: richness, in 'ntk' and 'mup'.
  """
  stages: Sequence[int]
  width: int
  classes: int = 10
  parametrization: str = 'standard'
  gamma0: float = 1.0

  @property
  def learning_rate_factor(self) -> float:
    """What learning rates are to be multiplied by."""
    how = Parametrization(self.parametrization, self.gamma0)
    return how.learning_rate_factor(self.width * 2**(len(self.stages) - 1))

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images [n, h, w, c] to logits [n, classes]; `train` uses the batch's statistics."""
    how = Parametrization(self.parametrization, self.gamma0)
    x = how.conv(x, self.width, (3, 3), use_bias=False)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    for stage, blocks in enumerate(self.stages):
      for block in range(blocks):
        strides = 2 if stage > 0 and block == 0 else 1
        x = ResidualBlock(self.width * 2**stage, strides, how)(x, train)
    x = jnp.mean(x, axis=(1, 2))
    return how.readout(x, self.classes)


ResNet20 = functools.partial(ResNet, stages=(3, 3, 3), width=16)
ResNet18 = functools.partial(ResNet, stages=(2, 2, 2, 2), width=64)
