"""Finds the ReLUs of a network, and runs it with something else in their place.

In a jaxpr a ReLU is max(h, 0), as jnp.maximum(h, 0) writes it; or a function with a derivative of
its own that is nothing but max(h, 0), as jax.nn.relu, nn.relu and nnx.relu are.

Not every max(h, 0) is a nonlinearity. These stay what they are:

  - in functions with a derivative of their own that are more than max(h, 0): relu6, softplus;
  - in celu and jnp.clip;
  - where the result goes into min, sqrt, rsqrt or log: a clamp;
  - of E[x^2] - E[x]^2: the variance in Flax's BatchNorm, LayerNorm and GroupNorm;
  - of integers.

A leaky ReLU, and jnp.where(h > 0, h, 0), are no max(h, 0) at all.
"""
import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.errors import UnsupportedLayerError
from bioprop.rules.jaxprs import JITS, REMATS, bind, bodies_of, body_of
from bioprop.typing import Array

# Maps (number of the ReLU in the network, its argument h) to an array like h.
Replacement = Callable[[int, Array], Array]

_OWN_DERIVATIVE = ('custom_jvp_call', 'custom_vjp_call')
_OTHER_FUNCTIONS = ('celu', 'clip')
_CLAMPED_FOR = {'min', 'sqrt', 'rsqrt', 'log'}


class _Value(NamedTuple):
  """An array, and whether it depends on the network's inputs."""
  array: Array
  data: bool


def evaluate(closed: core.ClosedJaxpr, params: Sequence[Array], inputs: Sequence[Array],
             replacement: Replacement) -> tuple[list[Array], int]:
  """Runs a network; `replacement` is called in place of every ReLU of what its inputs reach.

  Args:
    closed: the network, a function of (*params, *inputs).
    params: its parameters.
    inputs: its inputs.
    replacement: called with the ReLUs' numbers, from 0, in the order in which the network runs.

  Returns:
    The network's outputs, and how many ReLUs it has.

  Raises:
    UnsupportedLayerError: if a ReLU stands in a loop, in a branch, or in a function with a
      derivative of its own.
  """
  values = [*(_Value(a, False) for a in params), *(_Value(a, True) for a in inputs)]
  outs, number = _evaluate(closed, values, replacement, 0)
  return [value.array for value in outs], number


def find(closed: core.ClosedJaxpr, params: Sequence[Array],
         inputs: Sequence[Array]) -> list[jax.ShapeDtypeStruct]:
  """Shapes of the ReLUs' arguments, in order; arguments and errors as in `evaluate`."""
  found = {}

  def note(number, h):
    found[number] = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return h

  jax.eval_shape(lambda p, x: evaluate(closed, p, x, note)[0], list(params), list(inputs))
  return [found[number] for number in sorted(found)]


def _evaluate(closed, arguments: Sequence[_Value], replacement: Replacement,
              number: int) -> tuple[list[_Value], int]:
  """The outputs, and the number of the next ReLU after those of this jaxpr."""
  jaxpr, relus = closed.jaxpr, _relus(closed)
  known = dict(zip(jaxpr.invars, arguments))
  known.update((var, _Value(const, False)) for var, const in zip(jaxpr.constvars, closed.consts))
  read = lambda atom: _Value(atom.val, False) if isinstance(atom, core.Literal) else known[atom]
  for at, eqn in enumerate(jaxpr.eqns):
    ins = [read(atom) for atom in eqn.invars]
    data = any(value.data for value in ins)
    with eqn.ctx.manager:
      if data and at in relus:
        outs, number = [_Value(replacement(number, ins[relus[at]].array), True)], number + 1
      elif data and _holds(eqn):
        outs, number = _enter(eqn, ins, replacement, number)
      else:
        outs = [_Value(a, data) for a in bind(eqn, [value.array for value in ins])]
    known.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in jaxpr.outvars], number


def _enter(eqn, ins: list[_Value], replacement: Replacement,
           number: int) -> tuple[list[_Value], int]:
  name = eqn.primitive.name
  if name in JITS:
    return _evaluate(body_of(eqn), ins, replacement, number)
  if name in REMATS:
    return _remat(eqn, ins, replacement, number)
  raise UnsupportedLayerError(
      f'gln replaces every ReLU by gates that belong to its place in the network, and this model '
      f'has a ReLU inside a {name!r}: the body of a loop is one place that stands for many layers '
      f'or times, and a branch or a function with a derivative of its own cannot be rewritten. '
      f'Write a loop over layers out, as in `for layer in layers: x = nn.relu(layer(x))`, or '
      f'choose a rule that leaves the nonlinearity alone, such as \'fa\'.')


