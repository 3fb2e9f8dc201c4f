"""Sees a network in a jaxpr: which values are parameters and which are data, and where they meet.

Nothing is computed: all that is needed stands in the jaxpr. An *op* is an equation in which exactly
one operand is made of parameters and the other depends on inputs, and which is a product of the
two: a matrix product, a convolution, or a lookup. What is made of parameters alone (a cast, a
transpose, a concatenation of kernels, a normalised weight) is a parameter still.
"""
import collections
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from bioprop.jaxprs.layout import (
  CALLS,
  REMATS,
  Body,
  bodies_of,
  body_of,
  branches_of,
  constant,
  scan_of,
)
from bioprop.network import axes
from bioprop.network.reach import dependencies
from bioprop.network.values import CONSTANT, Frame, Kind, Meeting, Network, Node, Seen, SeenOp

# Products by name: bilinear in their first two operands.
_PRODUCTS = ('dot_general', 'conv_general_dilated', 'ragged_dot', 'ragged_dot_general')
# What else is no elementwise meeting of its operands, and cannot be entered.
_OPAQUE = ('triangular_solve', 'linear_solve', 'custom_linear_solve', 'scaled_matmul')
# What may stand between a product and its bias; the first also where there is no bias.
_MOVES = ('transpose', 'convert_element_type', 'copy', 'copy_p', 'name')
_LAYOUT = (*_MOVES, 'reshape', 'squeeze', 'broadcast_in_dim', 'sharding_constraint')
_FACTORS = ('mul', 'div', 'neg')

# Whether a call is written out, from its equation and what is known of its inputs.
Inline = Callable[[core.JaxprEqn, Sequence[Seen]], bool]


def where_parameters_meet(eqn: core.JaxprEqn, seen: Sequence[Seen]) -> bool:
  """Calls are written out in which there may be an op."""
  del eqn
  return any(one.kind is Kind.PARAMETER for one in seen) and any(
      one.kind & Kind.INPUT for one in seen)


def see(closed: core.ClosedJaxpr, inputs: Sequence[Seen],
        inline: Inline = where_parameters_meet) -> Network:
  """Sees a network.

  Args:
    closed: its jaxpr.
    inputs: what is known of each of the jaxpr's inputs, as `parameter` and `data` say it.
    inline: which calls are written out.
  """
  builder = _Builder(inline)
  frame = builder.frame(Body(closed.jaxpr, closed.consts), inputs)
  return Network(frame, tuple(builder.state.ops), tuple(dict.fromkeys(_meetings(frame))))


def parameter(path: str) -> Seen:
  """A parameter."""
  return Seen(Kind.PARAMETER, (path,), live=True)


def data(avals: Sequence[Any]) -> list[Seen]:
  """Inputs. The first axis of the first is the samples', and of others that are as long."""
  shapes = [tuple(getattr(aval, 'shape', ())) for aval in avals]
  samples = next((shape[0] for shape in shapes if shape), None)
  live = lambda aval: jnp.issubdtype(getattr(aval, 'dtype', jnp.int32), jnp.inexact)
  return [Seen(Kind.INPUT, axis=0 if shape and shape[0] == samples else None, live=live(aval))
          for aval, shape in zip(avals, shapes)]


def union(kinds: Iterable[Kind]) -> Kind:
  """What a value depends on that is made of values of these kinds."""
  return functools.reduce(operator.or_, kinds, Kind.CONSTANT)


@dataclasses.dataclass
class _State:
  """What was found so far."""
  ops: list[SeenOp] = dataclasses.field(default_factory=list)
  uses: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def copy(self) -> '_State':
    return _State(list(self.ops), self.uses.copy())


