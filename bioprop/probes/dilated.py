"""Convolutions of dilated inputs, which strided ones' cotangents go through, without the zeros.

The cotangent of what a convolution of stride d sees is a convolution whose input has d - 1 zeros
between its entries, and on CPUs XLA multiplies them. Output d u + phi meets only those places of
the window at which entries stand: each phase phi is a convolution of the entries themselves, with
every d-th place of the window. Elsewhere (cuDNN, TPUs) the op is known for what it is, and stays.
"""
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend import core

from bioprop.network.layout import CALLS, bind, body_of, constant
from bioprop.typing import Array, PyTree


def undilated(function: Callable[[Array], PyTree]) -> Callable[[Array], PyTree]:
  """The same function, whose convolutions of dilated inputs multiply no zeros on CPUs.

  Args:
    function: of one array; it is traced, and convolutions in its loops stay as they are.
  """

  def run(x):
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(x)
    outs = _run(closed.jaxpr, closed.consts, [x])
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)

  return run


def _run(jaxpr: core.Jaxpr, consts: Sequence[Array], arrays: Sequence[Array]) -> list[Array]:
  known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arrays]))
  read = lambda atom: constant(atom) if isinstance(atom, core.Literal) else known[atom]
  for eqn in jaxpr.eqns:
    ins, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
    if name in CALLS:
      outs = _run(*body_of(eqn), ins)
    elif name == 'conv_general_dilated' and _is_dilated(eqn):
      outs = [jax.lax.platform_dependent(
          *ins, cpu=lambda *ins, eqn=eqn: _in_phases(eqn, *ins),
          default=lambda *ins, eqn=eqn: bind(eqn, ins)[0])]
    else:
      outs = bind(eqn, ins)
    known.update(zip(eqn.outvars, outs))
  return [read(atom) for atom in jaxpr.outvars]


def _is_dilated(eqn: core.JaxprEqn) -> bool:
  return max(eqn.params['lhs_dilation'], default=1) > 1 and set(eqn.params['window_strides']) == {1}


def _in_phases(conv: core.JaxprEqn, x: Array, w: Array) -> Array:
  """A convolution of stride 1, phase by phase of its output."""
  params, numbers = conv.params, conv.params['dimension_numbers']
  dilations, shape = params['lhs_dilation'], conv.outvars[0].aval.shape
  axes = numbers.out_spec[2:]
  counts = [-(-shape[axis] // d) for axis, d in zip(axes, dilations)]  # Of each phase's places.
  phases = []
  for phase in itertools.product(*map(range, dilations)):
    window, edges, spread = [slice(None)] * w.ndim, [], []
    for i, (axis, d, at) in enumerate(zip(numbers.rhs_spec[2:], dilations, phase)):
      taken, edge, apart = _phase(
          at, d, params['rhs_dilation'][i], params['padding'][i][0], w.shape[axis],
          x.shape[numbers.lhs_spec[2 + i]], counts[i])
      window[axis] = taken
      edges.append(edge)
      spread.append(apart)
    phases.append(_convolved(conv, x, w[tuple(window)], edges, spread, counts))
  return _woven(phases, axes, dilations, shape)


def _phase(at: int, d: int, spread: int, low: int, places: int, length: int,
           count: int) -> tuple[slice, tuple[int, int], int]:
  """Along one axis, of the outputs d u + at: the places of the window that meet entries, and the
  padding and the dilation with which these see the entries."""
  step = d // math.gcd(d, spread)
  first = next((k for k in range(min(step, places)) if (at + k * spread - low) % d == 0), places)
  taken, apart = slice(first, None, step), step * spread // d
  seen, edge = len(range(places)[taken]), -((at + first * spread - low) // d)
  return taken, (edge, count - length - edge + apart * (seen - 1)), apart


def _convolved(conv: core.JaxprEqn, x: Array, w: Array, edges, spread, counts) -> Array:
  """One phase; zeros where no place of the window meets an entry."""
  params, numbers = conv.params, conv.params['dimension_numbers']
  if not w.size:
    shape = list(conv.outvars[0].aval.shape)
    for axis, count in zip(numbers.out_spec[2:], counts):
      shape[axis] = count
    return jnp.zeros(shape, conv.outvars[0].aval.dtype)
  return jax.lax.conv_general_dilated(
      x, w, (1,) * len(edges), edges, rhs_dilation=spread, dimension_numbers=numbers,
      feature_group_count=params['feature_group_count'],
      batch_group_count=params['batch_group_count'], precision=params['precision'],
      preferred_element_type=params['preferred_element_type'])


def _woven(phases: list[Array], axes, dilations, shape) -> Array:
  """Output d u + phi of phase phi's u-th, along each axis."""
  for axis, d in reversed(list(zip(axes, dilations))):  # The last axis' phase runs fastest.
    joined = [jnp.stack(phases[at:at + d], axis + 1) for at in range(0, len(phases), d)]
    phases = [one.reshape(*one.shape[:axis], -1, *one.shape[axis + 2:]) for one in joined]
  return jax.lax.slice(phases[0], (0,) * len(shape), shape)
