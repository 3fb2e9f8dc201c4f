"""Walks a network, step by step; what a value is, and what happens at a step, is the walker's.

Every value is a tuple of arrays, as many as the walker needs of a value of that kind.
"""
import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bioprop.jaxprs.layout import REMATS, bind, remat_options
from bioprop.network.values import Frame, Node, Seen, SeenOp
from bioprop.typing import Array, PyTree

Value = tuple[Array, ...]


class Walk(abc.ABC):
  """One walk through one frame.

  Attributes:
    thread: arrays that one step hands to the next, through loops, remats and branches.
  """
  thread: PyTree = None

  @abc.abstractmethod
  def inside(self, node: Node, slices: PyTree) -> 'Walk':
    """A walker of a body of `node`, given one step's slices of `slices_of`."""

  @abc.abstractmethod
  def plain(self, node: Node, frame: Frame, ins: Sequence[Value]) -> list[Value]:
    """Runs an equation that is not entered."""

  def op(self, op: SeenOp, frame: Frame, known: list[Value]) -> Value:
    """Runs an op; by default as the equations that it is made of."""
    for node in op.nodes:
      for at, out in zip(node.outs, self.plain(node, frame, [known[at] for at in node.ins])):
        known[at] = out
    return known[op.out]

  def raised(self, value: Value, seen: Seen, wanted: Seen) -> Value:
    """The value as one of which less is known, where loops and branches join."""
    del seen, wanted
    return value

  def slices_of(self, node: Node) -> PyTree:
    """Arrays of which each step of a scan gets its own slice, beside the network's."""
    del node

  def loop(self, node: Node, step: Callable[..., Any], start: PyTree, slices: PyTree) -> Any:
    """Runs a scan; arguments and result are those of `jax.lax.scan`."""
    return jax.lax.scan(step, start, slices, node.scan.length, **node.scan.options)

  def evaluate(self, frame: Frame, arguments: Sequence[Value]) -> list[Value]:
    """Runs a frame on values of its inputs; returns those of its outputs."""
    known: list[Any] = [None] * len(frame.seen)
    for at, value in frame.constants.items():
      known[at] = (value,)
    for at, value in zip(frame.inputs, arguments):
      known[at] = value
    for step in frame.steps:
      if isinstance(step, SeenOp):
        known[step.out] = self.op(step, frame, known)
      else:
        for at, out in zip(step.outs, self._node(step, frame, [known[at] for at in step.ins])):
          known[at] = out
    return [known[at] for at in frame.outs]

  def _node(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    if not node.frames:
      return self.plain(node, frame, ins)
    if node.name in REMATS:
      return self._remat(node, ins)
    return self._scan(node, frame, ins) if node.scan else self._branch(node, frame, ins)

  def body(self, node: Node, frame: Frame, thread: PyTree, slices: PyTree,
           arguments: Sequence[Value]) -> tuple[PyTree, list[Value]]:
    """Runs one body of a node; returns the thread and the outputs."""
    walker = self.inside(node, slices)
    walker.thread = thread
    outs = walker.evaluate(frame, arguments)
    return walker.thread, outs

  def _remat(self, node: Node, ins: list[Value]) -> list[Value]:
    run = lambda thread, ins: self.body(node, node.frames[0], thread, None, ins)
    self.thread, outs = jax.checkpoint(run, **remat_options(node.eqn))(self.thread, ins)
    return outs

  def _branch(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    wanted = [frame.seen[at] for at in node.outs]

    def branch(inner: Frame):
      def run(thread, operands):
        thread, outs = self.body(node, inner, thread, None, operands)
        return thread, self._raised(outs, [inner.seen[at] for at in inner.outs], wanted)
      return run

    index, *operands = ins
    self.thread, outs = jax.lax.switch(
        index[0], [branch(inner) for inner in node.frames], self.thread, operands)
    return outs

  def _scan(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    scan, (inner,) = node.scan, node.frames
    carried = slice(scan.consts, scan.consts + scan.carried)
    wanted = [inner.seen[at] for at in inner.inputs][carried]
    given = [inner.seen[at] for at in inner.outs][:scan.carried]
    start = self._raised(ins[carried], [frame.seen[at] for at in node.ins[carried]], wanted)

    def step(state, slices):
      (thread, carry), (sliced, own) = state, slices
      thread, outs = self.body(node, inner, thread, own, [*ins[:scan.consts], *carry, *sliced])
      carry = self._raised(outs[:scan.carried], given, wanted)
      return (thread, carry), outs[scan.carried:]

    (self.thread, last), stacked = self.loop(
        node, step, (self.thread, start), (ins[carried.stop:], self.slices_of(node)))
    return [*last, *stacked]

  def _raised(self, values, seen, wanted) -> list[Value]:
    return [self.raised(*row) for row in zip(values, seen, wanted)]


def run_plain(node: Node, ins: Sequence[Value], which: int = 0) -> list[Array]:
  """An equation on one of the arrays of each value: that one, or the only one."""
  return bind(node.eqn, [value[min(which, len(value) - 1)] for value in ins])
