"""Runs of a function only what its result needs, without compiling it as one program."""
from collections.abc import Callable

import jax
from jax.interpreters import partial_eval

from bioprop.typing import PyTree


def only_what_is_needed(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
  """function(*args), one operation after the other, without those that its result does not need.

  For functions that run once and draw many arrays, such as a model's init: as one program each draw
  is compiled anew. So each shape is compiled once, and all other layers and models find it.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  needed, _ = partial_eval.dce_jaxpr(
      closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
  leaves = jax.core.eval_jaxpr(needed, closed.consts, *jax.tree.leaves(args))
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
