"""Which inputs each output of an equation depends on, differentiably or not."""
from collections.abc import Sequence

from jax.extend import core

from bioprop.jaxprs.layout import CALLS, REMATS, Body, body_of, branches_of, scan_of

Positions = frozenset[int]
_CUSTOM = ('custom_jvp_call', 'custom_vjp_call')


def dependencies(eqn: core.JaxprEqn) -> list[Positions]:
  """The positions of the inputs that each output depends on."""
  name, count = eqn.primitive.name, len(eqn.invars)
  if name == 'optimization_barrier':
    return [frozenset([at]) for at in range(count)]
  everything = frozenset(range(count))
  if len(eqn.outvars) > 1:
    if name in (*CALLS, *REMATS, *_CUSTOM):
      return _body(body_of(eqn), [frozenset([at]) for at in range(count)])
    if name == 'scan':
      return _scan(eqn)
    if name == 'cond':
      each = [frozenset([at]) for at in range(1, count)]
      branches = [_body(branch, each) for branch in branches_of(eqn)]
      return [frozenset([0]).union(*outs) for outs in zip(*branches)]
  return [everything] * len(eqn.outvars)


def _body(body: Body, arguments: Sequence[Positions]) -> list[Positions]:
  known = dict(zip(body.jaxpr.invars, arguments))
  nothing: Positions = frozenset()
  read = lambda atom: nothing if isinstance(atom, core.Literal) else known.get(atom, nothing)
  for eqn in body.jaxpr.eqns:
    ins = [read(atom) for atom in eqn.invars]
    for var, own in zip(eqn.outvars, dependencies(eqn)):
      known[var] = nothing.union(*(ins[at] for at in own))
  return [read(atom) for atom in body.jaxpr.outvars]


def _scan(eqn) -> list[Positions]:
  scan = scan_of(eqn)
  ins = [frozenset([at]) for at in range(len(eqn.invars))]
  while True:  # Until what the carry depends on stays the same.
    outs = _body(scan.body, ins)
    carry = slice(scan.consts, scan.consts + scan.carried)
    grown = [a | b for a, b in zip(ins[carry], outs)]
    if grown == ins[carry]:
      return outs
    ins[carry] = grown
