"""What is asked of the mean-field solver, as arrays, and what of it is refused."""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory import checks
from bioprop.theory.march import LOSSES
from bioprop.typing import Array

MOST = 500_000  # Copies: their directions are counted in 32 bits.


class Data(NamedTuple):
  """Samples of training and then of testing.

  Attributes:
    x: [n, D].
    targets: [n, C], 0 where there are none.
    trained: [n], 1 where a sample is trained on, 0 elsewhere.
    outputs: C, or None where targets were one number a sample.
  """
  x: Array
  targets: Array
  trained: Array
  outputs: int | None


def data(x, targets, x_test) -> Data:
  """Raises TheoryError if they are no data of one network."""
  x = checks.inputs(x, 'x')
  targets = checks.targets(targets, len(x), outputs=True).astype(x.dtype)
  tests = x[:0] if x_test is None else checks.inputs(x_test, 'x_test').astype(x.dtype)
  if tests.shape[1] != x.shape[1]:
    raise TheoryError(f'x_test has {tests.shape[1]} features, and x {x.shape[1]}: give both the '
                      f'same.')
  more, outputs = (0, len(tests)), targets.shape[1] if targets.ndim == 2 else None
  return Data(*map(jnp.asarray, (
      np.concatenate([x, tests]), np.pad(targets.reshape(len(x), -1), (more, (0, 0))),
      np.pad(np.ones_like(x[:, 0]), more))), outputs)


def counts(batches, steps: int, size: int, trained: int) -> np.ndarray:
  """How often each of all samples is in the batch of each step, [T, n]."""
  found = np.zeros((steps, size))
  if batches is None:
    found[:, :trained] = 1
    return found
  indices = checks.array(batches, 'batches')
  if indices.ndim != 2 or len(indices) != steps - 1 or indices.dtype.kind not in 'iu' or not (
      indices.size and 0 <= indices.min() and indices.max() < trained):
    raise TheoryError(
        f'batches are {indices.dtype} {indices.shape}, and must be whole numbers [{steps - 1}, B]: '
        f'for each of the {steps - 1} steps the samples that it is of, from 0 to {trained - 1}. '
        f'Say for instance batches=numpy.arange({steps - 1} * B).reshape(-1, B) % {trained}.')
  np.add.at(found, (np.arange(steps - 1)[:, None], indices), 1)
  return found


def momentum(value) -> float:
  """A number in [0, 1); raises TheoryError if it is none."""
  number = checks.number_of(value)
  if not 0 <= number < 1:
    raise TheoryError(f'momentum={value!r} is not in [0, 1): it is the share of the last update '
                      f'that the next one keeps. Say for instance momentum=0.9.')
  return number


def times(kernels_at, steps: int) -> tuple[int, ...] | None:
  """The times at which kernels are kept, from the first on; None: all."""
  if kernels_at is None:
    return None
  found = checks.array(kernels_at, 'kernels_at')
  if found.ndim != 1 or not found.size or found.dtype.kind not in 'iu' or not (
      -steps <= found.min() and found.max() < steps):
    raise TheoryError(f'kernels_at={kernels_at!r} are no times of {steps}: give whole numbers from '
                      f'0 to {steps - 1}, or from the last, -1. Say kernels_at=[0, -1].')
  return tuple(sorted({int(one) % steps for one in found}))


def check_copies(samples: int, least: int, replicas: int, steps: int, size: int):
  """Refuses too few copies, and more than can be counted."""
  if samples < least:
    raise TheoryError(
        f'samples={samples} copies are too few for {steps} times of {size} samples: each of the '
        f'{steps * size} entries of a field needs a copy that carries its derivative. Say '
        f'samples={least} or more, or nothing; or past=\'summed\', where they are not carried.')
  if samples > MOST:
    raise TheoryError(f'samples={samples} are more than {MOST}. Take more replicas instead: '
                      f'samples={MOST}, replicas={math.ceil(replicas * samples / MOST)}.')


def check_range(gamma0: float, dtype: jnp.dtype):
  """Refuses a gamma_0 at which differences that it divides are rounded away, or overflow."""
  least = 1e3 * float(jnp.finfo(dtype).eps)
  if not least <= gamma0 <= 1e6:
    raise TheoryError(
        f'gamma0={gamma0:g} is not between {least:.2g} and 1e6, where {dtype} resolves how '
        f'features move. Below, networks are lazy: say theory.lazy_kernels(x, depth, phi, rule) '
        f'and theory.predict_steps(lazy.entk, y, learning_rate, steps).')


def check_options(loss, outputs, key, without):
  """Refuses what are no loss, key or response functions."""
  one = jax.ShapeDtypeStruct(() if outputs is None else (outputs,), jnp.float32)
  try:
    fits = loss == 'mse' or (loss in LOSSES and (outputs or 1) > 1 if isinstance(loss, str) else
                             jax.eval_shape(jax.grad(loss), one, one).shape == one.shape)
  except Exception:  # Whatever a function of the user's raises.
    fits = False
  if not fits:
    raise TheoryError(
        f'loss={loss!r} is neither \'mse\' nor, of two outputs or more, \'cross_entropy\', nor a '
        f'function of one output {list(one.shape)} and one target {list(one.shape)} of a sample '
        f'that can be differentiated, and to a number []. Say for instance '
        f'loss=lambda f, y: jnp.sum(jnp.abs(f - y)**3).')
  if key is not None and not isinstance(key, jax.Array):
    raise TheoryError(f'key={key!r} is no random key. Say key=jax.random.key(0).')
  if not isinstance(without, str) or set(without) - set('abcd'):
    raise TheoryError(f'without={without!r} names no response functions: they are a, b, c and d. '
                      f'Say for instance without=\'bc\'.')
