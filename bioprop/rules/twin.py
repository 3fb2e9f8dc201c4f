"""Evaluates a network and its frozen twin side by side, equation by equation.

The *current* network computes with the parameters as they are; its *twin* with the initial ones.
The values are the current network's. The gradients are those of align_ada: errors travel down the
twin, through its weights and its local derivatives, and wherever parameters meet activities they
receive that error times the current activities.

Each value of the network is of one of four kinds. What depends on no parameter is the same in both
networks: CONSTANT, or INPUT if it depends on the inputs. What is made of parameters alone (a cast,
a normalised kernel) is PARAMETER: its current value is differentiated as it is. The rest is DATA:
only the twin's value takes a cotangent. An equation in which a PARAMETER meets INPUT or DATA is
where credit is assigned,

  current y = F(p, a) ,   twin y0 = F(p0, a0) ,   and the cotangent of y0 goes to F(., a) at p too,

which costs no product more: F(p, a) is the current network's own.
"""
import dataclasses
import enum
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend import core

from bioprop.errors import UnsupportedLayerError
from bioprop.rules.jaxprs import JITS, REMATS, bind, body_of
from bioprop.rules.network import relay, stop
from bioprop.typing import Array


class Kind(enum.Flag):
  """What a value depends on, beside constants."""
  CONSTANT = 0
  INPUT = enum.auto()
  PARAMETER = enum.auto()
  DATA = INPUT | PARAMETER


@dataclasses.dataclass(frozen=True)
class Value:
  """One value of the network, and of its twin."""
  kind: Kind
  now: Array
  twin: Array

  @classmethod
  def same(cls, kind: Kind, array: Array) -> 'Value':
    """A value that is the same in both networks."""
    return cls(kind, array, array)


def parameter(now: Array, twin: Array) -> Value:
  """A parameter: as it is, and as it was at the start."""
  return Value(Kind.PARAMETER, now, stop(twin))


def evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Value],
             same_time: bool = True, muted: Sequence[bool] = ()) -> list[Value]:
  """Evaluates a jaxpr on values of both networks.

  Args:
    jaxpr, consts: the network.
    arguments: of the jaxpr.
    same_time: False: in a scan, the equations that make what it carries on are given no credit for
      what the same step puts out, only for what comes later.
    muted: outputs of the jaxpr; equations that make these are given no credit at all.

  Raises:
    UnsupportedLayerError: if parameters are used inside a branch that the activities choose, or
      inside a function with a derivative of its own.
  """
  known = dict(zip(jaxpr.invars, arguments))
  known.update((var, Value.same(Kind.CONSTANT, const))
               for var, const in zip(jaxpr.constvars, consts))
  read = lambda atom: (Value.same(Kind.CONSTANT, atom.val) if isinstance(atom, core.Literal)
                       else known[atom])
  quiet = _makers(jaxpr, muted)
  for eqn in jaxpr.eqns:
    ins = [read(atom) for atom in eqn.invars]
    with eqn.ctx.manager:
      outs = _equation(eqn, ins, same_time, [var in quiet for var in eqn.outvars])
    known.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in jaxpr.outvars]


def as_data(value: Value) -> Value:
  """The value as an activity: a parameter's cotangent is then that of the twin's activity."""
  if value.kind is Kind.DATA:
    return value
  twin = relay(value.twin, value.now) if value.kind is Kind.PARAMETER else value.twin
  return Value(Kind.DATA, stop(value.now), twin)


def _makers(jaxpr: core.Jaxpr, muted: Sequence[bool]) -> set[core.Var]:
  """The variables from which muted outputs are made, and these themselves."""
  variables = lambda atoms: {atom for atom in atoms if isinstance(atom, core.Var)}
  found = variables(out for out, flag in zip(jaxpr.outvars, muted) if flag)
  for eqn in reversed(jaxpr.eqns):
    if found.intersection(eqn.outvars):
      found |= variables(eqn.invars)
  return found


def _equation(eqn: core.JaxprEqn, ins: list[Value], same_time: bool,
              muted: Sequence[bool]) -> list[Value]:
  name = eqn.primitive.name
  if name in ('dot_general', 'conv_general_dilated') and all(
      value.kind is Kind.PARAMETER for value in ins):
    ins = [as_data(ins[0]), ins[1]]  # Of two parameters the left is an activity: learned queries.
  kind = _union(value.kind for value in ins)
  if not kind & Kind.PARAMETER:
    return [Value.same(kind, out) for out in bind(eqn, [value.now for value in ins])]
  body = body_of(eqn)
  if name in JITS:
    return evaluate(body.jaxpr, body.consts, ins, same_time, muted)
  if name in REMATS:
    return _remat(eqn, body, ins, same_time, muted)
  if any(muted) and kind & Kind.INPUT:
    ins = [dataclasses.replace(v, now=stop(v.now)) if v.kind is Kind.PARAMETER else v for v in ins]
  if name == 'scan':
    return _scan(eqn, ins, same_time)
  if name == 'cond' and not ins[0].kind & Kind.PARAMETER:
    return _switch(eqn, ins, same_time)
  if kind is Kind.PARAMETER:
    return [Value(kind, now, twin) for now, twin in zip(*_both(eqn, ins))]
  if not any(value.kind is Kind.PARAMETER for value in ins):
    current, twin = _both(eqn, ins)
    return [Value(kind, stop(a), b) for a, b in zip(current, twin)]
  if body is not None or name in ('while', 'cond', 'shard_map'):
    raise UnsupportedLayerError(
        f'align_ada runs a frozen twin beside the network, equation by equation, and the model '
        f'uses parameters together with activities inside a {name!r}, into which the twin cannot '
        f'follow. Move the parameters out of it (lax.scan, nn.scan, nn.remat and jit are followed)'
        f', or choose a rule of single layers, such as \'align_prop\'.')
  # Only parameters take a gradient here; what else the equation reads is held at its current value.
  held = [value.now if value.kind is Kind.PARAMETER else stop(value.now) for value in ins]
  current, twin = bind(eqn, held), bind(eqn, [value.twin for value in ins])
  return [Value(Kind.DATA, stop(a), _with(b, a)) for a, b in zip(current, twin)]


