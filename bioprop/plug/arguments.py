"""A call's arguments, told apart: arrays, and flags such as train=True, which stay as they are."""
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

ByPosition = dict[int, Any]


# Puts other values in the places of what was split off, and returns (args, kwargs).
Rebuild = Callable[[ByPosition], tuple[tuple[Any, ...], dict[str, Any]]]


def split(args: tuple[Any, ...], kwargs: Mapping[str, Any]
          ) -> tuple[ByPosition, ByPosition, Rebuild]:
  """Splits a call's arguments.

  Args:
    args: positional arguments, trees of anything.
    kwargs: keyword arguments.

  Returns:
    The arrays (or their shapes) and the NNX objects (nnx.Rngs) by position, and `Rebuild`.
  """
  is_node = lambda a: isinstance(a, (nnx.Pytree, nnx.Variable))
  leaves, structure = jax.tree.flatten((args, dict(kwargs)), is_leaf=is_node)
  nodes = {i: leaf for i, leaf in enumerate(leaves) if is_node(leaf)}
  arrays = {i: leaf for i, leaf in enumerate(leaves) if i not in nodes and _is_array(leaf)}
  rebuild = lambda others: jax.tree.unflatten(
      structure, [others.get(i, leaf) for i, leaf in enumerate(leaves)])
  return arrays, nodes, rebuild


def _is_array(leaf: Any) -> bool:
  return hasattr(leaf, 'shape') and not isinstance(leaf, np.generic)  # numpy's own True is a flag.
