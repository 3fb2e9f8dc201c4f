"""Images in a few pixels, and convolutional networks that are trained on them in the lazy limit.

Networks are in the 'ntk' parametrisation, of sqrt(2) ReLUs and without biases, so that all kernels
are those of variances 1. They follow a rule by plain SGD on all samples at once, on the sum over
samples of the losses of f - f_0, f_0 being the outputs before the first step.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bioprop import data as data_lib
from bioprop.bench import wide
from bioprop.errors import ConfigError
from bioprop.fronts.plug import plug
from bioprop.models.parametrization import Parametrization
from bioprop.rules import AnyRule, make
from bioprop.typing import Array

LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    'mse': lambda f, y: jnp.sum(jnp.square(f - y)) / 2,
    'cross_entropy': lambda f, y: -jnp.sum(y * jax.nn.log_softmax(f)),
}


class Images(NamedTuple):
  """Training samples, the first of which are a smaller set, and test samples.

  Attributes:
    x: [n, h, w, c].
    labels: [n].
    x_test: [m, h, w, c].
    labels_test: [m].
    classes: C.
  """
  x: np.ndarray
  labels: np.ndarray
  x_test: np.ndarray
  labels_test: np.ndarray
  classes: int

  def targets(self, samples: int, loss: str) -> np.ndarray:
    """One-hot labels of the first samples, less their mean 1 / C under 'mse', [samples, C]."""
    one_hot = np.eye(self.classes, dtype=np.float32)[self.labels[:samples]]
    return one_hot - np.float32(1 / self.classes) if loss == 'mse' else one_hot


def load(dataset: str, data_dir: str | None, samples: int, test: int, reduce: int,
         seed: int) -> Images:
  """Samples at random, their pixels means over reduce x reduce, each channel standardised.

  Args:
    dataset: as in `bioprop.data.load`.
    data_dir: as there.
    samples: of the training split.
    test: of the test split.
    reduce: 1 leaves the images as they are.
    seed: of which samples.

  Raises:
    DataError: if there is no such dataset.
    ConfigError: if it has not as many samples, is none of images, or they do not divide so.
  """
  found = data_lib.load(dataset, data_dir, validation=0)
  if found.mean is None or found.train.images.ndim != 4:
    raise ConfigError(f'the experiment is about images, and {dataset!r} has none: name mnist, '
                      f'cifar10 or digits in config.problems.')
  sides = found.train.images.shape[1:3]
  if reduce < 1 or any(side % reduce for side in sides):
    raise ConfigError(f'config.reduce={reduce} does not divide images of {sides[0]} x {sides[1]} '
                      f'pixels: type --config.reduce={math.gcd(*sides, 4)}.')
  split = {}
  for name, count in (('train', samples), ('test', test)):
    whole = getattr(found, name)
    if count > len(whole.labels):
      raise ConfigError(f'{count} {name} samples of {dataset} were asked for, and there are '
                        f'{len(whole.labels)}: ask for fewer in config.problems and config.test.')
    chosen = np.random.RandomState(seed).permutation(len(whole.labels))[:count]
    split[name] = _reduced(whole.images[chosen], reduce), whole.labels[chosen]
  (x, labels), (x_test, labels_test) = split['train'], split['test']
  mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
  return Images((x - mean) / std, labels, (x_test - mean) / std, labels_test, found.num_classes)


def _reduced(images: np.ndarray, reduce: int) -> np.ndarray:
  n, height, width, channels = images.shape
  blocks = (n, height // reduce, reduce, width // reduce, reduce, channels)
  return images.reshape(blocks).mean((2, 4), dtype=np.float32)


class Cnn(nn.Module):
  """3 x 3 convolutions, each with a sqrt(2) ReLU, and a readout.

  Attributes:
    classes: outputs.
    width: channels of every convolution.
    strides: of each.
    gamma0: by which outputs are divided; the smaller, the less do features move at a width.
    pooled: whether the readout sees means over positions; or each position with weights of its own.
  """
  classes: int
  width: int
  strides: Sequence[int]
  gamma0: float
  pooled: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps images [n, h, w, c] to outputs [n, classes]."""
    how = Parametrization('ntk', self.gamma0)
    for strides in self.strides:
      x = math.sqrt(2) * nn.relu(how.conv(x, self.width, (3, 3), strides, use_bias=False))
    x = jnp.mean(x, (1, 2)) if self.pooled else x.reshape((x.shape[0], -1))
    return how.readout(x, self.classes, use_bias=False)


class Network(NamedTuple):
  """A network and its rule, by value: equal ones are compiled once.

  Attributes:
    rule: its name.
    rho: of fa.
    classes, width, strides, gamma0, pooled: as of `Cnn`.
  """
  rule: str
  rho: float
  classes: int
  width: int
  strides: tuple[int, ...]
  gamma0: float
  pooled: bool

  @property
  def plain(self) -> Cnn:
    """Without its rule."""
    return Cnn(self.classes, self.width, self.strides, self.gamma0, self.pooled)

  @property
  def by(self) -> AnyRule:
    """The rule, its feedback of the order of the weights that it stands for."""
    if self.rule == 'dfa':
      # B has the variance scale^2 / features: of the order of 1, as the weights, at any width; and
      # it carries the error itself, which others get divided by gamma_0.
      return make('dfa', scale=math.sqrt(self.width) / self.gamma0)
    return wide.rule_of(self.rule, self.gamma0, self.width, self.rho)


def train(network: Network, x: Array, targets: Array, x_test: Array, *, learning_rate: float,
          steps: int, loss: str, seed: int) -> np.ndarray:
  """Outputs on the test samples after training, less those before, [m, C].

  Args:
    network: what is trained.
    x: training samples [n, h, w, c].
    targets: [n, C].
    x_test: [m, h, w, c].
    learning_rate: of the sum over samples.
    steps: how many.
    loss: in `LOSSES`.
    seed: of weights and feedback.
  """
  variables = _start(network, seed, x[:1])
  params = variables['params']
  held = {name: one for name, one in variables.items() if name != 'params'}
  both = jnp.concatenate([x, x_test])
  start = _outputs(network, params, both)
  # No loop of JAX: XLA's convolutions are slow in those on CPUs.
  for _ in range(steps):
    params = _step(network, loss, params, held, x, targets, start[:len(x)], learning_rate)
  return np.asarray(_outputs(network, params, both) - start)[len(x):]


@functools.partial(jax.jit, static_argnums=0)
def _start(network, seed, x):
  return plug(network.plain, network.by).init(jax.random.key(seed), x)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(network, params, x):
  return network.plain.apply({'params': params}, x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(network, loss, params, held, x, targets, start, learning_rate):
  model = plug(network.plain, network.by)

  def total(params):
    f = model.apply({'params': params, **held}, x) - start
    return jnp.sum(jax.vmap(LOSSES[loss])(f, targets))

  return jax.tree.map(lambda w, g: w - learning_rate * g, params, jax.grad(total)(params))
