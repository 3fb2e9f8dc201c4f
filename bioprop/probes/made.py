"""How an op's weight is made of parameters: by a transpose, a cast, a concatenation."""
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.jaxprs.layout import CALLS, bind, body_of
from bioprop.network.values import Frame, Kind, Node
from bioprop.typing import Array

# What leaves the entries of a parameter where they are, and what puts them elsewhere.
_KEEP = ('convert_element_type', 'copy', 'copy_p', 'name', 'sharding_constraint')
_MOVE = ('transpose', 'reshape', 'squeeze', 'broadcast_in_dim', 'rev')


class Made:
  """A weight as a function of parameters.

  Attributes:
    leaves: slots of the parameters, as the frame is given them.
    nodes: what makes the weight of them, in order.
  """

  def __init__(self, frame: Frame, weight: int):
    makers = {at: step for step in frame.steps if isinstance(step, Node) for at in step.outs}
    needed, leaves, waiting = set(), set(), [weight]
    while waiting:
      at = waiting.pop()
      if at in makers:
        if id(makers[at]) not in needed:
          needed.add(id(makers[at]))
          waiting.extend(makers[at].ins)
      elif frame.seen[at].kind is Kind.PARAMETER:
        leaves.add(at)
    self._frame, self._weight = frame, weight
    self.leaves: list[int] = sorted(leaves)
    self.nodes: list[Node] = [step for step in frame.steps if id(step) in needed]

  def __call__(self, leaves: Sequence[Array]) -> Array:
    """The weight of other parameters; what else it depends on, masks that the model holds, is ones.
    """
    known = {**self._frame.constants, **dict(zip(self.leaves, leaves))}
    for node in self.nodes:
      ins = [known[at] if at in known else jnp.ones(
          self._frame.avals[at].shape, self._frame.avals[at].dtype) for at in node.ins]
      known.update(zip(node.outs, bind(node.eqn, ins)))
    return known[self._weight]

  def order(self) -> np.ndarray | None:
    """Which entry of its one parameter, flat, stands at each place of the weight.

    Returns:
      Positions, shaped like the weight; None if it holds other numbers than the parameter's, or
      not each of them once.
    """
    at, shape = self.leaves[0], self._frame.avals[self.leaves[0]].shape
    size = math.prod(shape)
    indices = np.arange(size).reshape(shape)
    with jax.ensure_compile_time_eval():
      for node in self.nodes:
        indices = _moved(node.eqn, indices) if node.ins == (at,) else None
        if indices is None:
          return None
        at = node.outs[0]
    each_once = np.array_equal(np.sort(indices, None), np.arange(size))
    return indices if at == self._weight and each_once else None


def _moved(eqn: core.JaxprEqn, indices: np.ndarray) -> np.ndarray | None:
  """What an equation of one input makes of positions; None if it makes something else."""
  name = eqn.primitive.name
  if name in _KEEP:
    return indices
  if name in _MOVE:
    return np.asarray(bind(eqn, [jnp.asarray(indices)])[0])
  if name not in CALLS:
    return None
  jaxpr = body_of(eqn).jaxpr
  at = jaxpr.invars[0]
  for inner in jaxpr.eqns:  # A chain, or it is not known.
    if inner.invars != [at] or (indices := _moved(inner, indices)) is None:
      return None
    at = inner.outvars[0]
  return indices if jaxpr.outvars[0] is at else None
