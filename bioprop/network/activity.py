"""Finds the nonlinearity that follows each op.

It is the largest elementwise function of the op's output alone (and of scalar constants) through
which the rest of the model reads it: tanh, relu, gelu and silu are found whether JAX shows them as
one primitive or as ten, and behind a reshape or a transpose. Where something else reads the value
first (normalisation, pooling, a sum with another path) it is the identity.
"""
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.jaxprs.layout import REMATS, Body, body_of, constant
from bioprop.network.values import Frame, Network, SeenOp
from bioprop.typing import Array

_ELEMENTWISE = frozenset('''
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or pow rem round
    rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh'''.split())

# What only puts entries in other places, where it keeps them all.
_MOVES = frozenset('broadcast_in_dim reshape sharding_constraint squeeze transpose'.split())

_LOOPS = ('scan', 'while', 'cond')


@dataclasses.dataclass(frozen=True)
class Activation:
  """An elementwise function, as the primitives that compute it.

  Attributes:
    steps: (primitive, its parameters, operands) in order; an operand is a scalar constant or the
      position of an earlier value, 0 being the function's argument.
  """
  steps: tuple[tuple[Any, dict[str, Any], tuple[Any, ...]], ...]

  def __call__(self, y: Array) -> Array:
    values = [y]
    for primitive, params, operands in self.steps:
      arguments = [values[o] if isinstance(o, int) else jnp.broadcast_to(o, y.shape)
                   for o in operands]
      values.append(primitive.bind(*arguments, **params))
    return values[-1].astype(y.dtype)  # The model may go on in another precision.

  @property
  def name(self) -> str:
    """The primitives by name, 'identity' if there are none; equal functions have equal names."""
    return '>'.join(map(_step_name, self.steps)) or 'identity'


def _step_name(step) -> str:
  primitive, params, operands = step
  options = [str(params[key]) for key in ('y', 'new_dtype', 'rounding_method') if key in params]
  constants = ['.' if isinstance(o, int) else str(o) for o in operands]
  shown = [*(constants if len(constants) > 1 else []), *options]
  return f'{primitive.name}({",".join(shown)})' if shown else primitive.name


def activations(network: Network, wanted: Callable[[SeenOp], bool]) -> dict[int, Activation]:
  """The nonlinearity that follows each op, by its number.

  Args:
    network: the network.
    wanted: whether an op's nonlinearity is asked for.
  """
  return {op.number: place.follow(out) for place in _places(network.frame)
          for op, out in place.ops if wanted(op)}


@dataclasses.dataclass
class _Node:
  primitive: Any
  params: dict[str, Any]
  ins: list[Any]
  outs: list[Any]
  moves: bool = False
  real: bool = True  # Whether its output is a real number.


