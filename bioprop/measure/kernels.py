r"""What a kernel says about learning: alignment, similarity, spectrum, the lazy limit's outputs.

A kernel is an array: K [n, n], of one output or traced over outputs, or full, K [n, n, C, C], whose
entry [i, j, c, d] is how the error of sample j at output d moves output c of sample i. It need not
be symmetric: of learning rules other than backprop it is not (see measure/tangent.py). While
it stays what it is, the *lazy* limit, a network with the loss SUM |f - y|^2 / 2 learns by

  df / dt = - K (f - y) ,    df_* / dt = - K_* (f - y)

on the training samples and on others, K_* being the kernel of these with the training samples.
"""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import MeasureError
from bioprop.typing import Array, Complex, Float, Int, jitted

# Accelerators would multiply float32 with 10 bits or fewer.
_matmul = functools.partial(jnp.matmul, precision='highest')


def as_matrix(kernel: Array) -> Array:
  """Lays out a kernel as a matrix that acts on flattened outputs.

  Args:
    kernel: [n, m, C, D], or [n, m].

  Returns:
    [n C, m D], with row i C + c for output c of sample i, as in outputs [n, C] after `reshape(-1)`;
    [n, m] as it is.

  Raises:
    MeasureError: if it has another number of axes, or no entries.
  """
  if kernel.ndim not in (2, 4) or not kernel.size:
    raise MeasureError(
        f'a kernel of shape {kernel.shape} is neither [n, n] nor [n, n, C, C] with n > 0. Where '
        f'there are several kernels, as under per_layer, measure one at a time.')
  if kernel.ndim == 2:
    return kernel
  n, m, c, d = kernel.shape
  return kernel.transpose(0, 2, 1, 3).reshape(n * c, m * d)


@jitted
def target_alignment(kernel: Float[Array, 'n n ...'],
                     targets: Float[Array, 'n ...']) -> Float[Array, '']:
  r"""The cosine of a kernel and that of the targets, which would learn them fastest.

  A(K, y y^T) = y^T K y / (|K|_F |y|^2) (Cristianini et al. 2001; Bordelon & Pehlevan 2023, arXiv
  2210.02157). With a kernel [n, n] and several targets it is <K, Y Y^T> / (|K|_F |Y Y^T|_F); for a
  full kernel y is all of the outputs. Targets that are not centred, as one-hot vectors, align with
  a constant kernel: for those also see `centred_alignment(kernel, targets @ targets.T)`.

  Args:
    kernel: [n, n] or [n, n, C, C].
    targets: [n, C]; or [n], with a kernel [n, n].

  Returns:
    The alignment [], in [-1, 1]; NaN if the kernel or the targets are 0.

  Raises:
    MeasureError: if the shapes do not match.
  """
  matrix, y = _square(kernel), _columns(kernel, targets)
  norms = jnp.linalg.norm(matrix) * jnp.linalg.norm(_matmul(y.T, y))
  return jnp.sum(y * _matmul(matrix, y)) / norms


@jitted
def centred_alignment(kernel: Float[Array, 'n n'], other: Float[Array, 'n n']) -> Float[Array, '']:
  """The cosine of two centred kernels H K H, H = 1 - 1/n.

  Cortes, Mohri & Rostamizadeh (2012, JMLR 13). Of Gram matrices of features it is their linear CKA
  (Kornblith et al. 2019, arXiv 1905.00414), with that estimator's bias: independent Gaussian
  features have about p / (p + n), not 0, if there are p of them and n samples.

  Args:
    kernel: [n, n].
    other: [n, n].

  Returns:
    The alignment [], in [-1, 1]; it has no meaning (NaN, or rounding) if a kernel is constant.

  Raises:
    MeasureError: if the kernels are full, not square, or not of the same samples.
  """
  _check_stack(kernel, 'kernel', ())
  _check_stack(other, 'other', ())
  return cka(kernel[None], other[None])[0, 0]


@jitted
def cka(kernels: Float[Array, 'm n n'],
        others: Float[Array, 'l n n'] | None = None) -> Float[Array, 'm l']:
  """The centred alignment of each kernel with each: between layers, or between times.

  Args:
    kernels: [m, n, n].
    others: [m', n, n]; None: the same.

  Returns:
    [m, m'], of `centred_alignment`.

  Raises:
    MeasureError: as `centred_alignment`.
  """
  others = kernels if others is None else others
  _check_stack(kernels, 'kernels', ('m',))
  _check_stack(others, 'others', ('m',))
  if kernels.shape[1] != others.shape[1]:
    raise MeasureError(
        f'kernels of shapes {kernels.shape[1:]} and {others.shape[1:]} are of different samples, '
        f'and are compared entry by entry. Compute both on the same x: entk(true, pseudo, x, '
        f'trace=True).')
  return _matmul(_directions(kernels), _directions(others).T)


