r"""Outputs over training of a model whose kernel stays what it is: the lazy limit.

Under gradient flow at the rate 1, or by gradient descent of steps eta, of the loss
SUM_i l(f_i, y_i), the outputs on the training samples and on others move by

  df / dt = - K l'(f) ,              df_* / dt = - K_* l'(f) ,
  f(k + 1) = f(k) - eta K l'(f(k)) , f_*(k + 1) = f_*(k) - eta K_* l'(f(k)) ,

l' [n, C] being the loss's gradient in each sample's outputs, K the kernel of the training samples,
one for all outputs, and K_* that of others with these. Models that are linear in their parameters
follow this exactly, networks as their width grows: those of `lazy_kernels` at the learning rate
gamma^2 (Jacot, Gabriel & Hongler 2018, arXiv 1806.07572; Lee et al. 2019, arXiv 1902.06720). Of a
loss that is a mean over samples, time runs n times slower, and eta / n is the rate to give here.
"""
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.ode import odeint

from bioprop.errors import TheoryError
from bioprop.theory import checks
from bioprop.typing import Array, Float

Loss = Callable[[Array, Array], Array]

# Accelerators would multiply float32 with 10 bits or fewer.
_matmul = functools.partial(jnp.matmul, precision='highest')

_LOSSES: dict[str, Loss] = {
    'mse': lambda f, y: jnp.sum(jnp.square(f - y)) / 2,
    'cross_entropy': lambda f, y: -jnp.sum(y * jax.nn.log_softmax(f)),
}


class Outputs(NamedTuple):
  """What a model predicts at T times, or after 0 .. T - 1 steps.

  Attributes:
    train: on the training samples, [T, n, C], or [T, n] where targets are [n].
    test: on others, [T, m, C] or [T, m]; None where there is no cross kernel.
  """
  train: Array
  test: Array | None


def predict(
    kernel: Float[Array, 'n n'],
    targets: Array,
    times: Float[Array, ' T'],
    *,
    loss: str | Loss = 'mse',
    cross: Float[Array, 'm n'] | None = None,
    initial: Array | None = None,
    initial_test: Array | None = None,
    tolerance: float | None = None,
) -> Outputs:
  r"""What gradient flow predicts, at given times.

  Under 'mse' by the kernel's modes, f(t) = f(0) + (1 - exp(-K t)) (y - f(0)). Modes v whose rate is
  within 10 eps of 0, eps that of the dtype and the largest rate 1, learn nothing at any time, nor
  do others by them: K v = 0 is K_* v = 0 where both kernels are one network's. Under other losses
  by Dormand and Prince's method, with steps that keep its own estimate of the error of one step
  within the tolerance.

  It looks at values, and cannot be under `jax.jit`.

  Args:
    kernel: of the training samples, [n, n]; under 'mse' symmetric, as lazy kernels are.
    targets: y, [n, C] or [n]; under 'cross_entropy' probabilities [n, C] or labels [n], whole
      numbers; for a function, what it takes, [n, ...].
    times: t, ascending, from 0 on, [T].
    loss: 'mse', |f - y|^2 / 2; 'cross_entropy', of the softmax of f; or a function that maps a
      sample's outputs [C] (or [] where outputs are [n]) and its target to a number. A sum over
      samples is taken of each.
    cross: of the test samples with the training samples, [m, n], as
      `lazy_kernels(x_test, ..., x2=x).entk`.
    initial: f(0), [n, C] or [n]. None: 0, shaped like the targets; of labels, C is the largest
      plus 1.
    initial_test: f_*(0), [m, C] or [m]; None: 0.
    tolerance: relative to outputs and absolute; of losses but 'mse'. None: 1e-5 in float32, 1e-9 in
      float64.

  Returns:
    The outputs, of the kernel's dtype.

  Raises:
    TheoryError: if shapes do not match, the loss is unknown, times do not ascend, under 'mse' the
      kernel is not symmetric, or the tolerance is what the dtype cannot reach.
  """
  model = _prepared(kernel, targets, loss, cross, initial, initial_test)
  when = np.asarray(times, np.float64)
  if when.ndim != 1 or not when.size or not np.all(np.isfinite(when)) or when[0] < 0 or (
      np.any(np.diff(when) <= 0)):
    raise TheoryError(f'times={times} are to be finite numbers [T] that ascend from 0 or later, as '
                      f'they are passed in turn. Type times=jnp.linspace(0.0, 10.0, 101).')
  dtype = model.kernel.dtype
  if loss == 'mse':
    _check_symmetric(model.kernel)
    train, test = _closed(model, jnp.asarray(when, dtype), *_modes(model.kernel))
  else:
    bound = _tolerance(tolerance, dtype)
    # The solver begins at its first time.
    start = when[0] > 0
    times = jnp.asarray(np.concatenate([[0.0], when]) if start else when, dtype)
    train, test = (f[int(start):] for f in _flow(model, times, bound))
  return Outputs(train, None if cross is None else test)


