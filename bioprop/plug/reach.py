"""What a jaxpr's outputs depend on, followed from chosen values through calls and loops."""
from collections.abc import Callable, Hashable, Sequence

import jax.numpy as jnp
from jax.extend import core

from bioprop.rules.jaxprs import body_of

Sources = frozenset[Hashable]
NONE: Sources = frozenset()
# Answers for an equation that it knows, from what its inputs depend on; None for any other.
Known = Callable[[core.JaxprEqn, list[Sources]], list[Sources] | None]


def reach(jaxpr: core.Jaxpr, arguments: Sequence[Sources], known: Known) -> list[Sources]:
  """What each output depends on, differentiably.

  Args:
    jaxpr: what is searched.
    arguments: what each of its inputs depends on.
    known: decides for chosen equations, such as marks.
  """
  at = dict(zip(jaxpr.invars, arguments))
  read = lambda atom: NONE if isinstance(atom, core.Literal) else at.get(atom, NONE)
  for eqn in jaxpr.eqns:
    ins = [read(atom) for atom in eqn.invars]
    outs = known(eqn, ins)
    outs = _equation(eqn, ins, known) if outs is None else outs
    at.update((var, out if _differentiable(var) else NONE) for var, out in zip(eqn.outvars, outs))
  return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn, ins: list[Sources], known: Known) -> list[Sources]:
  kind, params = eqn.primitive.name, eqn.params
  if kind == 'stop_gradient':
    return [NONE]
  if kind == 'scan':
    return _loop(params['jaxpr'].jaxpr, ins, params['num_consts'], params['num_carry'], known)
  if kind == 'while':
    first, consts = params['cond_nconsts'], params['body_nconsts']
    body = params['body_jaxpr'].jaxpr
    return _loop(body, ins[first:], consts, len(ins) - first - consts, known)
  if kind == 'cond':
    branches = [reach(branch.jaxpr, ins[1:], known) for branch in params['branches']]
    return [NONE.union(*outs) for outs in zip(*branches)]
  body = body_of(eqn)
  if body is not None and len(body.jaxpr.invars) == len(ins):
    return reach(body.jaxpr, ins, known)
  return [NONE.union(*ins)] * len(eqn.outvars)


def _loop(body: core.Jaxpr, ins, consts: int, carry: int, known: Known) -> list[Sources]:
  """Runs a loop's body until what its carry depends on stays the same."""
  ins = list(ins)
  while True:
    outs = reach(body, ins, known)
    grown = [a | b for a, b in zip(ins[consts:consts + carry], outs)]
    if grown == ins[consts:consts + carry]:
      return outs
    ins[consts:consts + carry] = grown


def _differentiable(var) -> bool:
  return jnp.issubdtype(getattr(var.aval, 'dtype', jnp.int32), jnp.inexact)
