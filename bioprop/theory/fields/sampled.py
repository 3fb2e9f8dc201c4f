"""Means of functions of several Gaussians, that have no closed form, over points of a sequence.

A residual network without a weight between two nonlinearities, relu(x + W relu(h)) with x a ReLU's
output, is such. The points are Sobol's, scrambled; their error falls almost as 1 / points, of
functions with kinks as well. Two scrambles tell how large it is.
"""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # Its parts load when they are first used; scipy.stats takes half a second.

from bioprop.errors import TheoryError
from bioprop.theory.fields.bilinear import independent
from bioprop.typing import Array

_POINTS = (512, 8192)  # Least and most, powers of 2.
_VALUES = 2**27  # Of a function, for one kernel, where that allows for the least points.
_ENTRIES = 2**22  # Values that are held at once.


@functools.lru_cache(maxsize=16)
def normals(count: int, dimensions: int, seed: int) -> np.ndarray:
  """Points [count, dimensions], distributed as independent standard normals."""
  sequence = scipy.stats.qmc.Sobol(dimensions, scramble=True, seed=seed)
  uniform = np.clip(sequence.random(count), 1e-12, 1 - 1e-12)
  return scipy.special.ndtri(uniform)


@functools.lru_cache(maxsize=16)
def pairs_of_normals(count: int, pairs: int, seed: int) -> np.ndarray:
  """Points [2 count, 2 pairs], which change places if the second of each pair changes its sign.

  So that exchanging two samples changes nothing.
  """
  points = normals(count, 2 * pairs, seed)
  return np.concatenate([points, points * np.tile([1.0, -1.0], pairs)])


def mean(function, variances, data, seed: int) -> Array:
  """E f(u, ...; data), of independent u with variances [n, *P]."""
  shape = jnp.broadcast_shapes(*(one.shape for one in (*variances, *data)))
  points = jnp.asarray(normals(_count(shape), len(variances), seed), variances[0].dtype)

  def one(row):
    roots, own = row
    atoms = [root * points[:, i] for i, root in enumerate(roots)]
    return jnp.mean(function(*atoms, *(jnp.full_like(points[:, 0], number) for number in own)))

  flat = lambda arrays: tuple(jnp.broadcast_to(a, shape).reshape(-1) for a in arrays)
  roots = flat([jnp.sqrt(jnp.maximum(one, 0)) for one in variances])
  return jax.lax.map(one, (roots, flat(data)), batch_size=_batch(points)).reshape(shape)


def product(moments, a, b, view, pairs: bool, moved) -> Array:
  """E of a product of two functions of atoms, as `Moments.product`.

  Raises:
    TheoryError: if their atoms are not the same, or independent.
  """
  first, second = _atoms(a), _atoms(b)
  atoms = list(dict.fromkeys((*first, *second)))
  _check(atoms)
  arrays = [moments.covariances(u, u, view, pairs) for u in atoms]
  data = [[numbers(moments.numbers(own, side), pairs, len(other.sizes)) for own in _data(leaf)]
          for leaf, other, side, numbers in ((a, b, view.sides[0], view.left),
                                             (b, a, view.sides[1], view.right))]
  shape = jnp.broadcast_shapes(*(one.shape for triple in arrays for one in triple),
                               *(one.shape for own in data for one in own))
  flat = lambda array: jnp.broadcast_to(array, shape).reshape(-1)
  triples = tuple(tuple(map(flat, triple)) for triple in arrays)
  points = jnp.asarray(pairs_of_normals(_count(shape) // 2, len(atoms), moments.seed),
                       moments.dtype)
  f, g = (_derived(leaf, at) for leaf, at in zip((a, b), moved))
  where = [[atoms.index(atom) for atom in own] for own in (first, second)]

  def one(row):
    triples, own = row
    pair = [_pair(*triple, points[:, 2 * i], points[:, 2 * i + 1])
            for i, triple in enumerate(triples)]
    left, right = ([pair[at][side] for at in where[side]] for side in (0, 1))
    constants = [[jnp.full_like(points[:, 0], number) for number in side] for side in own]
    return jnp.mean(f(*left, *constants[0]) * g(*right, *constants[1]))

  data = tuple(tuple(map(flat, own)) for own in data)
  found = jax.lax.map(one, (triples, data), batch_size=_batch(points))
  return found.reshape(shape)


def _pair(aa: Array, ab: Array, bb: Array, plus: Array, minus: Array) -> tuple[Array, Array]:
  """Two Gaussians of these moments, of two independent ones; the last one's sign exchanges them."""
  square = aa * bb
  c = jnp.clip(jnp.where(square > 0, ab / jnp.sqrt(jnp.where(square > 0, square, 1)), 0), -1, 1)
  near = 1 - c < 8 * jnp.finfo(c.dtype).eps
  shared, own = jnp.sqrt((1 + c) / 2), jnp.where(near, 0, jnp.sqrt((1 - c) / 2))
  return (jnp.sqrt(jnp.maximum(aa, 0)) * (shared * plus + own * minus),
          jnp.sqrt(jnp.maximum(bb, 0)) * (shared * plus - own * minus))


def _derived(leaf, at: int | None):
  """A leaf's function of its atoms' values and data, or its derivative in one of the atoms."""
  function = getattr(leaf, 'function', lambda u: u)
  if at is None:
    return function

  def derivative(*arguments):
    values = list(arguments)

    def of_one(value):
      return function(*values[:at], value, *values[at + 1:])

    out, pull = jax.vjp(of_one, values[at])
    return pull(jnp.ones_like(out))[0]

  return derivative


def _atoms(leaf):
  return getattr(leaf, 'atoms', (leaf,))


def _data(leaf):
  return getattr(leaf, 'data', ())


def _check(atoms) -> None:
  for i, u in enumerate(atoms):
    for v in atoms[:i]:
      if not independent(u, v):
        raise TheoryError(
            'two hidden activities are multiplied that depend on several sums of the same others, '
            'and their product has no closed form. Put a weight between them.')


def _count(shape: tuple[int, ...]) -> int:
  """How many points: the fewer the more entries a kernel has."""
  most = max(_VALUES // math.prod(shape), 1)
  return min(max(2**(most.bit_length() - 1), _POINTS[0]), _POINTS[1])


def _batch(points: Array) -> int:
  return max(1, _ENTRIES // points.size)