def _with(twin: Array, current: Array) -> Array:
  """The twin's value; its cotangent goes to the twin and to the current network's own equation."""
  return relay(twin, twin, current)


def _both(eqn: core.JaxprEqn, ins: Sequence[Value]) -> tuple[list[Array], list[Array]]:
  return bind(eqn, [value.now for value in ins]), bind(eqn, [value.twin for value in ins])


def _raise_to(value: Value, kind: Kind) -> Value:
  """The value as one of a kind that depends on more."""
  return as_data(value) if kind is Kind.DATA else dataclasses.replace(value, kind=kind)


def _flat(values: Sequence[Value]) -> list[tuple[Array, ...]]:
  """What of each value must be carried: one array, or the two networks' own."""
  return [(v.now, v.twin) if v.kind & Kind.PARAMETER else (v.now,) for v in values]


def _values(kinds: Sequence[Kind], arrays: Sequence[tuple[Array, ...]]) -> list[Value]:
  return [Value(kind, own[0], own[-1]) for kind, own in zip(kinds, arrays)]


class _Body:
  """A jaxpr as a function of `_flat` values, whose kinds are known."""

  def __init__(self, closed: core.ClosedJaxpr, kinds: Sequence[Kind], same_time: bool,
               raised: Callable[[list[Value]], list[Value]] = list, muted: Sequence[bool] = ()):
    self._closed, self._kinds, self._raised = closed, tuple(kinds), raised
    self._same_time, self._muted = same_time, muted
    self.kinds: tuple[Kind, ...] = ()  # The outputs', once it was traced.

  def __call__(self, arrays):
    values = _values(self._kinds, arrays)
    outs = self._raised(evaluate(
        self._closed.jaxpr, self._closed.consts, values, self._same_time, self._muted))
    self.kinds = tuple(value.kind for value in outs)
    return _flat(outs)


def _remat(eqn: core.JaxprEqn, closed: core.ClosedJaxpr, ins: list[Value],
           same_time: bool, muted: Sequence[bool]) -> list[Value]:
  body = _Body(closed, [value.kind for value in ins], same_time, muted=muted)
  outs = jax.checkpoint(body, prevent_cse=eqn.params['prevent_cse'],
                        policy=eqn.params['policy'])(_flat(ins))
  return _values(body.kinds, outs)


def _switch(eqn: core.JaxprEqn, ins: list[Value], same_time: bool) -> list[Value]:
  """A branch that constants or inputs choose: both networks take the same one."""
  index, *operands = ins
  kinds = [value.kind for value in operands]
  bodies = [_Body(branch, kinds, same_time) for branch in eqn.params['branches']]
  for body in bodies:
    jax.eval_shape(body, _flat(operands))
  joined = [_union(own) for own in zip(*(body.kinds for body in bodies))]
  raised = lambda values: [_raise_to(value, kind) for value, kind in zip(values, joined)]
  branches = [_Body(branch, kinds, same_time, raised) for branch in eqn.params['branches']]
  return _values(joined, jax.lax.switch(index.now, branches, _flat(operands)))


def _scan(eqn: core.JaxprEqn, ins: list[Value], same_time: bool) -> list[Value]:
  params = eqn.params
  consts, carried = params['num_consts'], params['num_carry']
  first = consts + carried
  closed, fixed = params['jaxpr'], _flat(ins[:consts])
  slices = [tuple(jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in own)
            for own in _flat(ins[first:])]
  carry = ins[consts:first]
  while True:  # Until the carry's kinds are those that the body gives back.
    kinds = [value.kind for value in (*ins[:consts], *carry, *ins[first:])]
    body = _Body(closed, kinds, same_time)
    jax.eval_shape(body, [*fixed, *_flat(carry), *slices])
    joined = [value.kind | out for value, out in zip(carry, body.kinds)]
    if joined == [value.kind for value in carry]:
      break
    carry = [_raise_to(value, kind) for value, kind in zip(carry, joined)]
  raised = lambda values: [_raise_to(value, kind) for value, kind in zip(values, joined)] + (
      values[carried:])
  body = _Body(closed, kinds, same_time, raised)
  put_out = body if same_time else _Body(
      closed, kinds, same_time, raised, [True] * carried + [False] * len(closed.jaxpr.outvars))

  def step(carry, slices):
    inputs = [*fixed, *carry, *slices]
    outs = body(inputs)
    return outs[:carried], (outs if put_out is body else put_out(inputs))[carried:]

  last, stacked = jax.lax.scan(
      step, _flat(carry), _flat(ins[first:]), params['length'], params['reverse'],
      params['unroll'])
  return _values(body.kinds, [*last, *stacked])


def _union(kinds: Iterable[Kind]) -> Kind:
  return functools.reduce(operator.or_, kinds, Kind.CONSTANT)
