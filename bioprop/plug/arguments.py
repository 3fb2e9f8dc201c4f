"""A call's arguments, told apart: arrays, and flags such as train=True, which stay as they are."""
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Arrays = dict[int, Any]


def split(args: tuple[Any, ...], kwargs: Mapping[str, Any]
          ) -> tuple[Arrays, Callable[[Arrays], tuple[tuple[Any, ...], dict[str, Any]]]]:
  """Splits a call's arguments.

  Args:
    args: positional arguments, trees of anything.
    kwargs: keyword arguments.

  Returns:
    The arrays (or their shapes) by position, and a function that puts other arrays in their places
    and returns (args, kwargs).
  """
  leaves, structure = jax.tree.flatten((args, dict(kwargs)))
  arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}
  rebuild = lambda others: jax.tree.unflatten(
      structure, [others.get(i, leaf) for i, leaf in enumerate(leaves)])
  return arrays, rebuild


def is_array(leaf: Any) -> bool:
  """Whether an argument is an array; numpy's own True is a flag too."""
  return hasattr(leaf, 'shape') and not isinstance(leaf, np.generic)