@jitted
def spectrum(kernel: Float[Array, 'n n ...']) -> Float[Array, ' modes']:
  """The singular values of a kernel, descending.

  They are the eigenvalues of a kernel that is symmetric and positive, as backprop's is: the rates
  at which its modes are learned. Of others they are the gains from an error to the movement of the
  outputs, which may be elsewhere, and `rates` has the rates.

  Args:
    kernel: [n, n] or [n, n, C, C].

  Returns:
    [n] or [n C].

  Raises:
    MeasureError: if it is not a kernel.
  """
  return jnp.linalg.svd(as_matrix(kernel), compute_uv=False)


def rates(kernel: Float[Array, 'n n ...']) -> Complex[np.ndarray, ' modes']:
  """The eigenvalues of a kernel: the rates of the modes of df / dt = - K (f - y).

  Those with a negative real part grow, and the error with them; those that are not real oscillate.
  NumPy computes them, as JAX would on CPUs alone: this function cannot be under `jax.jit`.

  Args:
    kernel: [n, n] or [n, n, C, C].

  Returns:
    [n] or [n C], complex, by descending real part.

  Raises:
    MeasureError: if the kernel is not square.
  """
  matrix = np.asarray(_square(kernel))
  values = np.linalg.eigvals(matrix).astype(np.result_type(matrix.dtype, np.complex64))
  return values[np.argsort(-values.real, kind='stable')]


@jitted
def effective_rank(kernel: Float[Array, 'n n ...']) -> Float[Array, '']:
  """The number of modes that matter: exp of the entropy of the normalised spectrum.

  Roy & Vetterli (2007, EUSIPCO). It is k where k singular values are equal and the others are 0.

  Args:
    kernel: [n, n] or [n, n, C, C].

  Returns:
    The rank [], from 1 to the matrix's size; NaN if the kernel is 0, which has no modes.

  Raises:
    MeasureError: if it is not a kernel.
  """
  values = spectrum(kernel)
  return jnp.exp(jnp.sum(jax.scipy.special.entr(values / jnp.sum(values))))


@jitted
def kernel_regression(
    kernel: Float[Array, 'n n ...'],
    cross: Float[Array, 'm n ...'],
    targets: Float[Array, 'n ...'],
    *,
    initial: Float[Array, 'n ...'] | None = None,
    initial_test: Float[Array, 'm ...'] | None = None,
    time: float | Float[Array, ''] | None = None,
    ridge: float | Float[Array, ''] = 0.0,
) -> Float[Array, 'm ...']:
  r"""What a network in the lazy limit predicts.

  f_*(t) = f_*(0) + K_* INT_0^t exp(-(K + ridge) s) ds (y - f(0)), which at the end of training is
  f_*(0) + K_* (K + ridge)^-1 (y - f(0)). Here the loss is a sum over samples; under their mean time
  runs n times slower, time / n. The ridge is what weight decay towards the initial parameters, with
  the loss ridge |theta - theta(0)|^2 / 2, leads to, at all times.

  At a finite time the kernel may be singular. Rounding grows as eps |K| t, eps the dtype's, and all
  is NaN where that is 10 or so. At the end a kernel that is singular, or close to it, needs a
  ridge, and training arrives there only if all `rates` have positive real parts.

  Args:
    kernel: of the training samples, [n, n] or [n, n, C, C].
    cross: of the test samples with these, [m, n] or [m, n, C, C]: entk(true, pseudo, x_test, x).
    targets: y, [n, C]; or [n], with a kernel [n, n].
    initial: f(0), like targets; None: 0.
    initial_test: f_*(0), [m, C] or [m]; None: 0.
    time: t; None: the end of training.
    ridge: added to the diagonal of the kernel.

  Returns:
    f_*, [m, C] or [m].

  Raises:
    MeasureError: if the shapes do not match, or there is one initial output without the other.
  """
  matrix, residual = jnp.asarray(_square(kernel)), _columns(kernel, targets)
  shape = cross.shape[:1] + targets.shape[1:]
  if cross.shape[1:] != kernel.shape[1:]:
    raise MeasureError(
        f'cross has the shape {cross.shape}, and is to be [m, n] or [m, n, C, C] as the kernel, of '
        f'shape {kernel.shape}, is, with test samples first: the errors of the training samples '
        f'move their outputs. Compute it as entk(true, pseudo, x_test, x).')
  if initial is not None or initial_test is not None:
    given = [None if f is None else f.shape for f in (initial, initial_test)]
    if given != [targets.shape, shape]:
      raise MeasureError(
          f'the outputs that training starts from have the shapes {given[0]} (initial) and '
          f'{given[1]} (initial_test), and are to have {targets.shape} and {shape}: both, as one '
          f'network gives both. Pass initial=f(x), initial_test=f(x_test).')
    residual = residual - initial.reshape(residual.shape)
  matrix = matrix + jnp.asarray(ridge, matrix.dtype) * jnp.eye(len(matrix), dtype=matrix.dtype)
  if time is None:
    summed = jnp.linalg.solve(matrix, residual)
  else:
    summed = _integral(matrix, residual, jnp.asarray(time, matrix.dtype))
  moved = _matmul(as_matrix(cross), summed).reshape(shape)
  return moved if initial is None else initial_test + moved


