"""Which ops lie on a cycle through time, and the entries by which a neuron meets itself.

In a scan, an op is *recurrent* if its input depends on a carry whose next value its output reaches,
perhaps by way of other carries, and if its weight is the same at every step (the layers of a stack
have weights of their own, and are no time).
"""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bioprop.jaxprs.layout import REMATS
from bioprop.network.reach import dependencies
from bioprop.network.values import Frame, Kind, Network, Node, SeenOp
from bioprop.typing import Array

Tokens = frozenset[Any]  # Carries by position, and ops as ('op', number).
# Which entries of an op's input are recurrent; an array that broadcasts to the input if only some.
Entries = bool | np.ndarray
_NOTHING: Tokens = frozenset()


def recurrent_ops(network: Network) -> dict[int, dict[int, Entries]]:
  """The recurrent ops of a network.

  Returns:
    By each op's number, the loops in which it is recurrent, and which entries of its input are.
  """
  found: dict[int, dict[int, Entries]] = {}
  _visit(network.frame, found)
  return found


def entries(loops: dict[int, Entries]) -> Entries:
  """The entries that are recurrent in one of the loops."""
  made: Entries = False
  for own in loops.values():
    made = own if made is False else True if made is True or own is True else made | own
  return made


@dataclasses.dataclass(frozen=True)
class Changing:
  """What changes what a loop carries.

  Attributes:
    ops: by number.
    parameters: those that do so elsewhere than in ops, by path.
    deep: those of the ops whose input, but for its recurrent entries, parameters change already.
  """
  ops: frozenset[int]
  parameters: frozenset[str]
  deep: frozenset[int]


def changing(network: Network, node: Node) -> Changing:
  """What changes what a loop of the outermost frame carries."""
  frame, flow = network.frame, _Flow()
  own = lambda seen: frozenset(seen.paths if seen.kind is Kind.PARAMETER else ())
  flow.frame(frame, [own(frame.seen[at]) for at in frame.inputs])
  reached = _NOTHING.union(*flow.loops[node.loop][:node.scan.carried])
  ops = frozenset(token[1] for token in reached if isinstance(token, tuple))
  recurrent = _cycles(node)[1]
  rest = lambda number: [tokens for at, (_, tokens) in enumerate(flow.reads[number].parts)
                         if not (number in recurrent and recurrent[number][at])]
  return Changing(ops, frozenset(token for token in reached if isinstance(token, str)),
                  frozenset(number for number in ops if any(rest(number))))


def keeping_own(op: SeenOp, recurrent: Entries) -> Callable[[Array], Array] | None:
  """`Op.own` of an op, given which entries of its input are recurrent."""
  own = own_entries(op, recurrent)
  return None if own is None else lambda w: jnp.where(own, w, jnp.zeros_like(w))


def own_entries(op: SeenOp, recurrent: Entries) -> np.ndarray | None:
  """The entries of a weight by which neurons meet themselves: W's diagonal, a kernel's centre.

  Where a weight holds several matrices side by side, as the gates of an LSTM, each has its own.

  Args:
    op: a recurrent op.
    recurrent: which entries of its input are.

  Returns:
    Booleans shaped like the weight; None if its outputs are no multiple of its recurrent inputs, or
    the product is none of which this can be said.
  """
  node = op.nodes[0]
  name, params, shape = node.name, node.eqn.params, op.w_aval.shape
  at = node.ins.index(op.weight)
  if name == 'dot_general':
    (contracted, batched) = (pair[at] for pair in params['dimension_numbers'])
    of_x = params['dimension_numbers'][0][1 - at]
    centre = np.ones(shape, bool)
  elif name == 'conv_general_dilated' and at == 1 and params['feature_group_count'] == 1 and (
      _keeps_places(params, shape)):
    numbers = params['dimension_numbers']
    contracted, batched, of_x = (numbers.rhs_spec[1],), numbers.rhs_spec[2:], numbers.lhs_spec[1:2]
    middle = np.zeros(shape, bool)
    middle[tuple(shape[axis] // 2 if axis in batched else slice(None)
                 for axis in range(len(shape)))] = True
    centre = middle
  else:
    return None
  free = [axis for axis in range(len(shape)) if axis not in (*contracted, *batched)]
  inputs, outputs = _numbered(shape, contracted), _numbered(shape, free)
  neuron = _neurons(op, of_x, recurrent)
  count = neuron.max() + 1
  if not count or (outputs.max() + 1) % count:
    return None
  return centre & (neuron[inputs] == outputs % count)


def _neurons(op: SeenOp, axes: Sequence[int], recurrent: Entries) -> np.ndarray:
  """Numbers the recurrent features of an op's input, -1 for the others."""
  features = tuple(op.x_aval.shape[axis] for axis in axes)
  if not isinstance(recurrent, np.ndarray):
    return np.arange(int(np.prod(features)))
  others = tuple(axis for axis in range(recurrent.ndim) if axis not in axes)
  mask = np.broadcast_to(np.transpose(recurrent, (*others, *axes)).reshape(
      -1, *(recurrent.shape[axis] for axis in axes))[0], features).reshape(-1)
  return np.where(mask, np.cumsum(mask) - 1, -1)