def predict_steps(
    kernel: Float[Array, 'n n'],
    targets: Array,
    learning_rate: float | Float[Array, ' steps'],
    steps: int,
    *,
    loss: str | Loss = 'mse',
    cross: Float[Array, 'm n'] | None = None,
    initial: Array | None = None,
    initial_test: Array | None = None,
) -> Outputs:
  r"""What gradient descent on all samples predicts, after every step.

  It looks at values, and cannot be under `jax.jit`.

  Args:
    kernel: of the training samples, [n, n]; it need not be symmetric.
    targets: as of `predict`.
    learning_rate: eta, of the sum of the losses, or one for each step, [steps]; of networks of
      `lazy_kernels`, before it is multiplied by gamma^2.
    steps: how many.
    loss: as of `predict`.
    cross: as of `predict`.
    initial: as of `predict`.
    initial_test: as of `predict`.

  Returns:
    The outputs after 0 .. steps steps, of the kernel's dtype.

  Raises:
    TheoryError: if shapes do not match, the loss is unknown, there are no steps, or under 'mse' a
      mode that the flow would learn grows without bound: the largest eta is above the smallest
      2 Re(lambda) / |lambda|^2 of the kernel's eigenvalues, 2 / lambda_max if it is symmetric.
  """
  model = _prepared(kernel, targets, loss, cross, initial, initial_test)
  steps = checks.whole('steps', steps, 1)
  rates = _rates(learning_rate, steps)
  if loss == 'mse':
    _check_rate(model.kernel, float(rates.max()))
  train, test = _steps(model, jnp.asarray(rates, model.kernel.dtype))
  return Outputs(train, None if cross is None else test)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Model:
  """A model with a fixed kernel, and what it learns; without others, m is 0."""
  kernel: Array  # [n, n]
  cross: Array  # [m, n]
  targets: Array
  initial: tuple[Array, Array]  # f(0), f_*(0)
  loss: Loss = dataclasses.field(metadata={'static': True})

  def speed(self, f: Array) -> tuple[Array, Array]:
    """df / dt and df_* / dt."""
    force = -jax.vmap(jax.grad(self.loss))(f, self.targets)
    return _matmul(self.kernel, force), _matmul(self.cross, force)


def _modes(kernel: Array) -> tuple[Array, Array]:
  """The rates [n] of a symmetric kernel, 0 where the dtype cannot tell, and its modes [n, n]."""
  # In float64 whatever the dtype: rates of either sign that rounding makes would grow with time.
  rates, vectors = np.linalg.eigh(np.asarray(kernel, np.float64))
  known = np.abs(rates) > 10 * float(jnp.finfo(kernel.dtype).eps) * np.abs(rates).max()
  return jnp.asarray(np.where(known, rates, 0), kernel.dtype), jnp.asarray(vectors, kernel.dtype)


@jax.jit
def _closed(model: _Model, times: Array, rates: Array, vectors: Array) -> tuple[Array, Array]:
  """Under 'mse', mode by mode: K = U diag(lambda) U^T."""
  initial, initial_test = model.initial
  modes = _matmul(vectors.T, model.targets - initial)
  learned = -jnp.expm1(-times[:, None] * rates[None, :])  # [T, n]
  summed = learned / jnp.where(rates == 0, 1, rates)[None, :]
  at_times = lambda grown: grown.reshape(grown.shape + (1,) * (modes.ndim - 1)) * modes[None]
  moved = lambda maps, grown: jnp.einsum('mn,tn...->tm...', maps, at_times(grown),
                                         precision='highest')
  return (initial[None] + moved(vectors, learned),
          initial_test[None] + moved(_matmul(model.cross, vectors), summed))


