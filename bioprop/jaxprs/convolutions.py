"""Functions with the same values, whose convolutions XLA's CPU compiler runs fast.

Training is rewritten in two places by this one function: where an op's forward and backward pass
are ours (`network.acting`), and the whole step of the training loop.
"""
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core

from bioprop.jaxprs.convolution import convolution
from bioprop.jaxprs.layout import CALLS, bind, bodies_of, body_of, constant

# Entered if a convolution is in them. What a training step still holds of these calls is forward
# only: their derivatives were taken when it was traced.
_DERIVED = ('custom_jvp_call', 'custom_vjp_call')


def fast_convolutions(function: Callable[..., Any], alone: bool | None = None
                      ) -> Callable[..., Any]:
  """`function` with the same values, its convolutions written as XLA:CPU runs them fast.

  A function that was mapped over weights (`jax.vmap` of a training step over replicas) is to be
  rewritten after that: the convolutions by groups that it makes are run a replica after the other.
  Loops in the function are left as they are. On other backends it is returned as it is.

  Args:
    function: maps pytrees of arrays to a pytree of arrays.
    alone: its arrays lie on one device; None: if there is only one.
  """
  if jax.default_backend() != 'cpu':
    return function
  alone = jax.device_count() == 1 if alone is None else alone

  def rewritten(*args):
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    flat = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), alone)
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)

  return rewritten


def has_convolution(eqn: core.JaxprEqn) -> bool:
  """Whether an equation is a convolution, or holds one."""
  return eqn.primitive is lax.conv_general_dilated_p or any(
      has_convolution(inner) for body in bodies_of(eqn) for inner in body.jaxpr.eqns)


def _evaluate(jaxpr: core.Jaxpr, consts, arguments, alone: bool) -> list[Any]:
  values = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, arguments))
  read = lambda atom: constant(atom) if isinstance(atom, core.Literal) else values[atom]
  for eqn in jaxpr.eqns:
    operands = [read(atom) for atom in eqn.invars]
    name = eqn.primitive.name
    if name in CALLS or name in _DERIVED and has_convolution(eqn):
      outs = _evaluate(*body_of(eqn), operands, alone)
    elif eqn.primitive is lax.conv_general_dilated_p:
      outs = [convolution(*operands, alone, **eqn.params)]
    else:
      outs = bind(eqn, operands)
    values.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in jaxpr.outvars]
