"""One program for several that differ in nothing but numbers.

Steps of runs that differ in the learning rate, a scale of feedback or any other number are, as
jaxprs, equation by equation the same, but for the constants in them. These are taken out: what is
left is one function of the numbers, which `vmap` runs for all of them at once. Nobody has to say
which settings are such numbers: optimiser, rule and model are traced as they are.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from bioprop.jaxprs.layout import (
  CALLS,
  REMATS,
  bind,
  bodies_of,
  body_of,
  branches_of,
  constant,
  remat_options,
  scan_of,
)
from bioprop.typing import Array

# Calls that a derivative of their own belongs to: nothing here is differentiated any more.
_DERIVED = ('custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr')
_ENTERED = (*CALLS, *REMATS, *_DERIVED, 'scan', 'cond', 'while')

# Where a jaxpr's numbers are: ('constant', i), ('operand', equation, i), and of the bodies of an
# equation ('body', equation, which): {...} again. Leaves are positions among all numbers.
_Places = dict[tuple, Any]


def common(functions: Sequence[Callable[..., Any]], *args: Any
           ) -> list[tuple[Callable[..., Any], list[int], list[np.ndarray]]]:
  """Divides functions into those that are one program but for numbers.

  Args:
    functions: each maps `args` to a pytree of arrays.
    *args: arrays, or their shapes and dtypes.

  Returns:
    For each program a function f(numbers, *args), which of the functions it stands for, and the
    numbers of all of these, [functions, ...] each: functions[i](*args) is f of the i-th of each.
  """
  traced = [jax.make_jaxpr(function, return_shape=True)(*args) for function in functions]
  programs: list[list[int]] = []
  for at, (closed, _) in enumerate(traced):
    for members in programs:
      if _same(traced[members[0]][0], closed):
        members.append(at)
        break
    else:
      programs.append([at])
  return [_program(*traced[members[0]], [traced[at][0] for at in members], members)
          for members in programs]


def _program(first: core.ClosedJaxpr, shapes: Any, all_of_it: Sequence[core.ClosedJaxpr],
             members: list[int]):
  numbers: list[np.ndarray] = []
  places = _places(all_of_it, numbers)
  structure = jax.tree.structure(shapes)

  def run(numbers, *args):
    flat = _run(first.jaxpr, first.consts, jax.tree.leaves(args), places, numbers)
    return jax.tree.unflatten(structure, flat)

  return run, members, numbers


def _same(a, b) -> bool:
  """Whether two jaxprs are equal but for the values of constants."""
  if a.jaxpr is b.jaxpr and a.consts is b.consts:
    return True
  names: dict[Any, Any] = {}  # Of b's variables, by a's.

  def paired(x, y) -> bool:
    if isinstance(x, core.Literal) or isinstance(y, core.Literal):
      return isinstance(x, core.Literal) and isinstance(y, core.Literal) and x.aval == y.aval
    return names.get(x) is y

  def defined(xs, ys) -> bool:
    names.update(zip(xs, ys))
    return len(xs) == len(ys) and all(x.aval == y.aval for x, y in zip(xs, ys))

  first, second = a.jaxpr, b.jaxpr
  if not (defined(first.constvars, second.constvars) and defined(first.invars, second.invars)
          and len(first.eqns) == len(second.eqns) and len(first.outvars) == len(second.outvars)):
    return False
  for one, other in zip(first.eqns, second.eqns):
    if not (one.primitive is other.primitive and len(one.invars) == len(other.invars)
            and all(map(paired, one.invars, other.invars)) and _like(one, other)
            and defined(one.outvars, other.outvars)):
      return False
  return all(map(paired, first.outvars, second.outvars))


def _like(one, other) -> bool:
  """Whether two equations of a primitive do the same, but for numbers in their bodies."""
  bodies = bodies_of(one), bodies_of(other)
  if len(bodies[0]) != len(bodies[1]) or not all(map(_same, *bodies)):
    return False
  if one.primitive.name not in _ENTERED and any(_places(pair, []) for pair in zip(*bodies)):
    return False  # `_run` could not run it with other numbers.
  if one.primitive.name in _DERIVED:
    return True
  return one.params.keys() == other.params.keys() and all(
      _equal(value, other.params[name]) for name, value in one.params.items())


def _equal(a, b) -> bool:
  if a is b or isinstance(a, core.Jaxpr | core.ClosedJaxpr):  # Bodies are compared apart.
    return True
  if isinstance(a, tuple | list):
    return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
  return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


def _places(bodies: Sequence[Any], numbers: list[np.ndarray]) -> _Places:
  """Where the bodies, which are the same otherwise, have different numbers; these are appended."""
  places: _Places = {}

  def place(where, values):
    if not all(np.array_equal(values[0], value, equal_nan=True) for value in values):
      places[where] = len(numbers)
      numbers.append(np.stack([np.asarray(value) for value in values]))

  for at, consts in enumerate(zip(*(body.consts for body in bodies))):
    if not all(const is consts[0] for const in consts):
      place(('constant', at), [_plain(const) for const in consts])
  for at, equations in enumerate(zip(*(body.jaxpr.eqns for body in bodies))):
    for number, atoms in enumerate(zip(*(eqn.invars for eqn in equations))):
      if isinstance(atoms[0], core.Literal):
        place(('operand', at, number), [np.asarray(constant(atom), atom.aval.dtype)
                                        for atom in atoms])
    for number, inner in enumerate(zip(*map(bodies_of, equations))):
      if found := _places(inner, numbers):
        places['body', at, number] = found
  for number, atoms in enumerate(zip(*(body.jaxpr.outvars for body in bodies))):
    if isinstance(atoms[0], core.Literal):
      place(('operand', -1, number), [np.asarray(constant(atom), atom.aval.dtype)
                                      for atom in atoms])
  return places


def _plain(const):
  """A constant as numpy compares and stacks it."""
  return np.asarray(const)


def _run(jaxpr, consts, arguments, places: _Places, numbers: Sequence[Array]) -> list[Array]:
  """Runs a jaxpr, with numbers in the places of its own."""
  at = lambda where, own: numbers[places[where]] if where in places else own
  values = {var: at(('constant', number), const)
            for number, (var, const) in enumerate(zip(jaxpr.constvars, consts))}
  values.update(zip(jaxpr.invars, arguments))

  def read(equation, number, atom):
    if isinstance(atom, core.Literal):
      return at(('operand', equation, number), constant(atom))
    return values[atom]

  for index, eqn in enumerate(jaxpr.eqns):
    operands = [read(index, number, atom) for number, atom in enumerate(eqn.invars)]
    inner = {number: places['body', index, number]
             for number in range(len(bodies_of(eqn)) if places else 0)
             if ('body', index, number) in places}
    outs = _enter(eqn, operands, inner, numbers) if inner else bind(eqn, operands)
    values.update(zip(eqn.outvars, outs))
  return [read(-1, number, atom) for number, atom in enumerate(jaxpr.outvars)]


def _enter(eqn, operands, places: Mapping[int, _Places], numbers) -> Sequence[Array]:
  """Runs an equation whose bodies have numbers of their own."""
  name, bodies = eqn.primitive.name, bodies_of(eqn)
  run = lambda number, *args: _run(bodies[number].jaxpr, bodies[number].consts, args,
                                   places.get(number, {}), numbers)
  if name == 'scan':
    scan = scan_of(eqn)
    known, carried = operands[:scan.consts], operands[scan.consts:scan.consts + scan.carried]

    def step(carry, slices):
      outs = run(0, *known, *carry, *slices)
      return outs[:scan.carried], outs[scan.carried:]

    last, stacked = lax.scan(step, list(carried), list(operands[scan.consts + scan.carried:]),
                             scan.length, **scan.options)
    return [*last, *stacked]
  if name == 'cond':
    branches = [lambda *args, number=number: run(number, *args)
                for number in range(len(branches_of(eqn)))]
    return lax.switch(operands[0], branches, *operands[1:])
  if name == 'while':
    tests, moves = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    of_test, of_move, start = (operands[:tests], operands[tests:tests + moves],
                               operands[tests + moves:])
    return lax.while_loop(lambda carry: run(0, *of_test, *carry)[0],
                          lambda carry: run(1, *of_move, *carry), list(start))
  body = body_of(eqn)
  assert body is not None
  if name in REMATS:
    return jax.checkpoint(lambda *args: run(0, *args), **remat_options(eqn))(*operands)
  return run(0, *operands)
