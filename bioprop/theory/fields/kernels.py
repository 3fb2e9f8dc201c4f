"""All kernels of a network in the lazy limit, of one block of samples, in one program."""
import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.theory.fields.derivatives import Credit, Derivatives
from bioprop.theory.fields.leaves import Added, Field, Function, Gained, Weighted, leaves
from bioprop.theory.fields.moments import Moments
from bioprop.theory.fields.sides import View
from bioprop.typing import Array

_CALLS = 20  # Of Python, from a field to those below.


class Found(NamedTuple):
  """Kernels of n samples with n', means over positions of the output.

  Attributes:
    nngp: E f f' of the outputs at the start, [n, n'].
    ntk: backprop's, [n, n'].
    entk: the rule's, [n, n'].
    phi: of what each op's outputs see, per entry, by the op's number, [n, n'].
    g: of gradients at its output, summed over positions, [n, n'].
    g_pseudo: of gradients with the rule's.
    shares: what each parameter adds to `entk`, by name.
    largest: the largest variance of which a function without closed form was taken.
  """
  nngp: Array
  ntk: Array
  entk: Array
  phi: dict[int, Array]
  g: dict[int, Array]
  g_pseudo: dict[int, Array]
  shares: dict[str, Array]
  largest: Array


def exact(ops: Sequence[Weighted]) -> Credit:
  """Backprop's credit."""
  return Credit(*({op.number: 1.0 for op in ops} for _ in range(2)))


def ops_of(output: Field) -> list[Weighted]:
  """The ops of a network, in the order in which they run."""
  return sorted((leaf for leaf in leaves(output) if isinstance(leaf, Weighted)),
                key=lambda op: op.number)


def is_sampled(output: Field) -> bool:
  """Whether a network holds functions whose means are taken over points."""
  return any(isinstance(leaf, Function) and leaf.factors is None for leaf in leaves(output))


def find(output: Field, credit: Credit | None, given: tuple[Sequence[Array], Sequence[Array]],
         same: bool, variances: Mapping[str, Array | float], dtype: jnp.dtype,
         seed: int = 0) -> Found:
  """Finds all kernels; to be called inside of `jax.jit`.

  Args:
    output: the network's output.
    credit: the rule's; None: backprop's.
    given: arrays of `Given` data, of both sets of samples.
    same: these are one set.
    variances: by parameter.
    dtype: of kernels.
    seed: of what is sampled.
  """
  with _deep_enough(len(leaves(output))):
    return _find(output, credit, Moments(given, same, variances, dtype, seed), dtype)


def _find(output: Field, credit: Credit | None, moments: Moments, dtype: jnp.dtype) -> Found:
  counts = [next(len(one) for one in side if one.ndim) for side in moments.given]
  whole = lambda kernel: jnp.zeros(counts, dtype) if kernel is None else jnp.broadcast_to(
      _mean_position(kernel), counts)
  ops, names = ops_of(output), _parameters(output)
  nngp = whole(moments.fields(output, output))
  phi = {op.number: whole(moments.inputs(op, View.FULL, False)) / float(op.fan_in) for op in ops}
  zeros = jnp.zeros(counts, dtype)
  taps = {('g', op.number): zeros for op in ops} | {('share', name): zeros for name in names}

  def tangent(credit, taps):
    return whole(Derivatives(moments, credit, taps).fields(output, output))

  ntk, g, shares = _with_slopes(functools.partial(tangent, exact(ops)), taps)
  entk, g_pseudo = ntk, g
  if credit is not None:
    entk, g_pseudo, shares = _with_slopes(functools.partial(tangent, credit), taps)
  return Found(nngp, ntk, entk, phi, g, g_pseudo, shares, moments.largest)


@contextlib.contextmanager
def _deep_enough(count: int) -> Iterator[None]:
  """Lets Python call as deep as a network of so many fields is."""
  limit = sys.getrecursionlimit()
  sys.setrecursionlimit(limit + _CALLS * count)
  try:
    yield
  finally:
    sys.setrecursionlimit(limit)


def _with_slopes(tangent, taps):
  kernel, pull = jax.vjp(tangent, taps)
  slopes, = pull(jnp.ones_like(kernel))
  return (kernel, {name: slope for (kind, name), slope in slopes.items() if kind == 'g'},
          {name: slope for (kind, name), slope in slopes.items() if kind == 'share'})


def _mean_position(kernel: Array) -> Array:
  return jnp.mean(kernel, tuple(range(2, kernel.ndim)))


def _parameters(output: Field) -> list[str]:
  """Names of all parameters."""
  found = {}
  for leaf in leaves(output):
    if isinstance(leaf, Weighted):
      found[leaf.weight.name] = None
    elif isinstance(leaf, Added | Gained):
      found[leaf.parameter.name] = None
  return list(found)