@functools.partial(jax.jit, static_argnames='tolerance')
def _flow(model: _Model, times: Array, tolerance: float) -> tuple[Array, Array]:
  return odeint(lambda f, t: model.speed(f[0]), model.initial, times, rtol=tolerance,
                atol=tolerance)


@jax.jit
def _steps(model: _Model, rates: Array) -> tuple[Array, Array]:

  def step(f, rate):
    return jax.tree.map(lambda now, speed: now + rate * speed, f, model.speed(f[0])), f

  last, before = jax.lax.scan(step, model.initial, rates)
  return jax.tree.map(lambda f, end: jnp.concatenate([f, end[None]]), before, last)


def _prepared(kernel: Array, targets: Array, loss: str | Loss, cross: Array | None,
              initial: Array | None, initial_test: Array | None) -> _Model:
  """Checks shapes, and fills in what was not given."""
  kernel, targets = jnp.asarray(kernel), jnp.asarray(targets)
  n = len(kernel) if kernel.ndim else 0
  if kernel.shape != (n, n) or not n or not jnp.issubdtype(kernel.dtype, jnp.floating) or (
      not np.all(np.isfinite(kernel))):
    raise TheoryError(
        f'kernel is {kernel.dtype} {kernel.shape}, and is to be of finite floating numbers, [n, n] '
        f'of n > 0 samples: one for all outputs, as the lazy limit\'s is. Pass '
        f'lazy_kernels(x, depth).entk; a full kernel [n, n, C, C] is for '
        f'bioprop.measure.kernel_regression.')
  cross = jnp.zeros((0, n), kernel.dtype) if cross is None else jnp.asarray(cross, kernel.dtype)
  if cross.ndim != 2 or cross.shape[1] != n:
    raise TheoryError(f'cross has the shape {cross.shape}, and is to be [m, {n}]: test samples '
                      f'first, as the errors of the {n} training samples move their outputs. Pass '
                      f'lazy_kernels(x_test, depth, x2=x).entk.')
  if jnp.issubdtype(targets.dtype, jnp.floating) and not np.all(np.isfinite(targets)):
    raise TheoryError('targets have entries that are infinite or NaN, and so would all outputs '
                      'be. Pass finite ones, or leave these samples out.')
  if targets.shape[:1] != (n,):
    raise TheoryError(f'targets have the shape {targets.shape}, and are to be [{n}] or [{n}, C] as '
                      f'the kernel is of {n} samples. Pass the targets of these alone.')
  targets, shape = _targets(targets, loss, initial, kernel.dtype)
  starts = [jnp.zeros(like) if f is None else jnp.asarray(f) for f, like in (
      (initial, shape), (initial_test, cross.shape[:1] + shape[1:]))]
  if (initial is None) != (initial_test is None) and len(cross) or (
      [f.shape for f in starts] != [shape, cross.shape[:1] + shape[1:]]):
    given = [None if f is None else jnp.shape(f) for f in (initial, initial_test)]
    raise TheoryError(
        f'the outputs that training starts from have the shapes {given[0]} (initial) and '
        f'{given[1]} (initial_test), and are to have {shape} and '
        f'{cross.shape[:1] + shape[1:]}: both where there is a cross kernel, as one network gives '
        f'both. Pass initial=f(x), initial_test=f(x_test).')
  return _Model(kernel, cross, targets, tuple(f.astype(kernel.dtype) for f in starts),
                _LOSSES[loss] if isinstance(loss, str) else loss)


