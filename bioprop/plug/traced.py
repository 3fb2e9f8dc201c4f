"""The ops of a model as functions of their own, cut out of its jaxpr between their marks."""
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from bioprop.plug import marks
from bioprop.rules.jaxprs import bind, bodies_of
from bioprop.typing import Array


class TracedOp(NamedTuple):
  """One op, at its first call.

  Attributes:
    label: the layer's path; of an embedding's second method, with '.attend'.
    weights: shape and dtype of each weight, by its path in the model's parameters, as the op sees
      it: in a stack of layers that a scan runs, of one layer.
    x, y: shape and dtype of the op's input and output.
    inputs: the variables of the weights, in their order, and that of x.
    constants: the values of what the model captured, by variable.
    output: the variable of the output.
    equations: what leads from the one to the other.
  """
  label: str
  weights: Mapping[str, jax.ShapeDtypeStruct]
  x: jax.ShapeDtypeStruct
  y: jax.ShapeDtypeStruct
  inputs: tuple[core.Var, ...]
  constants: Mapping[core.Var, Array]
  output: core.Var
  equations: tuple[core.JaxprEqn, ...]

  def linear(self, weights: Mapping[str, Array], x: Array) -> Array:
    """What the weights do to an input, without biases: like the op's output.

    Args:
      weights: values of the weights, by path.
      x: an input, shaped like the op's.
    """
    values = [weights[path] for path in self.weights]
    if not jnp.issubdtype(x.dtype, jnp.inexact):  # Tokens, which choose rows.
      return self._run([*values, x], self.output)
    return jax.jvp(lambda x: self._run([*values, x], self.output), (x,), (x,))[1]

  def value(self, var: core.Var, x: Array) -> Array:
    """What becomes of an input on the way, at a variable that depends on no weight."""
    ones = [jnp.ones(w.shape, w.dtype) for w in self.weights.values()]
    return self._run([*ones, x], var)

  def _run(self, arrays, result):
    known = {**self.constants, **dict(zip(self.inputs, arrays))}

    def read(atom):
      if isinstance(atom, core.Literal):
        return atom.val
      # Of other parameters: biases, which `linear` takes away, and masks of NNX layers, as ones.
      return known.get(atom, jnp.ones(atom.aval.shape, atom.aval.dtype))

    for eqn in self.equations:
      known.update(zip(eqn.outvars, bind(eqn, [read(atom) for atom in eqn.invars])))
    return read(result)


def traced_calls(closed: core.ClosedJaxpr) -> Iterator[TracedOp]:
  """Every call of an op in a model's jaxpr, in loops and branches too; see `traced_ops`."""
  yield from _ops(closed)


def traced_ops(closed: core.ClosedJaxpr) -> dict[str, TracedOp]:
  """The ops in a model's jaxpr by label, each at its first call.

  Args:
    closed: jaxpr of a model whose ops' inputs, weights and outputs are marked.
  """
  found: dict[str, TracedOp] = {}
  for op in traced_calls(closed):
    found.setdefault(op.label, op)
  return found


def _ops(closed: core.ClosedJaxpr) -> Iterator[TracedOp]:
  jaxpr, constants = closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts))
  makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
  for eqn in jaxpr.eqns:
    label = marks.output_of(eqn.primitive, eqn.params)
    if label is not None:
      yield _cut(jaxpr, makers, constants, eqn.invars[0], label)
    for body in bodies_of(eqn):
      yield from _ops(body)


def _cut(jaxpr, makers, constants, output, label) -> TracedOp:
  """What lies between an op's output and its marked input and weights."""
  weights, x, needed = {}, None, set()
  waiting = [output]
  while waiting:
    var = waiting.pop()
    eqn = makers.get(var) if isinstance(var, core.Var) else None
    if eqn is None or id(eqn) in needed:
      continue
    path = marks.weight_of(eqn)
    if path is not None:
      weights[path] = var
    elif marks.input_of(eqn.primitive, eqn.params) == label:
      x = var
    else:
      needed.add(id(eqn))
      waiting += eqn.invars
  shape = lambda var: jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)
  return TracedOp(label, {path: shape(var) for path, var in weights.items()}, shape(x),
                  shape(output), (*weights.values(), x), constants, output,
                  tuple(eqn for eqn in jaxpr.eqns if id(eqn) in needed))
