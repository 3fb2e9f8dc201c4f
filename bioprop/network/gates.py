"""Finds the ReLUs of a network, and runs it with something else in their place, for gln.

In a jaxpr a ReLU is max(h, 0), as jnp.maximum(h, 0) writes it; or a function with a derivative of
its own that is nothing but max(h, 0), as jax.nn.relu, nn.relu and nnx.relu are.

Not every max(h, 0) is a nonlinearity. These stay what they are:

  - in functions with a derivative of their own that are more than max(h, 0): relu6, softplus;
  - in celu and jnp.clip;
  - where the result goes into min, sqrt, rsqrt or log: a clamp;
  - of E[x^2] - E[x]^2: the variance in Flax's BatchNorm, LayerNorm and GroupNorm;
  - of integers.

A leaky ReLU, and jnp.where(h > 0, h, 0), are no max(h, 0) at all.
"""
import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.errors import UnsupportedLayerError
from bioprop.jaxprs.layout import CALLS, REMATS, Body, bodies_of, body_of, constant
from bioprop.network.values import Frame, Kind, Node, Seen, SeenOp
from bioprop.network.walk import Value, Walk, run_plain
from bioprop.typing import Array, PyTree

# Maps (number of the ReLU in the network, its argument h) to an array like h.
Replacement = Callable[[int, Array], Array]

_OWN_DERIVATIVE = ('custom_jvp_call', 'custom_vjp_call')
_OTHER_FUNCTIONS = ('celu', 'clip')
_CLAMPED_FOR = {'min', 'sqrt', 'rsqrt', 'log'}


