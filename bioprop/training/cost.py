"""Floating-point operations of a function by XLA's own count; nothing is compiled or computed."""
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from bioprop.jaxprs.layout import Body, bodies_of, scan_of


def flops(function: Callable[..., Any], *args: Any) -> float | None:
  """Returns how many floating-point operations one call takes, before XLA simplifies anything.

  A multiplication and an addition are two. XLA counts the body of a loop once, so what the other
  rounds of a scan take is added here.

  Args:
    function: maps pytrees of arrays to a pytree of arrays.
    *args: its arguments; shapes will do.

  Returns:
    None where the backend does not count, or the number of rounds of a loop is not known.
  """
  traced = jax.jit(function).trace(*args)
  once = _once(traced.lower())
  again = _again(traced.jaxpr.jaxpr)
  return None if once is None or again is None else once + again


def _once(lowered) -> float | None:
  counted = lowered.cost_analysis()
  return counted.get('flops') if counted else None


def _again(jaxpr: core.Jaxpr) -> float | None:
  """What the rounds of loops take after the first."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'while':
      return None
    if eqn.primitive.name == 'scan':
      scan = scan_of(eqn)
      one = _body(scan.body)
      rest = None if one is None else one * scan.length - _first(scan.body)
    else:
      rests = [_again(body.jaxpr) for body in bodies_of(eqn)]
      rest = None if None in rests else sum(rests)
    if rest is None:
      return None
    total += rest
  return total


def _body(body: Body) -> float | None:
  """One round of a loop, loops within it included."""
  again = _again(body.jaxpr)
  once = _first(body)
  return None if again is None or once is None else once + again


def _first(body: Body) -> float | None:
  function = core.jaxpr_as_fun(core.ClosedJaxpr(body.jaxpr, body.consts))
  shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in body.jaxpr.invars]
  return _once(jax.jit(function).lower(*shapes))
