"""Runs a model's jaxpr with something added to the outputs of chosen ops."""
from collections.abc import Mapping, Sequence

from jax.extend import core

from bioprop.plug import marks
from bioprop.rules.jaxprs import JITS, bind, body_of
from bioprop.typing import Array


def calls(closed: core.ClosedJaxpr) -> list[str]:
  """The labels of the ops that `run` finds, once for each call: those in no loop or branch."""
  found = []
  for eqn in closed.jaxpr.eqns:
    label = marks.output_of(eqn.primitive, eqn.params)
    found += [] if label is None else [label]
    found += calls(body_of(eqn)) if eqn.primitive.name in JITS else []
  return found


def run(closed: core.ClosedJaxpr, arguments: Sequence[Array],
        taps: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
  """Evaluates a jaxpr whose ops' inputs and outputs are marked.

  Args:
    closed: the jaxpr.
    arguments: its inputs.
    taps: what is added to the output of an op, by label.

  Returns:
    The jaxpr's outputs, and the inputs of the tapped ops by label.
  """
  known = dict(zip(closed.jaxpr.constvars, closed.consts)) | dict(
      zip(closed.jaxpr.invars, arguments))
  read = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
  inputs = {}
  for eqn in closed.jaxpr.eqns:
    ins = [read(atom) for atom in eqn.invars]
    if eqn.primitive.name in JITS:
      outs, seen = run(body_of(eqn), ins, taps)
      inputs.update(seen)
    elif (label := marks.output_of(eqn.primitive, eqn.params)) in taps:
      outs = [ins[0] + taps[label]]
    else:
      with eqn.ctx.manager:
        outs = bind(eqn, ins)
      label = marks.input_of(eqn.primitive, eqn.params)
      inputs.update({label: ins[0]} if label in taps else {})
    known.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in closed.jaxpr.outvars], inputs
