"""Kernels of many samples, block by block, within a given memory."""
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory.fields import kernels
from bioprop.theory.fields.derivatives import Credit
from bioprop.theory.fields.kernels import Found
from bioprop.theory.fields.leaves import Field
from bioprop.typing import Array

Samples = Sequence[Array]
Program = Callable[..., Any]  # Compiled.

_REACH = 16.0  # Variances up to which `activation_of` chooses its terms.


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What is to be computed of each block.

  Attributes:
    output: the network's output.
    credit: the rule's, None if it is backprop's.
    variances: of parameters, by name.
    dtype: of kernels.
  """
  output: Field
  credit: Credit | None
  variances: Mapping[str, float]
  dtype: jnp.dtype


def size_of(samples: Samples, others: Samples | None, block: int | None) -> int:
  """How many samples a block has at first.

  Raises:
    TheoryError: if samples do not belong together, or there is no such block.
  """
  count = count_of(samples)
  if others is not None:
    shapes = [[one.shape[1:] for one in side if one.ndim] for side in (samples, others)]
    if shapes[0] != shapes[1] or len(samples) != len(others):
      raise TheoryError(f'x has samples of shapes {shapes[0]}, and x2 of {shapes[1]}: one network '
                        f'sees both. Pass samples of equal shapes.')
    count = max(count, count_of(others))
  if block is not None and (type(block) is not int or block < 1):
    raise TheoryError(f'block={block!r} is to be a whole number of samples, at least 1. Say '
                      f'block=16, or leave it out.')
  return count if block is None else min(block, count)


def cut(samples: Samples, start: int, size: int) -> tuple[Array, ...]:
  """`size` samples from `start` on; at the end the last one again and again."""
  count = count_of(samples)
  where = np.minimum(np.arange(start, start + size), count - 1)
  return tuple(one[where] if one.ndim and len(one) == count else one for one in samples)


def run(plan_of: Callable[[int], Plan], samples: Samples, others: Samples | None, size: int,
        max_gib: float) -> tuple[Found, float]:
  """All kernels, and the relative error of means that are taken over points.

  Args:
    plan_of: the plan of blocks of so many samples.
    samples, others: both sets; others None: the same.
    size: of a block, if there is memory for it.
    max_gib: memory of one block.

  Raises:
    TheoryError: if a block of one sample takes more than `max_gib`.
  """
  plan, compiled, size = _fitting(plan_of, samples, others, size, max_gib)
  one = _all(plan, samples, others, size, 0, compiled)
  if not kernels.is_sampled(plan.output):
    return one, 0.0
  other = _all(plan, samples, others, size, 1, {})
  apart = float(jnp.linalg.norm(one.entk - other.entk) / jnp.maximum(
      jnp.linalg.norm(one.entk + other.entk), jnp.finfo(plan.dtype).tiny))
  return jax.tree.map(lambda a, b: (a + b) / 2, one, other), apart


def _all(plan: Plan, samples: Samples, others: Samples | None, size: int, seed: int,
         compiled: dict[bool, Program]) -> Found:
  """All blocks; `compiled` has programs of blocks of samples with themselves, or with others."""
  rows = range(0, count_of(samples), size)
  columns = rows if others is None else range(0, count_of(others), size)
  grid: list[list[Found]] = []
  for i, start in enumerate(rows):
    grid.append([])
    for j, first in enumerate(columns):
      if others is None and j < i:  # Kernels of the lazy limit are symmetric.
        grid[-1].append(jax.tree.map(lambda a: a.T, grid[j][i]))
        continue
      same = others is None and i == j
      left = cut(samples, start, size)
      right = cut(samples if others is None else others, first, size)
      if same not in compiled:
        compiled[same] = _compiled(plan, left, same, seed)
      grid[-1].append(jax.tree.map(np.asarray, compiled[same](left, right, dict(plan.variances))))
  shape = count_of(samples), count_of(samples if others is None else others)
  join = lambda *blocks: jnp.asarray(np.block([list(blocks[i * len(columns):(i + 1) * len(columns)])
                                               for i in range(len(rows))])[:shape[0], :shape[1]])
  found = [one for row in grid for one in row]
  _check_finite(found)
  _check_variance(max(float(one.largest) for one in found))
  return jax.tree.map(join, *(one._replace(largest=()) for one in found))


def _check_finite(found: Sequence[Found]) -> None:
  if not all(np.all(np.isfinite(leaf)) for one in found for leaf in jax.tree.leaves(one)):
    raise ConvergenceError(
        'kernels are infinite or NaN: a nonlinearity overflows, or bends too sharply for its '
        'expectations to be found to a part in a million (x / (1 + |x|) does). Scale the samples '
        'to a mean square of about 1, x / jnp.sqrt(jnp.mean(x**2)), or take tanh or erf instead.')


def _check_variance(largest: float) -> None:
  if largest > _REACH:
    raise ConvergenceError(
        f'the largest variance of a pre-activation is {largest:.3g}, and the expectations of its '
        f'nonlinearity are sums that are accurate up to {_REACH:g}. Scale the samples to a mean '
        f'square of about 1, x / jnp.sqrt(jnp.mean(x**2)), draw smaller weights, write factors '
        f'before the product, (x / jnp.sqrt(n)) @ w, as those after it are part of the '
        f'nonlinearity here, or take a ReLU, erf, sin or cos, which are exact at any.')


def _fitting(plan_of: Callable[[int], Plan], samples: Samples, others: Samples | None, size: int,
             max_gib: float) -> tuple[Plan, dict[bool, Program], int]:
  """The plan, a compiled program, and the size of blocks that there is memory for."""
  same = others is None
  while True:
    plan = plan_of(size)
    program = _compiled(plan, cut(samples, 0, size), same, 0)
    needed = _gib(program)
    if needed <= max_gib:
      return plan, {same: program}, size
    if size == 1:
      raise TheoryError(
          f'the kernels of one sample with another take {needed:.3g} GiB, and max_gib allows '
          f'{max_gib:g}: all pairs of positions are needed below a mean over positions. Pass '
          f'smaller images, flatten positions in place of pooling them, or say '
          f'max_gib={math.ceil(needed)}.')
    size = max(1, min(size - 1, math.floor(size * math.sqrt(max_gib / needed))))


def _compiled(plan: Plan, part: Samples, same: bool, seed: int) -> Program:
  """The program of one block; `same`: of samples with themselves."""

  @jax.jit
  def block(left, right, variances):
    return kernels.find(plan.output, plan.credit, (left, right), same, variances, plan.dtype, seed)

  shapes = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in part)
  variances = {name: jax.ShapeDtypeStruct((), jnp.result_type(float)) for name in plan.variances}
  return block.lower(shapes, shapes, variances).compile()


def _gib(program) -> float:
  """Memory that a compiled program takes; 0 where the backend does not tell."""
  found = program.memory_analysis()
  return 0.0 if found is None else (found.temp_size_in_bytes + found.output_size_in_bytes) / 2**30


def count_of(samples: Samples) -> int:
  """How many samples there are."""
  return next(len(one) for one in samples if one.ndim)
