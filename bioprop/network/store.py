"""Trees of parameters and of feedback by the keys that lead to each leaf, and patterns of paths."""
import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.errors import UnsupportedLayerError
from bioprop.typing import Array, Key, PyTree

Keys = tuple[str, ...]
Store = dict[Keys, Any]  # Feedback by the keys that lead to it.
Made = tuple[Store, frozenset[Keys]]  # Feedback, and the keys of what of it learns.


def by_path(tree: PyTree) -> tuple[dict[str, Any], dict[str, Keys]]:
  """The leaves of a tree by path, and the keys of each path."""
  rows = [(tuple(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))
                 for key in at), leaf) for at, leaf in jax.tree_util.tree_leaves_with_path(tree)]
  return {'/'.join(keys): leaf for keys, leaf in rows}, {'/'.join(keys): keys for keys, _ in rows}


def nested(store: Mapping[Keys, Any]) -> dict[str, Any]:
  """A store as nested dicts."""
  tree: dict[str, Any] = {}
  for (*parents, name), leaf in store.items():
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def flat(tree: Any, above: Keys = ()) -> Store:
  """Nested dicts as a store."""
  if not isinstance(tree, Mapping):
    return {above: tree}
  return {keys: leaf for name, inner in tree.items()
          for keys, leaf in flat(inner, (*above, str(name))).items()}


def redrawn(params: Mapping[str, Array], key: Key) -> dict[str, Array]:
  """Draws as large as the parameters are, for models that do not keep their initialisers."""
  keys = jax.random.split(key, max(1, len(params)))
  return {path: _redrawn(own, w) for own, (path, w) in zip(keys, sorted(params.items()))}


@jax.jit  # One program for each shape, and not one for each operation on it.
def _redrawn(key: Key, w: Array) -> Array:
  if not jnp.issubdtype(w.dtype, jnp.inexact):
    return w
  rms = jnp.sqrt(jnp.mean(jnp.square(w)))
  drawn = rms * jax.random.normal(key, w.shape, w.dtype)
  return jnp.where(jnp.max(w) == jnp.min(w), w, drawn)  # Constants are seen to by whoever asks.


def matches(pattern: str, path: str) -> bool:
  """Whether a layer's path, or a whole-name part of it, matches the pattern."""
  return any(fnmatch.fnmatchcase(path, form)
             for form in (pattern, f'*/{pattern}', f'{pattern}/*', f'*/{pattern}/*'))


def namesake(keys: Keys, at: Keys) -> UnsupportedLayerError:
  """What is said where feedback that learns has no place, since the model has something there."""
  return UnsupportedLayerError(
      f'feedback that learns is kept beside its weight, that of {"/".join(keys)!r} at '
      f'{"/".join(at)!r}, and the model has that attribute already. Rename it, or choose a '
      f'rule with frozen feedback for the weight: {{{"/".join(keys)!r}: \'fa\', \'*\': ...}}.')
