"""Finds the nonlinearity that follows each op, by reading the model's jaxpr.

Ops mark their outputs with a name. In the jaxpr of the model, the nonlinearity after an op is the
largest elementwise function of that marked value alone (and of scalar constants) through which the
rest of the model reads it: tanh, relu, gelu and silu are found whether JAX shows them as one
primitive or as ten. Where something else reads the value first (normalisation, pooling, a sum with
another path) it is the identity.
"""
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.errors import ActivationError
from bioprop.plug import marks
from bioprop.rules.jaxprs import body_of
from bioprop.typing import Array

_ELEMENTWISE = frozenset('''
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or pow rem round
    rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh'''.split())

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
    return values[-1]

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


def activations(closed: core.ClosedJaxpr, wanted: Callable[[str], bool]) -> dict[str, Activation]:
  """The nonlinearity that follows each marked op.

  Args:
    closed: jaxpr of a model whose ops are marked.
    wanted: whether an op's nonlinearity is asked for, by label.

  Returns:
    A function for each label.

  Raises:
    ActivationError: if an op that is called several times is followed by different ones.
  """
  found: dict[str, Activation] = {}
  for frame in _frames(closed):
    for node in frame.nodes:
      path = marks.output_of(node.primitive, node.params)
      if path is None or not wanted(path):
        continue
      phi = frame.follow(node.outs[0])
      if path in found and found[path].name != phi.name:
        raise ActivationError(
            f'the layer {path!r} is called more than once, and followed by {found[path].name} one '
            f'time and by {phi.name} another, so its post-synaptic activity is not one function. '
            f'Say which one to use, in place of the rule: {{{path!r}: bioprop.make(\'hebb\', '
            f'activation=\'relu\'), \'*\': \'hebb\'}}.')
      found[path] = phi
  return found


@dataclasses.dataclass
class _Node:
  primitive: Any
  params: dict[str, Any]
  ins: list[Any]
  outs: list[Any]


class _Frame:
  """One jaxpr with all calls inlined; loop bodies are frames of their own."""

  def __init__(self):
    self.nodes: list[_Node] = []
    self.constants: dict[Any, Any] = {}
    self.outs: list[Any] = []
    self.bodies: list[core.ClosedJaxpr] = []

  def inline(self, jaxpr: core.Jaxpr, consts, arguments) -> list[Any]:
    """Appends the jaxpr's equations; returns its outputs as this frame's values."""
    names: dict[Any, Any] = dict(zip(jaxpr.invars, arguments))
    for var, const in zip(jaxpr.constvars, consts):
      names[var] = object()
      if np.ndim(const) == 0 and not isinstance(const, jax.core.Tracer):  # A tracer: a parameter.
        self.constants[names[var]] = const
    read = lambda atom: atom if isinstance(atom, core.Literal) else names[atom]
    for eqn in jaxpr.eqns:
      ins = [read(atom) for atom in eqn.invars]
      if eqn.primitive.name not in _LOOPS and (body := body_of(eqn)) is not None:
        outs = self.inline(body.jaxpr, body.consts, ins)
      else:
        if eqn.primitive.name in _LOOPS:
          self.bodies.extend(_closed(eqn.params))
        outs = [object() for _ in eqn.outvars]
        self._append(_Node(eqn.primitive, eqn.params, ins, outs))
      names.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in jaxpr.outvars]

  def _append(self, node: _Node) -> None:
    # A broadcast scalar, or jnp.sqrt(2.0), is a scalar constant to whoever multiplies by it.
    values = [self._constant(atom) for atom in node.ins]
    if all(value is not None for value in values):
      if node.primitive.name == 'broadcast_in_dim':
        self.constants[node.outs[0]] = values[0]
        return
      if node.primitive.name in _ELEMENTWISE and not marks.is_mark(node.primitive, node.params):
        with jax.ensure_compile_time_eval():
          self.constants[node.outs[0]] = np.asarray(node.primitive.bind(*values, **node.params))
        return
    self.nodes.append(node)

  def _constant(self, atom):
    if isinstance(atom, core.Literal):
      # A Python scalar literal is weakly typed: its dtype stands in its aval.
      return np.asarray(atom.val, atom.aval.dtype) if np.ndim(atom.val) == 0 else None
    return self.constants.get(atom)

  def follow(self, start) -> Activation:
    """The largest elementwise function of `start` alone through which all else reads it."""
    position, steps, used_outside = {start: 0}, [], set()
    for node in self.nodes:
      touches = [a for a in node.ins if not isinstance(a, core.Literal) and a in position]
      if not touches:
        continue
      operands = [position[a] if not isinstance(a, core.Literal) and a in position
                  else self._constant(a) for a in node.ins]
      if (node.primitive.name in _ELEMENTWISE and not marks.is_mark(node.primitive, node.params)
          and all(o is not None for o in operands)):
        steps.append((node.primitive, node.params, tuple(operands)))
        position[node.outs[0]] = len(steps)
      else:
        used_outside.update(touches)
    used_outside.update(
        a for a in self.outs if not isinstance(a, core.Literal) and a in position)
    ends = {position[a] for a in used_outside}
    return _prune(steps, _last_common(steps, ends))


def _last_common(steps, ends: set[int]) -> int:
  """The latest value that every path from the start to every end passes through."""
  for gate in range(len(steps), 0, -1):
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


def _frames(closed: core.ClosedJaxpr):
  """The jaxpr with its calls inlined, then every loop body inside it, likewise."""
  frame = _Frame()
  frame.outs = frame.inline(closed.jaxpr, closed.consts, [object() for _ in closed.jaxpr.invars])
  yield frame
  for body in frame.bodies:
    yield from _frames(body)


def _closed(params) -> list[core.ClosedJaxpr]:
  flat = []
  for value in params.values():
    flat.extend(v for v in (value if isinstance(value, tuple) else (value,))
                if isinstance(v, core.ClosedJaxpr))
  return flat