class _Builder:
  """Builds frames; `state` collects what they hold."""

  def __init__(self, inline: Inline):
    self.state, self._inline = _State(), inline
    self._loops: tuple[tuple[int, int], ...] = ()  # (number, length) of the scans around.
    self._count, self._depth = 0, 0  # Scans seen, and frames around.

  def frame(self, body: Body, inputs: Sequence[Seen]) -> Frame:
    """The frame of a jaxpr, and all inside."""
    frame = Frame([], [], [], {}, [], [])
    first = len(self.state.ops)
    slots = [_slot(frame, var, seen) for var, seen in zip(body.jaxpr.invars, inputs)]
    frame.inputs = slots
    frame.outs = self._write(frame, body, slots)
    _group(frame, self.state.ops[first:])
    return frame

  def _write(self, frame: Frame, body: Body, arguments: Sequence[int]) -> list[int]:
    """Appends a jaxpr's steps to a frame; returns the slots of its outputs."""
    known = dict(zip(body.jaxpr.invars, arguments))
    for var, const in zip(body.jaxpr.constvars, body.consts):
      known[var] = _slot(frame, var, CONSTANT)
      frame.constants[known[var]] = const

    def read(atom):
      if not isinstance(atom, core.Literal):
        return known[atom]
      slot = _slot(frame, atom, CONSTANT)
      frame.constants[slot] = constant(atom)
      return slot

    for eqn in body.jaxpr.eqns:
      ins = [read(atom) for atom in eqn.invars]
      seen = [frame.seen[at] for at in ins]
      if eqn.primitive.name in CALLS and self._inline(eqn, seen):
        outs = self._write(frame, body_of(eqn), ins)
      else:
        outs = self._equation(frame, eqn, tuple(ins), seen)
      known.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in body.jaxpr.outvars]

  def _equation(self, frame: Frame, eqn, ins, seen: list[Seen]) -> Sequence[int]:
    name = eqn.primitive.name
    meets = where_parameters_meet(eqn, seen)
    bodies, scan, loop = (), None, -1
    if (at := _product(eqn, seen)) is not None:
      return self._op(frame, eqn, ins, seen, at)
    if name in REMATS and (meets or self._inline(eqn, seen)):
      bodies, outs = self._remat(eqn, seen)
    elif name == 'scan' and meets:
      scan, loop = scan_of(eqn), self._count
      self._count += 1
      bodies, outs = self._scan(scan, loop, seen)
    elif name == 'cond' and where_parameters_meet(eqn, seen[1:]):
      bodies, outs = self._branches(eqn, seen)
    else:
      outs = _plain(eqn, seen)
    slots = tuple(_slot(frame, var, out) for var, out in zip(eqn.outvars, outs))
    frame.steps.append(Node(eqn, ins, slots, bodies, scan, loop))
    return slots

  def _op(self, frame: Frame, eqn, ins, seen: list[Seen], at: int) -> tuple[int]:
    x_at, number = 1 - at, len(self.state.ops)
    axis, = axes.moved(eqn, [one.axis for one in seen])
    loops = tuple((loop, length) for loop, length in self._loops if loop in seen[at].loops)
    out = _slot(frame, eqn.outvars[0],
                Seen(Kind.DATA, axis=axis, ends=frozenset([number]), live=True))
    shape = lambda slot: jax.ShapeDtypeStruct(frame.avals[slot].shape, frame.avals[slot].dtype)
    op = SeenOp(
        number, seen[at].paths[0], ins[at], ins[x_at], [Node(eqn, ins, (out,))], seen[at],
        seen[x_at], frame.seen[out], shape(ins[at]), shape(ins[x_at]), shape(out),
        tuple(length for _, length in loops), tuple(loop for loop, _ in loops),
        self._depth == 0, self.state.uses[seen[at].paths[0]])
    self.state.uses[op.path] += 1
    self.state.ops.append(op)
    frame.steps.append(op)
    return (out,)

  def _remat(self, eqn, seen: list[Seen]):
    self._depth += 1
    frame = self.frame(body_of(eqn), seen)
    self._depth -= 1
    return (frame,), [frame.seen[at] for at in frame.outs]

  def _branches(self, eqn, seen: list[Seen]):
    self._depth += 1
    frames = tuple(self.frame(branch, seen[1:]) for branch in branches_of(eqn))
    self._depth -= 1
    joined = [functools.reduce(_join, outs, CONSTANT)
              for outs in zip(*([frame.seen[at] for at in frame.outs] for frame in frames))]
    return frames, [_join(out, Seen(seen[0].kind, ends=seen[0].ends)) for out in joined]

  def _scan(self, scan, loop: int, seen: list[Seen]):
    first = scan.consts + scan.carried
    sliced = [_slice(one, loop) for one in seen[first:]]
    carry = list(seen[scan.consts:first])
    kept, self._loops = self._loops, (*self._loops, (loop, scan.length))
    self._depth += 1
    start = self.state, self._count
    while True:  # Until what is known of the carry is what the body gives back.
      self.state, self._count = start[0].copy(), start[1]
      frame = self.frame(scan.body, [*seen[:scan.consts], *carry, *sliced])
      outs = [frame.seen[at] for at in frame.outs]
      joined = [_join(old, new) for old, new in zip(carry, outs)]
      if joined == carry:
        break
      carry = joined
    self._depth -= 1
    self._loops = kept
    return (frame,), [*carry, *(_stack(one, loop) for one in outs[scan.carried:])]


def _slot(frame: Frame, atom, seen: Seen) -> int:
  frame.seen.append(seen)
  frame.avals.append(atom.aval)
  return len(frame.seen) - 1


def _product(eqn, seen: Sequence[Seen]) -> int | None:
  """The position of an op's weight among the operands, None if the equation is no op."""
  name = eqn.primitive.name
  if name in _PRODUCTS:
    weights = [at for at in (0, 1) if seen[at].kind is Kind.PARAMETER]
    constants = all(not one.kind & Kind.PARAMETER for one in seen[2:])
    if len(weights) == 1 and seen[1 - weights[0]].kind & Kind.INPUT and constants:
      return weights[0]
  elif name == 'gather' and seen[0].kind is Kind.PARAMETER and seen[1].kind & Kind.INPUT:
    return 0
  return None


def _multiplies(body: Body) -> bool:
  """Whether a jaxpr holds a product, or something of which that cannot be said."""
  return any(eqn.primitive.name in (*_PRODUCTS, *_OPAQUE) or any(map(_multiplies, bodies_of(eqn)))
             for eqn in body.jaxpr.eqns)