def _remat(eqn, ins: list[_Value], replacement: Replacement,
           number: int) -> tuple[list[_Value], int]:
  flags, after = [], number

  def body(arrays):
    nonlocal flags, after
    values = [_Value(a, value.data) for a, value in zip(arrays, ins)]
    outs, after = _evaluate(body_of(eqn), values, replacement, number)
    flags = [value.data for value in outs]
    return [value.array for value in outs]

  outs = jax.checkpoint(body, prevent_cse=eqn.params['prevent_cse'],
                        policy=eqn.params['policy'])([value.array for value in ins])
  return [_Value(a, data) for a, data in zip(outs, flags)], after


def _holds(eqn, bare: bool = True) -> bool:
  """Whether an equation calls a ReLU; `bare`: max(h, 0) by itself is one."""
  if eqn.params.get('name') in _OTHER_FUNCTIONS:
    return False
  bare = bare and eqn.primitive.name not in _OWN_DERIVATIVE
  for closed in bodies_of(eqn):
    relus = _relus(closed)
    if any(_holds(inner, bare) or (at in relus and (bare or inner.primitive.name != 'max'))
           for at, inner in enumerate(closed.jaxpr.eqns)):
      return True
  return False


def _relus(closed: core.ClosedJaxpr) -> dict[int, int]:
  """The equations of a jaxpr that are ReLUs: position to the position of h among its inputs."""
  jaxpr, found = closed.jaxpr, {}
  consts = dict(zip(jaxpr.constvars, closed.consts))
  makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
  uses = collections.defaultdict(set)
  for eqn in jaxpr.eqns:
    for atom in eqn.invars:
      if not isinstance(atom, core.Literal):
        uses[atom].add(eqn.primitive.name)
  for at, eqn in enumerate(jaxpr.eqns):
    if eqn.primitive.name in _OWN_DERIVATIVE:
      if _is_relu(body_of(eqn)):
        found[at] = 0
    elif eqn.primitive.name == 'max' and not uses[eqn.outvars[0]] & _CLAMPED_FOR:
      zero = [_is_zero(atom, makers, consts) for atom in eqn.invars]
      h = zero.index(False) if False in zero else 0
      if any(zero) and _floating(eqn.invars[h]) and not _is_variance(eqn.invars[h], makers):
        found[at] = h
  return found


def _is_relu(closed: core.ClosedJaxpr | None) -> bool:
  """Whether a function of h alone is max(h, 0) and nothing else."""
  if closed is None or len(closed.jaxpr.eqns) != 1 or len(closed.jaxpr.invars) != 1:
    return False
  eqn = closed.jaxpr.eqns[0]
  if eqn.primitive.name in JITS:
    return _is_relu(body_of(eqn))
  return eqn.primitive.name == 'max' and 0 in _relus(closed)


def _is_zero(atom, makers, consts) -> bool:
  if isinstance(atom, core.Literal):
    return bool(np.all(np.asarray(atom.val) == 0))
  if atom in consts:
    value = consts[atom]
    return not isinstance(value, jax.core.Tracer) and np.size(value) == 1 and not np.any(value)
  maker = makers.get(atom)
  return maker is not None and maker.primitive.name in (
      'broadcast_in_dim', 'convert_element_type') and _is_zero(maker.invars[0], makers, consts)


def _is_variance(atom, makers) -> bool:
  """Whether a value was made as a - b^2."""
  eqn = makers.get(atom) if not isinstance(atom, core.Literal) else None
  if eqn is None or eqn.primitive.name != 'sub' or isinstance(eqn.invars[1], core.Literal):
    return False
  maker = makers.get(eqn.invars[1])
  return maker is not None and (
      maker.primitive.name == 'square'
      or maker.primitive.name == 'integer_pow' and maker.params['y'] == 2
      or maker.primitive.name == 'mul' and maker.invars[0] is maker.invars[1])


def _floating(atom) -> bool:
  return jnp.issubdtype(atom.aval.dtype, jnp.floating)
