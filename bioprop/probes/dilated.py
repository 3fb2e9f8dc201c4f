"""Convolutions of dilated inputs, which strided ones' cotangents go through, without the zeros.

The cotangent of what a convolution of stride d sees is a convolution whose input has d - 1 zeros
between its entries, and on CPUs XLA multiplies them. Output d u + phi meets only those places of
the window at which entries stand: each phase phi is a convolution of the entries themselves, with
every d-th place of the window. Elsewhere (cuDNN, TPUs) the op is known for what it is, and stays.
"""
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.jaxprs.layout import CALLS, bind, body_of, constant
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
  # XLA's fast convolution on CPUs has its axes in this order: batch, places, features.
  last = lambda spec: (spec[0], *spec[2:], spec[1])
  x, w = x.transpose(last(numbers.lhs_spec)), w.transpose(*numbers.rhs_spec[2:],
                                                          *numbers.rhs_spec[1::-1])
  order = last(numbers.out_spec)
  shape = tuple(conv.outvars[0].aval.shape[axis] for axis in order)
  dilations, spread = params['lhs_dilation'], params['rhs_dilation']
  counts = [-(-size // d) for size, d in zip(shape[1:], dilations)]  # Of each phase's places.
  phases = []
  for phase in itertools.product(*map(range, dilations)):
    seen = [_phase(at, d, apart, low, places, length, count) for
            at, d, apart, (low, _), places, length, count in zip(
                phase, dilations, spread, params['padding'], w.shape, x.shape[1:], counts)]
    window, edges, apart = zip(*seen)
    phases.append(_convolved(params, x, w[window], edges, apart) if w[window].size else
                  jnp.zeros((shape[0], *counts, shape[-1]), conv.outvars[0].aval.dtype))
  for axis, d in reversed(list(enumerate(dilations, 1))):  # The last axis' phase runs fastest.
    joined = [jnp.stack(phases[at:at + d], axis + 1) for at in range(0, len(phases), d)]
    phases = [one.reshape(*one.shape[:axis], -1, *one.shape[axis + 2:]) for one in joined]
  return jax.lax.slice(phases[0], (0,) * len(shape), shape).transpose(np.argsort(order))


def _phase(at: int, d: int, spread: int, low: int, places: int, length: int,
           count: int) -> tuple[slice, tuple[int, int], int]:
  """Along one axis, of the outputs d u + at: the places of the window that meet entries, and the
  padding and the dilation with which these see the entries."""
  step = d // math.gcd(d, spread)
  first = next((k for k in range(min(step, places)) if (at + k * spread - low) % d == 0), places)
  taken, apart = slice(first, None, step), step * spread // d
  seen, edge = len(range(places)[taken]), -((at + first * spread - low) // d)
  return taken, (edge, count - length - edge + apart * (seen - 1)), apart


def _convolved(params: Mapping[str, Any], x: Array, w: Array, edges, spread) -> Array:
  """The places of one phase."""
  places = range(len(edges))
  outer = (0, len(edges) + 1, *(1 + axis for axis in places))
  numbers = jax.lax.ConvDimensionNumbers(outer, (len(edges) + 1, len(edges), *places), outer)
  return jax.lax.conv_general_dilated(
      x, w, (1,) * len(edges), edges, rhs_dilation=spread, dimension_numbers=numbers,
      feature_group_count=params['feature_group_count'],
      batch_group_count=params['batch_group_count'], precision=params['precision'],
      preferred_element_type=params['preferred_element_type'])