def _plain(eqn, seen: Sequence[Seen]) -> list[Seen]:
  """What is known of the outputs of an equation that is not entered."""
  axis = axes.moved(eqn, [one.axis for one in seen])
  return [_made(eqn, [seen[at] for at in own], var, on)
          for own, var, on in zip(dependencies(eqn), eqn.outvars, axis)]


def _made(eqn, seen: Sequence[Seen], var, axis: int | None) -> Seen:
  kind = union(one.kind for one in seen)
  ends = frozenset().union(*(one.ends for one in seen))
  live = any(one.live for one in seen)
  if eqn.primitive.name == 'stop_gradient' or not _differentiable(var):
    ends, live = frozenset(), False
  if kind is not Kind.PARAMETER:
    return Seen(kind, axis=axis if kind & Kind.INPUT else None, ends=ends, live=live)
  paths = tuple(dict.fromkeys(path for one in seen for path in one.paths))
  return Seen(kind, paths, frozenset().union(*(one.loops for one in seen)), ends=ends,
              live=live)


def _differentiable(var) -> bool:
  return jnp.issubdtype(getattr(var.aval, 'dtype', jnp.int32), jnp.inexact)


def _join(a: Seen, b: Seen) -> Seen:
  """What is known of a value that is one of two."""
  kind = a.kind | b.kind
  ends, live = a.ends | b.ends, a.live or b.live
  if kind is Kind.PARAMETER:
    return Seen(kind, tuple(dict.fromkeys((*a.paths, *b.paths))), a.loops | b.loops, ends=ends,
                live=live)
  axis = a.axis if a.axis is not None else b.axis
  return Seen(kind, axis=axis if kind & Kind.INPUT else None, ends=ends, live=live)


def _meetings(frame: Frame) -> Iterator[Meeting]:
  """Where parameters meet data outside of ops."""
  for step in frame.steps:
    if isinstance(step, SeenOp):
      continue
    for inner in step.frames:
      yield from _meetings(inner)
    seen = [frame.seen[at] for at in step.ins]
    if not step.frames and where_parameters_meet(step.eqn, seen):
      hidden = step.name in _OPAQUE or any(map(_multiplies, bodies_of(step.eqn)))
      for path in dict.fromkeys(path for one in seen for path in one.paths):
        yield Meeting(path, step.name, not hidden, step.name != 'while')


def _slice(seen: Seen, loop: int) -> Seen:
  if seen.kind is Kind.PARAMETER:
    return dataclasses.replace(seen, loops=seen.loops | {loop})
  return dataclasses.replace(seen, axis=None if seen.axis in (None, 0) else seen.axis - 1)


def _stack(seen: Seen, loop: int) -> Seen:
  return dataclasses.replace(seen, loops=seen.loops - {loop},
                             axis=None if seen.axis is None else seen.axis + 1)


def _group(frame: Frame, ops: Sequence[SeenOp]) -> None:
  """Gives ops the biases that are added to their outputs before anything else reads these."""
  readers = collections.defaultdict(list)
  for step in frame.steps:
    for at in (step.ins if isinstance(step, Node) else step.nodes[0].ins):
      readers[at].append(step)
  for at in frame.outs:
    readers[at].append(None)
  own = {id(op) for op in ops}
  taken: dict[int, SeenOp] = {}  # The last of an op's equations, by identity.
  inside: set[int] = set()
  for step in frame.steps:
    if isinstance(step, SeenOp) and id(step) in own:
      for node in _chain(frame, step, readers):
        step.nodes.append(node)
      inside.update(id(node) for node in step.nodes[1:])
      if len(step.nodes) > 1:
        taken[id(step.nodes[-1])] = step
        inside.add(id(step))
      step.seen_y = frame.seen[step.out]
      aval = frame.avals[step.out]
      step.y_aval = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
  # An op runs where its last equation stood: its bias may be made after the product.
  frame.steps = [taken.get(id(step), step) for step in frame.steps
                 if id(step) not in inside or id(step) in taken]


def _chain(frame: Frame, op: SeenOp, readers) -> list[Node]:
  """The equations after an op's product that belong to it."""
  chain: list[Node] = []
  at, moves = op.nodes[0].outs[0], 0
  while len(readers[at]) == 1 and isinstance(node := readers[at][0], Node) and not node.frames:
    others = [one for one in node.ins if one != at]
    kinds = [frame.seen[one].kind for one in others]
    if node.name in ('add', 'add_any') and kinds == [Kind.PARAMETER]:
      op.bias, op.seen_bias = others[0], frame.seen[others[0]]
      return [*chain, node]
    layout = node.name in _LAYOUT and not others
    factor = node.name in _FACTORS and all(kind is Kind.CONSTANT for kind in kinds) and (
        len(node.ins) < 2 or node.ins.count(at) == 1)
    if not layout and not factor or node.name == 'div' and node.ins[0] != at:
      break
    chain.append(node)
    if node.name in _MOVES and moves == len(chain) - 1:
      moves += 1
    at = node.outs[0]
  return chain[:moves]
