"""Reads a network's jaxpr as fields of infinite width."""
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.errors import TheoryError
from bioprop.jaxprs.layout import (
  CALLS,
  REMATS,
  Body,
  bind,
  body_of,
  branches_of,
  constant,
  scan_of,
)
from bioprop.limit.algebra import Algebra
from bioprop.limit.expressions import ELEMENTWISE
from bioprop.limit.inputs import plain, step_of
from bioprop.limit.moves import Moves
from bioprop.limit.parameters import Uses, follow
from bioprop.limit.places import place_of
from bioprop.limit.pointwise import Pointwise
from bioprop.limit.products import Products
from bioprop.limit.sums import Sums, reason
from bioprop.limit.values import Gain, Hidden, Known, Param, Plain, Value, refuse
from bioprop.network.gates import relus_in
from bioprop.theory.fields.leaves import Data, Field, One, Weighted

# Maps (number of a ReLU, shape of its argument) to what its gates see of the input.
Seen = Callable[[int, tuple[int, ...]], Data]

_CUSTOM = ('custom_jvp_call', 'custom_vjp_call')
_SAME = frozenset('''convert_element_type reduce_precision copy copy_p name
    sharding_constraint'''.split())


class Reader:
  """Reads one network.

  Attributes:
    ops: the products of weights with data, in the order in which they run.
    uses: the parameters that it uses.
  """

  def __init__(self, uses: Uses, gates: Seen | None = None):
    """Args: the parameters; and, of gated linear networks, what the gates see."""
    self.uses, self._gates, self._relus = uses, gates, 0
    self._calls: list[core.JaxprEqn] = []  # That are entered, from the outside.
    self._derivatives: dict[tuple[str, str], bool] = {}
    self._algebra = Algebra()
    self._products, self._moves = Products(uses, self._algebra), Moves(self._algebra)
    self._pointwise = Pointwise(uses, self._algebra, self._moves)
    self._known = {**self._moves.known, **Sums(self._algebra).known}

  @property
  def ops(self) -> list[Weighted]:
    """The products with weights."""
    return self._products.ops

  def read(self, closed: core.ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
    """Reads a jaxpr; returns its outputs.

    Raises:
      TheoryError: if something in it has no limit of infinite width; the message says where.
    """
    return self._run(Body(closed.jaxpr, closed.consts), arguments)

  def _run(self, body: Body, arguments: Sequence[Value]) -> list[Value]:
    known: dict[Any, Value] = dict(zip(body.jaxpr.invars, arguments))
    known.update((var, Known(const)) for var, const in zip(body.jaxpr.constvars, body.consts))
    read = lambda atom: Known(constant(atom)) if isinstance(atom, core.Literal) else known[atom]
    relus = {} if self._gates is None else relus_in(body)
    for at, eqn in enumerate(body.jaxpr.eqns):
      ins = [read(atom) for atom in eqn.invars]
      if at in relus and isinstance(ins[relus[at]], Hidden):
        outs = [self._gated(ins[relus[at]], eqn)]
      else:
        outs = self._equation(eqn, ins)
      known.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in body.jaxpr.outvars]

  def _enter(self, eqn, body: Body, ins: Sequence[Value]) -> list[Value]:
    self._calls.append(eqn)
    outs = self._run(body, ins)
    self._calls.pop()
    return outs

  def _place(self, eqn) -> str:
    return place_of([*self._calls, eqn])

  def _equation(self, eqn, ins: list[Value]) -> list[Value]:
    if all(isinstance(one, Known) for one in ins):
      return [Known(value) for value in bind(eqn, [one.value for one in ins])]
    if all(isinstance(one, Known | Plain) for one in ins):
      return plain(eqn, ins)
    name = eqn.primitive.name
    if name in CALLS or name in REMATS:
      return self._enter(eqn, body_of(eqn), ins)
    if name in _CUSTOM:
      return self._custom(eqn, ins)
    if name == 'scan':
      return self._scan(eqn, ins)
    if name == 'cond' and isinstance(ins[0], Known):
      branches = branches_of(eqn)
      at = min(max(int(ins[0].value), 0), len(branches) - 1)
      return self._enter(eqn, branches[at], ins[1:])
    if all(isinstance(one, Known | Param) for one in ins):
      return follow(eqn, ins)
    place = self._algebra.place = self._place(eqn)
    try:
      found = self._met(eqn, ins, place)
    except TheoryError as error:
      if str(error).startswith(place):
        raise
      raise TheoryError(f'{place}: {error}') from error
    return found if isinstance(found, list) else [found]

  def _met(self, eqn, ins: list[Value], place: str) -> Value | list[Value]:
    """An equation of which at least one input is hidden, or is a parameter beside data."""
    name = eqn.primitive.name
    hidden = any(isinstance(one, Hidden | Gain) for one in ins)
    params = [one for one in ins if isinstance(one, Param)]
    if name == 'dot_general' and params:
      return self._products.dot_general(eqn, ins, place)
    if name == 'conv_general_dilated' and (params or hidden):
      return self._products.convolution(eqn, ins, place)
    if name == 'gather' and isinstance(ins[0], Param):
      return self._products.lookup(eqn, ins, place)
    if name == 'stop_gradient':
      raise refuse(place, 'a stopped gradient', 'what is below would not learn', 'Leave it out.')
    if name in _SAME and len(ins) == 1:
      return ins[0]
    if isinstance(ins[0], Gain) and name in ('broadcast_in_dim', 'reshape', 'squeeze'):
      numbers, = plain(eqn, [ins[0].plain, *ins[1:]])
      param, = follow(eqn, [ins[0].param, *ins[1:]])
      return Gain(numbers, param)
    if params and not any(isinstance(one, Hidden) for one in ins):
      return self._pointwise.gain(eqn, ins, place)
    if name in self._known:
      return self._known[name](eqn, ins, place)
    if name == 'concatenate':
      return self._moves.joined(eqn, ins, place)
    if name in ELEMENTWISE:
      return self._pointwise.elementwise(eqn, ins, place)
    what = reason(name) or (f'{name!r} of hidden values', 'it is none of the functions that are '
                            'known', 'Write it in elementwise functions, sums, moves and products.')
    raise refuse(place, *what)

  def _gated(self, h: Hidden, eqn) -> Hidden:
    """h where its gates are open, which the input decides."""
    seen = self._gates(self._relus, tuple(eqn.outvars[0].aval.shape))
    self._relus += 1
    return h.each(lambda field: self._algebra.gated(field, seen))

  def _custom(self, eqn, ins: list[Value]) -> list[Value]:
    """A function with a derivative of its own, which is to be that of what it computes."""
    body = body_of(eqn)
    if any(isinstance(one, Hidden) for one in ins) and not self._true(eqn, body):
      raise refuse(self._place(eqn), 'a function with a derivative of its own',
                   'its derivative is another than that of what it computes', 'Write the function '
                   'without it.')
    return self._enter(eqn, body, ins)

  def _true(self, eqn, body: Body) -> bool:
    key = eqn.primitive.name, str(body.jaxpr)
    if key not in self._derivatives:
      self._derivatives[key] = _has_true_derivative(eqn, body)
    return self._derivatives[key]

  def _scan(self, eqn, ins: list[Value]) -> list[Value]:
    """Step by step: layers that are stacked have each their own weights."""
    scan, place = scan_of(eqn), self._place(eqn)
    consts, carry = ins[:scan.consts], ins[scan.consts:scan.consts + scan.carried]
    slices, stacked = ins[scan.consts + scan.carried:], []
    steps = range(scan.length)
    for step in reversed(steps) if scan.options['reverse'] else steps:
      own = [step_of(one, step, place) for one in slices]
      outs = self._enter(eqn, scan.body, [*consts, *carry, *own])
      carry = outs[:scan.carried]
      stacked.append(outs[scan.carried:])
    if stacked and stacked[0]:
      raise refuse(place, 'what a loop collects from its steps', 'it is not followed',
                   'Return the last value only, or write the loop out.')
    return carry


