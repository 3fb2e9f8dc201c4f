"""Networks that become wider come closer to what is read from them, as 1 / sqrt(width)."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.measure import entk

DRAWN = np.random.RandomState(0)
IMAGES = {size: jnp.asarray(DRAWN.randn(3, size, size, 3), jnp.float32) for size in (4, 6)}
SEEDS = 24
# Of normal numbers: Flax's own initialisers cut them off, and a first layer that sees few numbers
# is then not Gaussian at any width. Divided by the fan-in's root in the network, so that no layer's
# share depends on the width.
NORMAL = nn.initializers.normal(1.0)


def dense(x, features, **options):
  layer = nn.Dense(features, kernel_init=NORMAL, **options)
  return layer(x / math.sqrt(x.shape[-1]))


def conv(x, features, size, groups=1, **options):
  layer = nn.Conv(features, size, kernel_init=NORMAL, feature_group_count=groups, use_bias=False,
                  **options)
  return layer(x * math.sqrt(2 * groups / (math.prod(size) * x.shape[-1])))


class CNN(nn.Module):
  """Strides, padding, dilation, groups and a mean over positions."""
  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(conv(x, self.width, (3, 3), strides=2))
    x = nn.gelu(conv(x, self.width, (2, 2), groups=2, padding='VALID'))
    x = nn.relu(conv(x, self.width, (2, 2), kernel_dilation=2, padding=1))
    return dense(x.mean((1, 2)), 2)


class ResNet18(nn.Module):
  """Two blocks in each of four stages, without normalisation."""
  width: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(conv(x, self.width, (3, 3)))
    for stage in range(4):
      for block in range(2):
        features, strides = self.width * 2**stage, 2 if stage and not block else 1
        y = conv(nn.relu(conv(x, features, (3, 3), strides=strides)), features, (3, 3))
        x = x if x.shape == y.shape else conv(x, features, (1, 1), strides=strides)
        x = nn.relu(x + y)
    return dense(x.mean((1, 2)), 2)


class Mixer(nn.Module):
  """Fixed mixtures of patches, gated units, norms, biases and residual sums."""
  width: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(len(x), 3, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 9, 12)
    mixture = jnp.asarray(np.random.RandomState(1).randn(9, 9) / 3, jnp.float32)
    x = dense(x, self.width)
    for _ in range(2):
      y = jnp.einsum('pq,nqc->npc', mixture, nn.LayerNorm()(x))
      value, gate = jnp.split(dense(y, 2 * self.width, use_bias=False), 2, -1)
      x = x + dense(value * nn.sigmoid(gate), self.width)
    return dense(nn.RMSNorm()(x).mean(1), 2)


# The suite optimises nothing, and convolutions of many channels then take twenty times as long.
COMPILED = {'xla_backend_optimization_level': 1}


def kernels(model, rule, images):
  """Of networks, over seeds."""
  plugged = bioprop.plug(model, rule)
  jacobians = bioprop.measure.jacobians(plugged, images)
  jacobians.true(plugged.init(jax.random.key(0), images))  # Checks, which needs numbers.

  def kernel(key):
    variables = plugged.init(key, images)
    return entk(jacobians.true(variables), jacobians.pseudo(variables), images, trace=True) / 2

  keys = jax.random.split(jax.random.key(1), SEEDS)
  return jax.jit(lambda keys: jax.lax.map(kernel, keys), compiler_options=COMPILED)(keys)


def distances(found, want):
  """Of kernels, each and their mean, from the infinite network's, in units of that."""
  away = jnp.linalg.norm(found - want[None], axis=(1, 2))
  mean = jnp.linalg.norm(jnp.mean(found, 0) - want)
  return [np.asarray(own / jnp.linalg.norm(want)) for own in (away, mean)]


FA = bioprop.make('fa', rho=0.5, scale=1.0)


@pytest.mark.slow
@pytest.mark.parametrize('kind, size, widths, rule', [
    (CNN, 6, (64, 512), 'bp'), (CNN, 6, (64, 512), FA), (CNN, 6, (64, 512), 'dfa'),
    (CNN, 6, (64, 512), 'pfa'), (CNN, 6, (64, 512), 'dkp'),
    (Mixer, 6, (64, 512), 'bp'), (Mixer, 6, (64, 512), FA), (ResNet18, 4, (8, 32), 'bp')],
    ids=['cnn-bp', 'cnn-fa', 'cnn-dfa', 'cnn-pfa', 'cnn-dkp', 'mixer-bp', 'mixer-fa',
         'resnet18-bp'])
def test_networks_converge(kind, size, widths, rule):
  """Each by itself, and their mean faster."""
  images = IMAGES[size]
  want = bioprop.theory.infinite(kind(widths[0]), images, rule=rule, variances={'*/kernel': 1.0})
  errors = [distances(kernels(kind(width), rule, images), want.entk) for width in widths]
  slope, = np.diff([np.log(away).mean() for away, _ in errors]) / np.diff(np.log(widths))
  # So many seeds leave a standard error of 0.06; of 192, slopes are within 0.07.
  assert abs(slope + 0.5) < 0.16, (slope, [away.mean() for away, _ in errors])
  assert errors[-1][1] < 0.1
