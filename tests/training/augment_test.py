"""shift_flip against every crop and mirror image that it may give."""
import jax
import jax.numpy as jnp
import numpy as np

from bioprop.training import augment


def test_shift_flip_gives_only_shifts_and_mirror_images_and_all_of_them():
  random = np.random.default_rng(0)
  image = random.integers(1, 256, (6, 6, 3), np.uint8)
  padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
  allowed = {}
  for top in range(9):
    for left in range(9):
      crop = padded[top:top + 6, left:left + 6]
      allowed[crop.tobytes()] = (top, left, False)
      allowed[crop[:, ::-1].tobytes()] = (top, left, True)
  many = np.asarray(augment.shift_flip(
      jax.random.key(0), jnp.asarray(np.repeat(image[None], 2000, 0))))
  seen = [allowed[one.tobytes()] for one in many]  # A KeyError is an image that is neither.
  assert many.dtype == np.uint8
  assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
  assert 0.45 < np.mean([flip for _, _, flip in seen]) < 0.55
