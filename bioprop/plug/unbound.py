"""Outputs that were computed where no rule can act, and must not be differentiated silently."""
import jax
import jax.numpy as jnp

from bioprop.errors import UnboundError
from bioprop.typing import PyTree


def without_gradient(out: PyTree, message: str) -> PyTree:
  """`out` unchanged; its gradient raises UnboundError: it would silently be backprop's."""

  @jax.custom_vjp
  def identity(a):
    return a

  def refuse(_, g):
    del g
    raise UnboundError(message)

  identity.defvjp(lambda a: (a, None), refuse)
  differentiable = lambda a: isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jnp.inexact)
  return jax.tree.map(lambda a: identity(a) if differentiable(a) else a, out)