def output_field(value: Value, place: str) -> Field:
  """The output's field.

  Raises:
    TheoryError: if it is no sum of hidden activities by a last weight.
  """
  if not isinstance(value, Hidden) or len(value.parts) != 1:
    raise TheoryError(f'{place} returns what no weight has made, or joins several outputs: it has '
                      f'no kernel. Return one array of outputs [n, classes].')
  field = value.parts[0][1]
  if any(not term.leaf.gaussian and not isinstance(term.leaf, One) for term in field):
    raise TheoryError(
        f'{place} returns a nonlinear function of what its last weight makes: of classes there are '
        f'not infinitely many, so that its kernel stays random. Return what goes into it.')
  return field


def _has_true_derivative(eqn, body: Body) -> bool:
  """Whether a function's own derivative is that of its jaxpr, on numbers of both signs."""
  avals = [var.aval for var in eqn.invars]
  floating = [at for at, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.floating)]
  numbers = np.linspace(-3.1, 3.3, 97)
  own = core.jaxpr_as_fun(core.ClosedJaxpr(body.jaxpr, list(body.consts)))
  with jax.ensure_compile_time_eval():
    arguments = [jnp.asarray(np.resize(numbers if at in floating else np.zeros(1), aval.shape),
                             aval.dtype) for at, aval in enumerate(avals)]

    def slopes(run):
      def total(*moved):
        full = list(arguments)
        for at, one in zip(floating, moved):
          full[at] = one
        return sum(jnp.sum(out) for out in run(*full) if jnp.issubdtype(out.dtype, jnp.floating))
      return jax.grad(total, tuple(range(len(floating))))(*(arguments[at] for at in floating))

    both = jax.jit(lambda: (slopes(lambda *arrays: bind(eqn, arrays)), slopes(own)))()
  return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*both))