def _numbered(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
  """For every entry of an array, its position along some of the axes, taken together."""
  number = np.zeros((1,) * len(shape), int)
  for axis in axes:
    along = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    number = number * shape[axis] + along
  return np.broadcast_to(number, shape)


def _keeps_places(params, shape) -> bool:
  """Whether a convolution maps every location to itself, by the centre of its kernel."""
  sizes = [shape[axis] for axis in params['dimension_numbers'].rhs_spec[2:]]
  dilation = params['rhs_dilation']
  return all(size % 2 for size in sizes) and all(
      step == 1 for step in (*params['window_strides'], *params['lhs_dilation'])) and all(
          tuple(pad) == (by * (size // 2),) * 2
          for pad, size, by in zip(params['padding'], sizes, dilation))


def _visit(frame: Frame, found: dict[int, dict[int, Entries]]) -> None:
  for step in frame.steps:
    if isinstance(step, Node):
      for inner in step.frames:
        _visit(inner, found)
      if step.scan:
        reads, on = _cycles(step)
        for number, parts in on.items():
          found.setdefault(number, {})[step.loop] = all(parts) or _mask(reads[number], parts)


@dataclasses.dataclass
class _Reads:
  """What an op's input depends on: for each of its parts along an axis, a size and tokens."""
  op: SeenOp
  parts: list[tuple[int, Tokens]]
  axis: int


def _cycles(node: Node) -> tuple[dict[int, _Reads], dict[int, list[bool]]]:
  """What the ops in a scan read of its carries; and of those on cycles, which parts are."""
  scan, (body,) = node.scan, node.frames
  first, flow = scan.consts + scan.carried, _Flow()
  carries = [frozenset([at]) for at in range(scan.carried)]
  outs = flow.frame(body, [*[_NOTHING] * scan.consts, *carries,
                           *[_NOTHING] * (len(body.inputs) - first)])[:scan.carried]
  reached = _closure([{to for to, own in enumerate(outs) if at in own}
                      for at in range(scan.carried)])
  found = {}
  for number, read in flow.reads.items():
    written = {at for at, own in enumerate(outs) if ('op', number) in own}
    cycle = written.union(*(reached[at] for at in written))
    on = [not cycle.isdisjoint(own) for _, own in read.parts]
    if any(on) and node.loop not in read.op.loops:
      found[number] = on
  return flow.reads, found


def _mask(read: _Reads, on: Sequence[bool]) -> np.ndarray:
  flat = np.repeat(on, [size for size, _ in read.parts])
  rank = len(read.op.x_aval.shape)
  return flat.reshape([-1 if axis == read.axis else 1 for axis in range(rank)])


def _closure(edges: list[set[int]]) -> list[set[int]]:
  """What can be reached from each node."""
  while True:
    grown = [own.union(*(edges[at] for at in own)) for own in edges]
    if grown == edges:
      return edges
    edges = grown


class _Flow:
  """Follows tokens through a network, differentiably.

  Attributes:
    reads: what the inputs of ops depend on, by the op's number.
    loops: what the outputs of scans depend on, by the scan's number.
  """

  def __init__(self):
    self.reads: dict[int, _Reads] = {}
    self.loops: dict[int, list[Tokens]] = {}

  def frame(self, frame: Frame, inputs: Sequence[Tokens]) -> list[Tokens]:
    """What each output of a frame depends on, given what its inputs stand for."""
    known: list[Tokens] = [_NOTHING] * len(frame.seen)
    made: dict[int, Node] = {}
    for at, own in zip(frame.inputs, inputs):
      known[at] = own if frame.seen[at].live else _NOTHING
    for step in frame.steps:
      if isinstance(step, SeenOp):
        self._read(step, known, made, frame)
        known[step.out] = known[step.x] | {('op', step.number)}
        continue
      made.update((at, step) for at in step.outs)
      for at, own in zip(step.outs, self._through(step, [known[at] for at in step.ins])):
        known[at] = own if frame.seen[at].live else _NOTHING
    return [known[at] for at in frame.outs]

  def _read(self, op: SeenOp, known, made: dict[int, Node], frame: Frame) -> None:
    at = op.x
    while at in made and made[at].name in ('convert_element_type', 'copy', 'copy_p', 'name'):
      at = made[at].ins[0]
    parts, axis = [(1, known[op.x])], 0
    if at in made and made[at].name == 'concatenate':
      axis = made[at].eqn.params['dimension']
      parts = [(frame.avals[one].shape[axis], known[one]) for one in made[at].ins]
    if op.number in self.reads:  # Seen again with more known of a carry.
      before = self.reads[op.number].parts
      parts = [(size, own | old) for (size, own), (_, old) in zip(parts, before)]
    self.reads[op.number] = _Reads(op, parts, axis)

  def _through(self, node: Node, ins: list[Tokens]) -> list[Tokens]:
    """What the outputs of an equation depend on."""
    if not node.frames:
      return [_NOTHING.union(*(ins[at] for at in own)) for own in dependencies(node.eqn)]
    if node.name in REMATS:
      return self.frame(node.frames[0], ins)
    if node.scan is None:
      each = [self.frame(branch, ins[1:]) for branch in node.frames]
      return [_NOTHING.union(*outs) for outs in zip(*each)]
    carry = slice(node.scan.consts, node.scan.consts + node.scan.carried)
    while True:  # Until what the carry depends on stays the same.
      outs = self.frame(node.frames[0], ins)
      grown = [a | b for a, b in zip(ins[carry], outs)]
      if grown == ins[carry]:
        self.loops[node.loop] = outs
        return outs
      ins[carry] = grown
