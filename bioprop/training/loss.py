"""Losses of each label, by name."""
import jax
import jax.numpy as jnp
import optax

from bioprop.training import config as config_lib
from bioprop.typing import Array


def squared_error(logits: Array, labels: Array) -> Array:
  """Half the squared distance to the one-hot label: [..., classes], [...] -> [...].

  The half makes the error at the output logits - one_hot.
  """
  target = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return jnp.sum(jnp.square(logits - target), axis=-1) / 2


def make_loss(name: str):
  """Returns the function (logits [..., classes], labels [...]) -> losses [...].

  Raises:
    ConfigError: if there is no such loss.
  """
  losses = {
      'cross_entropy': optax.softmax_cross_entropy_with_integer_labels,
      'mse': squared_error,
  }
  if name not in losses:
    raise config_lib.unknown('loss', name, losses)
  return losses[name]
