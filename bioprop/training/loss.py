"""Losses of each label, by name."""
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioprop.errors import ConfigError
from bioprop.training import config as config_lib
from bioprop.typing import Array


def squared_error(logits: Array, labels: Array) -> Array:
  """Half the squared distance to the one-hot label: [..., classes], [...] -> [...].

  The half makes the error at the output logits - one_hot.
  """
  target = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return jnp.sum(jnp.square(logits - target), axis=-1) / 2


def centred_squared_error(logits: Array, labels: Array) -> Array:
  """Half the squared distance to the one-hot label less its mean, 1 / classes; as `squared_error`.

  The targets of Boopathy & Fiete (2022, arXiv 2106.08453), which sum to zero. Their loss, the mean
  over the batch and the classes of the squares, is this one times 2 / classes.
  """
  return squared_error(logits + 1 / logits.shape[-1], labels)


def counted(labels: Array) -> Array:
  """Which positions count, bool [...]: those with a label, or with targets.

  Args:
    labels: whole numbers [...], -1 where nothing is asked, or floats [..., outputs], NaN there.
  """
  if jnp.issubdtype(labels.dtype, jnp.floating):
    return (labels == labels).all(-1)  # Which NaN is not; of numpy and of jax arrays alike.
  return labels >= 0


def distance_to_targets(out: Array, targets: Array) -> Array:
  """Half the squared distance: [..., outputs] twice -> [...]; 0 where nothing is asked."""
  error = jnp.where(counted(targets)[..., None], out - targets, jnp.zeros_like(out))
  return jnp.sum(jnp.square(error), axis=-1) / 2


def make_loss(name: str, values: np.ndarray | None = None, targets: bool = False,
              masked: bool = False):
  """Returns the function (logits [..., classes], labels [...]) -> losses [...].

  Args:
    name: of the loss.
    values: the quantity that each label stands for, which the one output of a model is to predict;
      None where labels are classes or targets.
    targets: labels are numbers [..., outputs] that the outputs are to be.
    masked: some labels are -1, whose losses are 0.

  Raises:
    ConfigError: if there is no such loss, or it is none for quantities.
  """
  losses = {
      'cross_entropy': optax.softmax_cross_entropy_with_integer_labels,
      'mse': squared_error,
      'mse_centred': centred_squared_error,
  }
  if name not in losses:
    raise config_lib.unknown('loss', name, losses)
  if values is None and not targets:
    return _masked(losses[name]) if masked else losses[name]
  if name != 'mse':
    raise ConfigError(f'config.loss is {name!r}, and the labels of this dataset are quantities, '
                      'not classes. Type --config.loss=mse.')
  if targets:
    return distance_to_targets
  return lambda out, labels: jnp.square(out[..., 0] - jnp.asarray(values)[labels]) / 2


def _masked(loss):
  """The loss, 0 where the label is -1."""
  def of_counted(logits, labels):
    losses = loss(logits, jnp.maximum(labels, 0))
    return jnp.where(counted(labels), losses, jnp.zeros_like(losses))

  return of_counted


def make_decision(values: np.ndarray | None = None, targets: bool = False):
  """Returns the function (logits [..., classes]) -> labels [...]: the largest, or the nearest.

  Args:
    values, targets: as in `make_loss`; None is returned for targets, of which none is right.
  """
  if targets:
    return None
  if values is None:
    return lambda logits: jnp.argmax(logits, axis=-1)

  def nearest(out):
    distance = out - jnp.asarray(values).reshape((1,) * (out.ndim - 1) + (-1,))
    return jnp.argmin(jnp.abs(distance), axis=-1)

  return nearest
