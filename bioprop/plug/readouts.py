"""Finds the readouts: the ops whose outputs reach the network's output through no other op."""
from jax.extend import core

from bioprop.plug import marks
from bioprop.plug.reach import NONE, reach


def readouts(closed: core.ClosedJaxpr, position: int) -> tuple[frozenset[str], frozenset[str]]:
  """The labels of the readouts, and of the ops that so reach only another of the model's outputs.

  Args:
    closed: jaxpr of a model whose ops' inputs and outputs are marked.
    position: the network's output among the jaxpr's outputs.
  """

  def known(eqn, ins):
    del ins
    label = marks.output_of(eqn.primitive, eqn.params)
    if label is not None:
      return [frozenset([label])]
    return [NONE] if marks.input_of(eqn.primitive, eqn.params) is not None else None

  nothing = [NONE] * len(closed.jaxpr.invars)
  outs = reach(closed.jaxpr, nothing, known)
  return outs[position], NONE.union(*outs) - outs[position]