def _targets(targets: Array, loss: str | Loss, initial: Array | None,
             dtype: jnp.dtype) -> tuple[Array, tuple[int, ...]]:
  """Targets as the loss takes them, and the shape of outputs."""
  if isinstance(loss, str) and loss not in _LOSSES or not isinstance(loss, str) and (
      not callable(loss)):
    raise TheoryError(f'loss={loss!r} is none of {", ".join(_LOSSES)}, nor a function that maps '
                      f'outputs [C] of a sample and its target to a number. Type loss=\'mse\' or '
                      f'loss=lambda f, y: jnp.sum(jnp.abs(f - y)**3).')
  whole = jnp.issubdtype(targets.dtype, jnp.integer)
  if loss == 'cross_entropy':
    if targets.ndim == 1 and whole:
      classes = int(targets.max()) + 1 if initial is None else jnp.shape(initial)[-1]
      if not 0 <= targets.min() <= targets.max() < classes:
        raise TheoryError(
            f'labels are from {targets.min()} to {targets.max()}, and are to be from 0 to '
            f'{classes - 1}, as there are {classes} outputs. Pass initial=jnp.zeros((n, C)) of all '
            f'C classes.')
      targets = jax.nn.one_hot(targets, classes, dtype=dtype)
    if targets.ndim != 2 or targets.shape[1] < 2:
      raise TheoryError(
          f'targets of cross_entropy have the shape {targets.shape} (as {targets.dtype}), and are '
          f'to be labels [n], whole numbers, or probabilities [n, C] of at least two classes: of '
          f'one, the softmax is always 1. Pass jax.nn.one_hot(labels, C).')
  elif loss == 'mse' and targets.ndim > 2:
    raise TheoryError(f'targets have the shape {targets.shape}, and are to be [n] or [n, C] as '
                      f'outputs are. Pass targets.reshape(len(targets), -1).')
  shape = targets.shape if initial is None or isinstance(loss, str) else jnp.shape(initial)
  return targets if whole and callable(loss) else targets.astype(dtype), shape


def _rates(learning_rate: float | Array, steps: int) -> np.ndarray:
  """One for each step."""
  if np.ndim(learning_rate) == 0:
    return np.full(steps, checks.positive('learning_rate', learning_rate))
  rates = np.asarray(learning_rate)
  if rates.shape != (steps,) or rates.dtype.kind not in 'fiu' or (
      not np.all(np.isfinite(rates) & (rates >= 0))):
    raise TheoryError(f'learning_rate={learning_rate} (of shape {rates.shape}) must be a number '
                      f'above 0, or {steps} finite numbers of at least 0, one for each of '
                      f'steps={steps}. Type learning_rate=0.1.')
  return rates.astype(np.float64)


def _tolerance(tolerance: float | None, dtype: jnp.dtype) -> float:
  least = 10 * float(jnp.finfo(dtype).eps)
  chosen = (1e-5 if dtype == jnp.float32 else 1e-9) if tolerance is None else tolerance
  if not least <= chosen < 1:
    raise TheoryError(f'tolerance={tolerance} is to be in [{least:.1e}, 1): rounding in '
                      f'{dtype.name} leaves errors that no shorter step would reduce. Type '
                      f'tolerance=1e-5, or pass a kernel in float64 under jax.enable_x64(True).')
  return float(chosen)


def _check_symmetric(kernel: Array) -> None:
  gap, size, symmetric = _symmetry(kernel)
  if not symmetric:
    raise TheoryError(
        f'the kernel is not symmetric (K - K^T has entries of {gap:.3g}, K of {size:.3g}), so that '
        f'its modes are not orthogonal. The lazy limit of every rule is symmetric; of one that was '
        f'measured, call bioprop.measure.kernel_regression(kernel, cross, targets, time=t).')


def _symmetry(kernel: Array) -> tuple[float, float, bool]:
  """The largest entries of K - K^T and of K, and whether the one is rounding beside the other."""
  matrix = np.asarray(kernel)
  gap, size = np.abs(matrix - matrix.T).max(), np.abs(matrix).max()
  return gap, size, bool(gap <= math.sqrt(np.finfo(matrix.dtype).eps) * size)


def _check_rate(kernel: Array, learning_rate: float) -> None:
  matrix = np.asarray(kernel, np.float64)
  # Those of a symmetric matrix take a small part of the time: of 2000 samples it is most of all.
  rates = (np.linalg.eigvalsh if _symmetry(kernel)[2] else np.linalg.eigvals)(matrix)
  learned = rates[rates.real > 1e-6 * np.abs(rates).max()]
  largest = np.min(2 * learned.real / np.abs(learned)**2, initial=np.inf)
  if learning_rate > largest * (1 + 1e-6):
    raise TheoryError(
        f'gradient descent at learning_rate={learning_rate} diverges: a mode of the kernel '
        f'overshoots by more at each step, and the largest rate at which none does is '
        f'{largest:.6g} (2 / lambda_max of a symmetric kernel). Type '
        f'learning_rate={largest / 2:.3g}.')
