"""One step of time of a network: as its rules credit it, and as what stays within its neurons."""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.network.layered import Layered
from bioprop.network.recurrence import Changing, keeping_own
from bioprop.network.values import Frame, Node, SeenOp
from bioprop.network.walk import Value, Walk, run_plain
from bioprop.rules.temporal import Spatial
from bioprop.typing import Array, PyTree

Carry = list[Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arguments:
  """What a step is given: as `Layered.run` takes it."""
  params: Mapping[str, Array]
  held: PyTree
  inputs: PyTree
  weights: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class OneStep:
  """A network seen on sequences of one step.

  Attributes:
    layered: the network.
    node: its loop over time.
    changing: what changes what the loop carries.
    live: which of the arrays that it carries take a cotangent.
  """
  layered: Layered
  node: Node
  changing: Changing
  live: tuple[bool, ...]

  @property
  def ops(self) -> list[SeenOp]:
    """The ops that change what is carried."""
    return [self.layered.traced.network.ops[number] for number in sorted(self.changing.ops)]

  def run(self, arguments: Arguments, carry: Carry | None) -> tuple[PyTree, 'Once']:
    """What the function returns from a carry, None for its own first; credited by its rules."""
    once = Once(carry)
    out, _ = self.layered.run(arguments.params, arguments.held, arguments.inputs,
                              weights=arguments.weights, direct={}, loops={self.node.loop: once})
    return out, once

  def parted(self, carry: Carry) -> tuple[Carry, Carry]:
    """What takes a cotangent, and the rest."""
    return ([a for a, live in zip(carry, self.live) if live],
            [a for a, live in zip(carry, self.live) if not live])

  def joined(self, live: Sequence[Array], rest: Sequence[Array]) -> Carry:
    """The inverse of `parted`."""
    sources = {True: iter(live), False: iter(rest)}
    return [next(sources[own]) for own in self.live]


class Once:
  """Runs the one step of a loop from a carry of the caller's.

  Attributes:
    start: what the loop would have started from.
    after: what it carries after the step.
  """

  def __init__(self, given: Carry | None):
    self._given = given
    self.start: Carry = []
    self.after: Carry = []

  def __call__(self, step, start, slices, length, options):
    """See `truncation.Loop`."""
    del length, options
    thread, carry = start
    self.start = [value[0] for value in carry]
    given = self.start if self._given is None else self._given
    (thread, after), outs = step((thread, [(a,) for a in given]),
                                 jax.tree.map(lambda a: a[0], slices))
    self.after = [value[0] for value in after]
    return (thread, after), jax.tree.map(lambda a: a[None], outs)


class Local:
  """A step as a function of what neurons hear, in which errors stay within a neuron."""

  def __init__(self, one: OneStep, arguments: Arguments, joined: Callable[[Carry], Carry]):
    self._one, self._arguments, self._joined = one, arguments, joined

  def taps(self, live: Carry) -> dict[int, Array]:
    """Zeros to be added to the outputs of ops, [n, outputs]."""
    n, dtype = live[0].shape[0], live[0].dtype
    return {op.number: jnp.zeros((n, op.y_aval.shape[-1]), dtype) for op in self._one.ops}

  def others(self) -> dict[str, Array]:
    """The parameters that meet data elementwise."""
    return {path: self._arguments.params[path]
            for path in sorted(self._one.changing.parameters)}

  def after(self, live: Carry, taps: Mapping[int, Array], others: Mapping[str, Array]) -> Carry:
    """What is carried after the step, of what takes a cotangent."""
    return self.after_with_inputs(live, taps, others)[0]

  def after_with_inputs(self, live, taps, others) -> tuple[Carry, dict[int, Array]]:
    """The same, and the inputs of the ops, [n, inputs]."""
    walk, once = self._walk({**self._arguments.params, **others}, self._joined(live), taps)
    carried = [a for a, own in zip(once.after, self._one.live) if own]
    return carried, {number: x.reshape(x.shape[0] if x.ndim == 2 else live[0].shape[0], -1)
                     for number, x in walk.inputs.items()}

  def effective(self, params) -> tuple[dict[int, Array], dict[int, Array]]:
    """The matrices [inputs, outputs] and biases of ops, which are made of parameters."""
    walk, _ = self._walk(params, None, None)
    return walk.matrices, walk.biases

  def _walk(self, params, carry: Carry | None, taps) -> tuple['_Follow', Once]:
    once, arguments = Once(carry), self._arguments
    walk = _Follow(self._one, once, taps)
    layered = self._one.layered
    leaves = [params[path] for path in layered.traced.paths]
    leaves += jax.tree.leaves((arguments.held, arguments.inputs))
    walk.evaluate(layered.traced.network.frame, [(leaf,) for leaf in leaves])
    return walk, once


class _Follow(Walk):
  """Runs ops as they are, forward; only what stays within a neuron has a derivative in time.

  Attributes:
    inputs, matrices, biases: of the ops that change what is carried, by number.
  """

  def __init__(self, one: OneStep, once: Once, taps: Mapping[int, Array] | None):
    self._one, self._once, self._taps = one, once, taps
    self.inputs: dict[int, Array] = {}
    self.matrices: dict[int, Array] = {}
    self.biases: dict[int, Array] = {}

  def inside(self, node: Node, slices: Any) -> Walk:
    return self

  def plain(self, node: Node, frame: Frame, ins: Sequence[Value]) -> list[Value]:
    return [(a,) for a in run_plain(node, ins)]

  def loop(self, node: Node, step, start, slices):
    if node.loop != self._one.node.loop:
      return super().loop(node, step, start, slices)
    return self._once(step, start, slices, node.scan.length, node.scan.options)

  def op(self, op: SeenOp, frame: Frame, known: list[Value]) -> Value:
    if op.number not in self._one.changing.ops:
      return super().op(op, frame, known)
    weight, x = known[op.weight][0], known[op.x][0]
    self.inputs[op.number] = x
    self.matrices[op.number] = weight if _contracted(op) == 0 else weight.T
    params = {op.name: weight}
    if op.bias is not None:
      params[op.bias_name] = self.biases[op.number] = known[op.bias][0]
    seen = op.op({at: known[at][0] for at in op.others})
    y = seen(params, jax.lax.stop_gradient(x))
    layered, rule = self._one.layered, self._one.layered.rules[op.number]
    if op.number in layered.recurrent and isinstance(rule, Spatial) and rule.meets_itself:
      through = rule.through_time(weight, keeping_own(op, layered.recurrent[op.number]))
      silent = {**params, op.name: through}
      y = y + seen(silent, x) - seen(silent, jax.lax.stop_gradient(x))
    if self._taps is not None:
      y = y + self._taps[op.number].reshape(y.shape).astype(y.dtype)
    return (y,)


def _contracted(op: SeenOp) -> int:
  """The axis of an op's matrix that meets its input."""
  node = op.nodes[0]
  return node.eqn.params['dimension_numbers'][0][node.ins.index(op.weight)][0]
