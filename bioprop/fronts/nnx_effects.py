"""What a call of an NNX model does beside its result: found in a copy, and written to the model."""
import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from bioprop.typing import PyTree

# Attributes of a plugged model: its Plug, its frozen feedback by path, its own random stream, and
# the keys of the weights whose feedback learns, each with those of that feedback.
PLUG, STORE, STREAM, LEARNED = (
    'bioprop_plug', 'bioprop_feedback', 'bioprop_stream', 'bioprop_learned')
Path = tuple[Any, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=['state'],
                   meta_fields=['graphdef', 'writes_parameters'])
@dataclasses.dataclass(frozen=True)
class Effects:
  """What a call has changed.

  Attributes:
    state: the variables that it changed; where it changed more than these, all there are.
    graphdef: what it left of the objects it was given, None if it changed variables alone.
    writes_parameters: it may have changed parameters, or have returned new ones.
  """
  state: nnx.State
  graphdef: nnx.GraphDef | None
  writes_parameters: bool

  def write(self, target: PyTree, out: PyTree) -> PyTree:
    """Writes it.

    Args:
      target: the objects of which the call was given copies.
      out: what it returned, as `referred` made it.

    Returns:
      What it would have returned of `target`.

    Raises:
      flax.errors.TraceContextError: as without a rule, if `target` is of another trace.
    """
    changed = nnx.to_flat_state(self.state)
    refers = any(isinstance(leaf, _At) for leaf in jax.tree.leaves(out))
    if not (changed or self.graphdef or refers):
      return out
    nodes = dict(nnx.iter_graph(target, graph=True))
    for path, leaf in changed:
      if isinstance(nodes.get(path), nnx.Variable):
        nodes[path].set_raw_value(leaf.get_raw_value())
    if self.graphdef is not None:
      for path, fresh in nnx.iter_graph(nnx.merge(self.graphdef, self.state), graph=True):
        if isinstance(fresh, nnx.Pytree) and path in nodes:
          _write_attributes(nodes[path], fresh)
    return jax.tree.map(lambda leaf: nodes[leaf.path] if isinstance(leaf, _At) else leaf, out,
                        is_leaf=is_node)


@dataclasses.dataclass(frozen=True)
class _At:
  """Stands for a module or a variable in what a call returned."""
  path: Path


def is_node(value: Any) -> bool:
  """Whether it is a module, a variable or another object of NNX."""
  return isinstance(value, nnx.Pytree | nnx.Variable)


def referred(out: PyTree, copies: PyTree) -> PyTree:
  """What a call returned, with its place in `copies` for each of their nodes."""
  if not any(map(is_node, jax.tree.leaves(out, is_leaf=is_node))):
    return out
  places = {id(node): _At(path) for path, node in nnx.iter_graph(copies, graph=True)
            if is_node(node)}
  return jax.tree.map(lambda leaf: places.get(id(leaf), leaf), out, is_leaf=is_node)


class Before:
  """Objects as they are before a call that is given them."""

  def __init__(self, copies: PyTree):
    self._copies = copies
    self._graphdef, state = nnx.split(copies, graph=True)
    self._arrays = {path: jax.tree.leaves(leaf) for path, leaf in nnx.to_flat_state(state)}

  def effects(self, out: PyTree) -> Effects:
    """What the call has done since then.

    Args:
      out: what it returned, as `referred` made it.
    """
    graphdef, state = nnx.split(self._copies, graph=True)
    changed = {path: leaf for path, leaf in nnx.to_flat_state(state)
               if not _same(jax.tree.leaves(leaf), self._arrays.get(path))}
    returned = jax.tree.leaves(out, is_leaf=is_node)
    writes = any(isinstance(leaf, nnx.Param) for leaf in (*changed.values(), *returned))
    if graphdef == self._graphdef and all(map(is_node, changed.values())):
      return Effects(nnx.from_flat_state(changed), None, writes)
    return Effects(state, graphdef, writes)


def _same(arrays: list[Any], before: list[Any] | None) -> bool:
  return before is not None and len(arrays) == len(before) and all(map(_is, arrays, before))


def _is(a: Any, b: Any) -> bool:
  return a is b


def _write_attributes(node: nnx.Pytree, fresh: nnx.Pytree) -> None:
  """Makes a node's attributes those of another; nodes and variables that it has stay its own."""
  own, new = dict(vars(node)), vars(fresh)
  for name in set(own) - set(new):
    if not (name in (PLUG, STORE, STREAM, LEARNED) or name.startswith('feedback_')):
      delattr(node, name)
  for name, value in new.items():
    if not (name.startswith('_pytree__') or name in own and _alike(own[name], value)):
      leaves = jax.tree.leaves(value, is_leaf=is_node)
      data = any(is_node(leaf) or isinstance(leaf, jax.Array) for leaf in leaves)
      setattr(node, name, nnx.data(value) if data else value)


def _alike(old: Any, new: Any) -> bool:
  """Whether two values are the same, but for what is inside of nodes."""
  (olds, one), (news, two) = (jax.tree.flatten(value, is_leaf=is_node) for value in (old, new))
  plain = lambda node: getattr(type(node), '_bioprop_plain', type(node))
  return one == two and all(
      plain(a) is type(b) if is_node(a) else a is b for a, b in zip(olds, news))