class Gates(Walk):
  """Runs a network; `replacement` is called in place of every ReLU of what its inputs reach.

  Attributes:
    count: how many ReLUs it has met.
  """

  def __init__(self, replacement: Replacement):
    """ReLUs are numbered from 0, in the order in which the network runs."""
    self._replacement, self.count = replacement, 0
    self._relus: dict[int, int] = {}

  def inside(self, node: Node, slices: PyTree) -> Walk:
    inner = Gates(self._replacement)
    inner.count = self.count
    return inner

  def body(self, node, frame, thread, slices, arguments):
    if node.name not in REMATS and holds_relu(node.eqn):
      raise _inside(node.name)
    walker = self.inside(node, slices)
    outs = walker.evaluate(frame, arguments)
    self.count = walker.count
    return thread, outs

  def evaluate(self, frame: Frame, arguments: Sequence[Value]) -> list[Value]:
    self._relus = _in_frame(frame)
    return super().evaluate(frame, arguments)

  def plain(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    if not any(frame.seen[at].kind & Kind.INPUT for at in node.ins):
      return [(a,) for a in run_plain(node, ins)]
    if node.outs[0] in self._relus:
      self.count += 1
      h = ins[self._relus[node.outs[0]]][0]
      return [(self._replacement(self.count - 1, h),)]
    if holds_relu(node.eqn):
      raise _inside(node.name)
    return [(a,) for a in run_plain(node, ins)]


def written_out(eqn: core.JaxprEqn, seen: Sequence[Seen]) -> bool:
  """Calls and remats are written out that hold a ReLU of what inputs reach."""
  return any(one.kind & Kind.INPUT for one in seen) and holds_relu(eqn)


def holds_relu(eqn: core.JaxprEqn, bare: bool = True) -> bool:
  """Whether an equation calls a ReLU; `bare`: max(h, 0) by itself is one."""
  if eqn.params.get('name') in _OTHER_FUNCTIONS:
    return False
  bare = bare and eqn.primitive.name not in _OWN_DERIVATIVE
  for body in bodies_of(eqn):
    relus = relus_in(body)
    if any(holds_relu(inner, bare) or (at in relus and (bare or inner.primitive.name != 'max'))
           for at, inner in enumerate(body.jaxpr.eqns)):
      return True
  return False


def _inside(name: str) -> UnsupportedLayerError:
  return UnsupportedLayerError(
      f'gln replaces every ReLU by gates that belong to its place in the network, and this model '
      f'has a ReLU inside a {name!r}: the body of a loop is one place that stands for many layers '
      f'or times, and a branch or a function with a derivative of its own cannot be rewritten. '
      f'Write a loop over layers out, as in `for layer in layers: x = nn.relu(layer(x))`, or '
      f'choose a rule that leaves the nonlinearity alone, such as \'fa\'.')


def _in_frame(frame: Frame) -> dict[int, int]:
  """The ReLUs of a frame: the slot of each one's output to the position of h among its inputs."""
  nodes = [node for step in frame.steps
           for node in (step.nodes if isinstance(step, SeenOp) else [step])]
  rows = [(node.eqn, node.ins, node.outs) for node in nodes]
  found = _relus(rows, frame.constants)
  return {nodes[at].outs[0]: h for at, h in found.items()}


def relus_in(body: Body) -> dict[int, int]:
  """The ReLUs of a jaxpr: the position of each equation to that of h among its inputs."""
  constants = dict(zip(body.jaxpr.constvars, body.consts))
  rows = []
  for eqn in body.jaxpr.eqns:
    ins = []
    for atom in eqn.invars:
      literal = isinstance(atom, core.Literal)
      ins.append(id(atom) if literal else atom)
      if literal:
        constants[id(atom)] = constant(atom)
    rows.append((eqn, ins, eqn.outvars))
  return _relus(rows, constants)


def _relus(rows: Sequence[tuple[core.JaxprEqn, Sequence[Any], Sequence[Any]]],
           constants: dict[Any, Any]) -> dict[int, int]:
  """The ReLUs among equations (eqn, names of its inputs, of its outputs)."""
  found, makers, uses = {}, {}, collections.defaultdict(set)
  for eqn, ins, outs in rows:
    makers.update((name, (eqn, ins)) for name in outs)
    for name in ins:
      uses[name].add(eqn.primitive.name)
  for at, (eqn, ins, outs) in enumerate(rows):
    if eqn.primitive.name in _OWN_DERIVATIVE:
      if _is_relu(body_of(eqn)):
        found[at] = 0
    elif eqn.primitive.name == 'max' and not uses[outs[0]] & _CLAMPED_FOR:
      zero = [_is_zero(name, makers, constants) for name in ins]
      h = zero.index(False) if False in zero else 0
      if any(zero) and jnp.issubdtype(eqn.invars[h].aval.dtype, jnp.floating) and (
          not _is_variance(ins[h], makers)):
        found[at] = h
  return found


def _is_relu(body: Body | None) -> bool:
  """Whether a function of h alone is max(h, 0) and nothing else."""
  if body is None or len(body.jaxpr.eqns) != 1 or len(body.jaxpr.invars) != 1:
    return False
  eqn = body.jaxpr.eqns[0]
  if eqn.primitive.name in CALLS:
    return _is_relu(body_of(eqn))
  return eqn.primitive.name == 'max' and 0 in relus_in(body)


def _is_zero(name, makers, constants) -> bool:
  if name in constants:
    value = constants[name]
    return not isinstance(value, jax.core.Tracer) and bool(np.all(np.asarray(value) == 0))
  eqn, ins = makers.get(name, (None, ()))
  return eqn is not None and eqn.primitive.name in (
      'broadcast_in_dim', 'convert_element_type') and _is_zero(ins[0], makers, constants)


def _is_variance(name, makers) -> bool:
  """Whether a value was made as a - b^2."""
  eqn, ins = makers.get(name, (None, ()))
  if eqn is None or eqn.primitive.name != 'sub':
    return False
  maker, own = makers.get(ins[1], (None, ()))
  return maker is not None and (
      maker.primitive.name == 'square'
      or maker.primitive.name == 'integer_pow' and maker.params['y'] == 2
      or maker.primitive.name == 'mul' and own[0] == own[1])
