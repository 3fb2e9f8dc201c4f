"""Runs a model's jaxpr with something added to the outputs of chosen ops."""
from collections import Counter
from collections.abc import Mapping, Sequence

from jax.extend import core

from bioprop.plug import marks
from bioprop.rules.jaxprs import JITS, bind, body_of
from bioprop.typing import Array

# One call of an op: its label, and how many calls of it came before.
Call = tuple[str, int]


def calls(closed: core.ClosedJaxpr) -> Counter[str]:
  """How many calls of each op `run` finds, by label: those in no loop or branch."""
  found: Counter[str] = Counter()
  for eqn in closed.jaxpr.eqns:
    label = marks.output_of(eqn.primitive, eqn.params)
    if label is not None:
      found[label] += 1
    if eqn.primitive.name in JITS:
      found += calls(body_of(eqn))
  return found


def run(closed: core.ClosedJaxpr, arguments: Sequence[Array],
        taps: Mapping[Call, Array]) -> tuple[list[Array], dict[Call, Array]]:
  """Evaluates a jaxpr whose ops' inputs and outputs are marked.

  Args:
    closed: the jaxpr.
    arguments: its inputs.
    taps: what is added to the output of an op, by call.

  Returns:
    The jaxpr's outputs, and the inputs of the tapped ops by call.
  """
  inputs: dict[Call, Array] = {}
  return _run(closed, arguments, taps, inputs, Counter(), Counter()), inputs


def _run(closed, arguments, taps, inputs, entered, left):
  known = dict(zip(closed.jaxpr.constvars, closed.consts)) | dict(
      zip(closed.jaxpr.invars, arguments))
  read = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
  for eqn in closed.jaxpr.eqns:
    ins = [read(atom) for atom in eqn.invars]
    if eqn.primitive.name in JITS:
      outs = _run(body_of(eqn), ins, taps, inputs, entered, left)
    else:
      with eqn.ctx.manager:
        outs = bind(eqn, ins)
    label = marks.input_of(eqn.primitive, eqn.params)
    if label is not None:
      call = label, entered[label]
      entered[label] += 1
      inputs.update({call: ins[0]} if call in taps else {})
    label = marks.output_of(eqn.primitive, eqn.params)
    if label is not None:
      call = label, left[label]
      left[label] += 1
      outs = [ins[0] + taps[call]] if call in taps else outs
    known.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in closed.jaxpr.outvars]
