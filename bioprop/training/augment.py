"""Random variations of images, drawn inside the training step."""
import jax
import jax.numpy as jnp

from bioprop.training import config as config_lib
from bioprop.typing import Array, Key

_PAD = 4


def shift_flip(key: Key, images: Array) -> Array:
  """Shifts each image by up to 4 pixels (zeros come in) and mirrors half of them left-right.

  Args:
    key: of the draws.
    images: uint8 [n, h, w, c].

  Returns:
    As many images of the same shape.
  """
  n, height, width, channels = images.shape
  shift_key, flip_key = jax.random.split(key)
  padded = jnp.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
  corners = jax.random.randint(shift_key, (n, 2), 0, 2 * _PAD + 1)
  crop = lambda image, corner: jax.lax.dynamic_slice(
      image, (corner[0], corner[1], 0), (height, width, channels))
  cropped = jax.vmap(crop)(padded, corners)
  flip = jax.random.bernoulli(flip_key, 0.5, (n, 1, 1, 1))
  return jnp.where(flip, cropped[:, :, ::-1], cropped)


def make_augment(name: str):
  """Returns the function (key, images) -> images, or None for 'none'.

  Raises:
    ConfigError: if there is no such augmentation.
  """
  augments = {'none': None, 'shift_flip': shift_flip}
  if name not in augments:
    raise config_lib.unknown('augment', name, augments)
  return augments[name]