@jitted
def classification_error(predictions: Float[Array, 'm c'],
                         labels: Int[Array, ' m']) -> Float[Array, '']:
  """The share of samples whose largest output is not the label's.

  Args:
    predictions: [m, C].
    labels: whole numbers [m].

  Returns:
    The share [], of the predictions' dtype.

  Raises:
    MeasureError: if the shapes do not match.
  """
  if predictions.ndim != 2 or labels.shape != predictions.shape[:1] or not predictions.size:
    raise MeasureError(
        f'predictions of shape {predictions.shape} and labels of shape {labels.shape} are not '
        f'[m, C] and [m] with m > 0. Of one-hot labels pass labels.argmax(-1); of one output whose '
        f'sign decides, jnp.stack([-f, f], -1).')
  chosen = jnp.argmax(predictions, -1)
  return jnp.mean(chosen != jnp.asarray(labels, chosen.dtype), dtype=predictions.dtype)


def _integral(matrix: Array, residual: Array, time: Array) -> Array:
  """INT_0^t exp(-K s) ds r, a block of one exponential, without an inverse (Van Loan 1978)."""
  n, columns = residual.shape
  # At size 1 it does not add to the norm of K t, which sets how often the exponential is squared.
  scale = jnp.maximum(jnp.linalg.norm(residual, 1), jnp.finfo(matrix.dtype).tiny)
  top = jnp.concatenate([-time * matrix, residual / scale], 1)
  flow = jax.scipy.linalg.expm(jnp.pad(top, ((0, columns), (0, 0))),
                               max_squarings=jnp.finfo(matrix.dtype).nmant)
  return time * scale * flow[:n, n:]


def _directions(kernels: Array) -> Array:
  """Centred kernels as unit vectors, [m, n n]."""
  for axis in (1, 2):
    kernels = kernels - jnp.mean(kernels, axis, keepdims=True)
  flat = kernels.reshape(len(kernels), -1)
  return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def _square(kernel: Array) -> Array:
  """The matrix of a kernel of samples with themselves."""
  matrix = as_matrix(kernel)
  if kernel.shape[::2] != kernel.shape[1::2]:
    raise MeasureError(
        f'a kernel of shape {kernel.shape} is not [n, n] or [n, n, C, C]: it is to be of samples '
        f'with themselves. Compute it as entk(true, pseudo, x).')
  return matrix


def _columns(kernel: Array, targets: Array) -> Array:
  """Targets as columns that the kernel's matrix acts on."""
  n, *outputs = kernel.shape[::2]
  if targets.shape[:1] != (n,) or (targets.shape[1:] != tuple(outputs) if outputs
                                   else targets.ndim > 2):
    raise MeasureError(
        f'targets have the shape {targets.shape}, and are to be '
        f'{f"({n}, {outputs[0]})" if outputs else f"({n},) or ({n}, C)"}, as the kernel has the '
        f'shape {kernel.shape}: one for each sample and output. Of labels pass '
        f'jax.nn.one_hot(labels, C).')
  return targets.reshape(math.prod((n, *outputs)), -1)


def _check_stack(kernels: Array, name: str, stack: tuple[str, ...]):
  """Refuses what is not a kernel of samples, or not a stack of such."""
  shape = kernels.shape
  if len(shape) != len(stack) + 2 or shape[-1] != shape[-2] or not kernels.size:
    raise MeasureError(
        f'{name} has the shape {shape}, and is to be [{", ".join((*stack, "n", "n"))}] with n > 0: '
        f'centring is over samples, and undefined over outputs. Trace a full kernel, '
        f'entk(..., trace=True) or jnp.trace(kernel, axis1=-2, axis2=-1), and stack several, '
        f'jnp.stack([kernel, other]).')
