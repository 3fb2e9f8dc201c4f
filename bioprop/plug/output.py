"""A model's arguments and results: arrays, told apart from all else, and which is its output."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bioprop.errors import OutputError
from bioprop.typing import Array, PyTree

Where = int | str | tuple[int | str, ...] | None
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


class Returned:
  """Tells arrays from all else that a model returns, so that JAX can trace it."""

  def keep(self, out: PyTree) -> list[Array]:
    """The arrays."""
    leaves, self._structure = jax.tree.flatten(out)
    self._is_array = [hasattr(leaf, 'dtype') for leaf in leaves]
    self._others = [None if array else leaf for leaf, array in zip(leaves, self._is_array)]
    return [leaf for leaf, array in zip(leaves, self._is_array) if array]

  def restore(self, arrays: Sequence[Any]) -> PyTree:
    """What the model returned, with other arrays."""
    rest = iter(arrays)
    return jax.tree.unflatten(self._structure, [
        next(rest) if array else leaf for leaf, array in zip(self._others, self._is_array)])

  def position(self, at: int, leaf: Any) -> tuple[int, Any]:
    """A leaf's position among the arrays, and the leaf."""
    return sum(self._is_array[:at]), leaf


def locate(out: PyTree, where: Where) -> tuple[int, Any]:
  """Finds the output array among the leaves of what a model returned.

  Args:
    out: what the model returned: arrays, or their shapes.
    where: index, key or attribute of the output array, or a tuple of them from the root down;
      None if the model returns just one floating-point array.

  Returns:
    The leaf's position among the leaves of `out`, and the leaf.

  Raises:
    OutputError: if there are several candidates, or none.
  """
  leaves = jax.tree_util.tree_flatten_with_path(out)[0]
  floating = [i for i, (_, leaf) in enumerate(leaves)
              if hasattr(leaf, 'dtype') and jnp.issubdtype(leaf.dtype, jnp.floating)]
  shapes = ', '.join(f'{jax.tree_util.keystr(path) or "output"}: {tuple(leaf.shape)}'
                     for path, leaf in (leaves[i] for i in floating)) or 'none'
  if where is not None:
    wanted = where if isinstance(where, tuple) else (where,)
    floating = [i for i in floating if _names(leaves[i][0]) == wanted]
  if len(floating) != 1:
    asked = '' if where is None else f' None of them, or several, are at output={where!r}.'
    raise OutputError(
        f'this rule broadcasts the error at the network\'s output, which must be one array; the '
        f'model returns these floating-point arrays: {shapes}.{asked} Say which one is the output, '
        f'by its index or key: output=0 beside the rule, in wrap or install.')
  leaf = leaves[floating[0]][1]
  if leaf.ndim < 1:
    raise OutputError(
        'this rule broadcasts the error at the network\'s output to its layers, sample by sample, '
        'but the model returns a scalar, as a model that computes its own loss does. Let the model '
        'return logits of shape [n, classes] and compute the loss outside.')
  return floating[0], leaf


def replace(out: PyTree, position: int, leaf: Any) -> PyTree:
  """`out` with another leaf at a position given by `locate`."""
  leaves, structure = jax.tree.flatten(out)
  leaves[position] = leaf
  return jax.tree.unflatten(structure, leaves)


def _names(path) -> tuple[int | str, ...]:
  return tuple(getattr(entry, 'key', getattr(entry, 'idx', getattr(entry, 'name', None)))
               for entry in path)


def _is_array(leaf: Any) -> bool:
  return hasattr(leaf, 'shape') and not isinstance(leaf, np.generic)  # numpy's own True is a flag.
