"""Residual networks for 32x32 images (He et al., 2016, arXiv 1512.03385, section 4.2)."""
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions with BatchNorm and a shortcut (a 1x1 projection where shapes change)."""
  features: int
  strides: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps x [n, h, w, c] to [n, h / strides, w / strides, features]."""
    conv = functools.partial(nn.Conv, self.features, use_bias=False)
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    y = nn.relu(norm()(conv((3, 3), strides=self.strides)(x)))
    y = norm()(conv((3, 3))(y))
    if x.shape != y.shape:
      x = norm()(conv((1, 1), strides=self.strides)(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A 3x3 stem, stages of residual blocks that halve the grid, global average pooling, a readout.

  Attributes:
    stages: number of residual blocks in each stage.
    width: channels of the first stage; each later stage has twice as many.
    classes: width of the readout.
  """
  stages: Sequence[int]
  width: int
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images [n, h, w, c] to logits [n, classes]; `train` uses the batch's statistics."""
    x = nn.Conv(self.width, (3, 3), use_bias=False)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    for stage, blocks in enumerate(self.stages):
      for block in range(blocks):
        strides = 2 if stage > 0 and block == 0 else 1
        x = ResidualBlock(self.width * 2**stage, strides)(x, train)
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.classes)(x)


ResNet20 = functools.partial(ResNet, stages=(3, 3, 3), width=16)
ResNet18 = functools.partial(ResNet, stages=(2, 2, 2, 2), width=64)
