"""Convolutions that XLA's CPU compiler runs fast inside a loop.

XLA:CPU hands a convolution to its fast kernels only in the layout NHWC-HWIO-NHWC. It brings others
into that layout, but only outside of loops (jax issue 12868). The gradients of a convolution are
convolutions in other layouts, so an epoch written as `lax.scan` would run them some 20 times slower
than the same step outside. Writing the transposes into the program removes the difference.
"""
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core

from bioprop.network.layout import CALLS, bind, body_of, constant


def fast_in_loops(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` with the same values, its convolutions in the layout that XLA:CPU runs fast.

  On other backends the function is returned as it is.

  Args:
    function: maps pytrees of arrays to a pytree of arrays.
  """
  if jax.default_backend() != 'cpu':
    return function

  def rewritten(*args):
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    flat = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)

  return rewritten


def _evaluate(jaxpr: core.Jaxpr, consts, arguments) -> list[Any]:
  values = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, arguments))
  read = lambda atom: constant(atom) if isinstance(atom, core.Literal) else values[atom]
  for eqn in jaxpr.eqns:
    operands = [read(atom) for atom in eqn.invars]
    if eqn.primitive.name in CALLS:
      outs = _evaluate(*body_of(eqn), operands)
    elif eqn.primitive is lax.conv_general_dilated_p:
      outs = [_convolution(*operands, **eqn.params)]
    else:
      outs = bind(eqn, operands)
    values.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in jaxpr.outvars]


def _convolution(lhs, rhs, *, dimension_numbers, **params):
  """The same convolution, with transposes around the layout (N...C, ...IO, N...C)."""
  from_lhs, from_rhs, to_out = dimension_numbers
  last = lhs.ndim - 1
  inner = tuple(range(1, last))
  layout = lax.ConvDimensionNumbers(
      (0, last, *inner), (last, last - 1, *range(last - 1)), (0, last, *inner))
  out = lax.conv_general_dilated_p.bind(
      lax.transpose(lhs, (from_lhs[0], *from_lhs[2:], from_lhs[1])),
      lax.transpose(rhs, (*from_rhs[2:], from_rhs[1], from_rhs[0])),
      dimension_numbers=layout, **params)
  back = (to_out[0], *to_out[2:], to_out[1])  # Where each axis of `out` belongs.
  return lax.transpose(out, tuple(back.index(axis) for axis in range(lhs.ndim)))