class _Place:
  """One frame with all calls and remats written out; bodies of loops are places of their own."""

  def __init__(self):
    self.nodes: list[_Node] = []
    self.constants: dict[Any, Any] = {}
    self.outs: list[Any] = []
    self.ops: list[tuple[SeenOp, Any]] = []
    self.bodies: list[Frame] = []

  def write(self, frame: Frame, arguments: Sequence[Any]) -> list[Any]:
    """Appends a frame's steps; returns its outputs as this place's values."""
    known: dict[int, Any] = dict(zip(frame.inputs, arguments))
    for at, value in frame.constants.items():
      known[at] = self._named(value, frame.avals[at])
    for step in frame.steps:
      if isinstance(step, SeenOp):
        ins = [known[step.weight], known[step.x], *(known[at] for at in step.others)]
        outs = [object()]
        self.nodes.append(_Node(None, {}, ins, outs))
        self.ops.append((step, outs[0]))
      else:
        ins = [known[at] for at in step.ins]
        if step.frames and step.name in REMATS:
          outs = self.write(step.frames[0], ins)
        elif step.frames:
          self.bodies.extend(step.frames)
          outs = self._append(step.eqn, ins)
        else:
          outs = self._equation(step.eqn, ins)
      known.update(zip(step.outs, outs))
    return [known[at] for at in frame.outs]

  def _body(self, body: Body, arguments: Sequence[Any]) -> list[Any]:
    known = dict(zip(body.jaxpr.invars, arguments))
    for var, value in zip(body.jaxpr.constvars, body.consts):
      known[var] = self._named(value, var.aval)
    read = lambda atom: (self._named(constant(atom), atom.aval)
                         if isinstance(atom, core.Literal) else known[atom])
    for eqn in body.jaxpr.eqns:
      known.update(zip(eqn.outvars, self._equation(eqn, [read(atom) for atom in eqn.invars])))
    return [read(atom) for atom in body.jaxpr.outvars]

  def _equation(self, eqn, ins: list[Any]) -> list[Any]:
    body = None if eqn.primitive.name in _LOOPS else body_of(eqn)
    return self._append(eqn, ins) if body is None else self._body(body, ins)

  def _named(self, value: Any, aval: Any) -> Any:
    """A value of this place for a constant; scalars are remembered."""
    name = object()
    known = np.ndim(value) == 0 and not isinstance(value, jax.core.Tracer)
    if known and not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
      # A Python scalar literal is weakly typed: its dtype stands in its aval.
      self.constants[name] = np.asarray(value, aval.dtype)
    return name

  def _append(self, eqn, ins: list[Any]) -> list[Any]:
    outs = [object() for _ in eqn.outvars]
    # A broadcast scalar, or jnp.sqrt(2.0), is a scalar constant to whoever multiplies by it.
    values = [self.constants.get(name) for name in ins]
    if values and all(value is not None for value in values):
      if eqn.primitive.name == 'broadcast_in_dim':
        self.constants[outs[0]] = values[0]
        return outs
      if eqn.primitive.name in _ELEMENTWISE:
        with jax.ensure_compile_time_eval():
          self.constants[outs[0]] = np.asarray(eqn.primitive.bind(*values, **eqn.params))
        return outs
    moves = eqn.primitive.name in _MOVES and eqn.invars[0].aval.size == eqn.outvars[0].aval.size
    real = bool(outs) and jnp.issubdtype(getattr(eqn.outvars[0].aval, 'dtype', jnp.int32),
                                         jnp.floating)
    self.nodes.append(_Node(eqn.primitive, eqn.params, ins, outs, moves, real))
    return outs

  def follow(self, start: Any) -> Activation:
    """The largest elementwise function of `start` alone through which all else reads it."""
    position, steps, used_outside, real = {start: 0}, [], set(), [True]
    layout: dict[Any, tuple[Any, ...]] = {start: ()}  # How the entries of each value were moved.
    for node in self.nodes:
      touches = [name for name in node.ins if name in position]
      if not touches:
        continue
      operands = [position[name] if name in position else self.constants.get(name)
                  for name in node.ins]
      alike = len({layout[name] for name in touches}) == 1
      if node.moves:
        position[node.outs[0]] = position[touches[0]]
        layout[node.outs[0]] = (*layout[touches[0]], (node.primitive, str(node.params)))
      elif node.primitive is not None and node.primitive.name in _ELEMENTWISE and alike and all(
          operand is not None for operand in operands):
        steps.append((node.primitive, node.params, tuple(operands)))
        real.append(node.real)
        position[node.outs[0]], layout[node.outs[0]] = len(steps), layout[touches[0]]
      else:
        used_outside.update(touches)
    used_outside.update(name for name in self.outs if name in position)
    return _prune(steps, _last_common(steps, {position[name] for name in used_outside}, real))


def _last_common(steps, ends: set[int], real: Sequence[bool]) -> int:
  """The latest real value that every path from the start to every end passes through."""
  for gate in range(len(steps), 0, -1):
    if not real[gate]:
      continue
    reached = {0}
    for position, (_, _, operands) in enumerate(steps, start=1):
      if position != gate and any(o in reached for o in operands if isinstance(o, int)):
        reached.add(position)
    if not ends & reached:
      return gate
  return 0


def _prune(steps, end: int) -> Activation:
  """Keeps what the value at position `end` depends on, renumbered."""
  needed, stack = set(), [end]
  while stack:
    position = stack.pop()
    if position and position not in needed:
      needed.add(position)
      stack.extend(o for o in steps[position - 1][2] if isinstance(o, int))
  renumbered = {old: new for new, old in enumerate([0, *sorted(needed)])}
  return Activation(tuple(
      (primitive, params, tuple(renumbered[o] if isinstance(o, int) else o for o in operands))
      for primitive, params, operands in (steps[old - 1] for old in sorted(needed))))


def _places(frame: Frame) -> Iterator[_Place]:
  """A frame, then every body of a loop or branch inside it."""
  place = _Place()
  place.outs = place.write(frame, [object() for _ in frame.inputs])
  yield place
  for body in place.bodies:
    yield from _places(body)
