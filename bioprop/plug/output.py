"""The network's output: the one array whose cotangent is the error."""
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.errors import OutputError
from bioprop.typing import PyTree

Where = int | str | tuple[int | str, ...] | None


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
