r"""Mean-field theory of networks that learn features, for the user.

    solution = theory.solve_dmft(x, y, depth=2, rule='fa', gamma0=2.0, learning_rate=0.1, steps=100)
    solution.f, solution.entk, solution.phi, solution.error

predicts what width does not change of

    model = MLP(classes=1, hidden=(N,) * 2, activation='tanh', parametrization='mup', gamma0=2.0,
                use_bias=False)

trained on all samples at once, on the loss SUM |f - f_0 - y|^2 / 2, by plain SGD with the learning
rate 0.1 gamma_0^2 N (`model.learning_rate_factor`). The equations and how they are solved stand in
bioprop/theory/march.py. Averages over `samples` copies of a neuron have errors that fall as their
square root; independent `replicas` tell how large they are, and a solution whose errors exceed
`tolerance` is not returned unless it is asked for. What replicas share they cannot tell: a bias of
O(1 / samples).
"""
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory import checks
from bioprop.theory.activations import Activation, Quadrature
from bioprop.theory.elementwise import as_activation, check_smooth, check_steps
from bioprop.theory.march import RULES, Program, Setting
from bioprop.theory.piecewise import Piecewise
from bioprop.theory.replicas import Average, average, search
from bioprop.theory.responses import sources, tangents
from bioprop.theory.solution import Solution
from bioprop.typing import Array, Key

_MOST = 500_000  # Copies: their directions are counted in 32 bits.


def solve_dmft(
    x: Array,
    targets: Array,
    *,
    depth: int,
    gamma0: float,
    learning_rate: float,
    steps: int,
    phi: str | Activation | Callable[[Array], Array] = 'tanh',
    rule: str = 'bp',
    rho: float = 0.0,
    loss: str | Callable[[Array, Array], Array] = 'mse',
    x_test: Array | None = None,
    samples: int | None = None,
    replicas: int | None = None,
    key: Key | None = None,
    tolerance: float = 0.05,
    strict: bool = True,
    max_gib: float = 4.0,
    without: str = '',
) -> Solution:
  """Solves the mean-field equations of a network with one output.

  Args:
    x: inputs [P, D], of which the theory sees K^x = x . x' / D. Their dtype is that of the march.
    targets: y [P].
    depth: hidden layers, L.
    gamma0: richness, positive.
    learning_rate: eta, of the sum of losses over samples; the network's is eta gamma_0^2 N.
    steps: T, the number of times; the first is before training, the last after T - 1 steps.
    phi: the nonlinearity: a name, an `Activation`, or an elementwise JAX function.
    rule: 'bp', 'fa', 'dfa', 'hebb', 'gln', or 'align_prop', which is fa with rho = 1.
    rho: correlation of fa's feedback with the initial weights, in [0, 1].
    loss: 'mse', (f - y)^2 / 2, or a function of one output [] and one target [] to a number [].
    x_test: inputs [P', D] of samples that are not trained on.
    samples: S, copies of a neuron for each replica; None: as many as the tolerance needs, within
      `max_gib`, and then replicas. A bar tells how long it takes where that is long.
    replicas: independent solutions, at least 2; their mean is returned. None: 8, and 4 where
      `samples` is given.
    key: of all random numbers; None: jax.random.key(0). Equal keys give equal solutions.
    tolerance: largest relative error of the outputs and of the eNTK; the true errors are below
      those that are found for 95 of 100 keys (Student's t over the replicas).
    strict: refuse a solution that is not within `tolerance`; otherwise `Solution.converged` tells.
    max_gib: largest memory that may be used, in GiB (2**30 bytes); see `memory`.
    without: response functions that are taken for 0, of 'abcd', to see what they do.

  Functions given as phi or loss are compiled for: pass the same object again, and not a new lambda
  for every call. Other numbers, targets and inputs of the same size compile nothing.

  Returns:
    The solution, on the samples of x and then those of x_test.

  Raises:
    TheoryError: if an argument is out of range, the memory does not suffice, or training diverges.
    ConvergenceError: if the errors exceed `tolerance`, under `strict`; or if training diverges in
      some of the replicas alone.
  """
  x, targets, masked = _data(x, targets, x_test)
  rule, rho, depth, steps, gamma0, learning_rate = checks.training(
      RULES, rule, rho, depth, steps, gamma0, learning_rate)
  tolerance, max_gib = (checks.positive('tolerance', tolerance),
                        checks.positive('max_gib', max_gib))
  _check_range(gamma0, x.dtype)
  _check_options(loss, key, without)
  phi = as_activation(phi)
  if sources(rule, depth) and isinstance(phi, Quadrature):
    check_smooth(phi)  # What it bears in averages is a pole in derivatives.
  if isinstance(phi, Piecewise):
    check_steps(phi)
  size = len(x)
  # Each entry of a field that is derived in needs a copy that carries its derivative.
  least = max(steps * size if sources(rule, depth) else 0, size + 1, 2)
  found = samples is None
  samples = max(1000, least) if found else checks.whole('samples', samples, 1)
  replicas = checks.whole('replicas', (8 if found else 4) if replicas is None else replicas, 2)
  _check_copies(samples, least, replicas, steps, size)
  needed = lambda copies: memory(steps, size, depth, copies, rule, x.dtype.itemsize, phi) / 2**30
  if needed(samples) > max_gib:
    raise TheoryError(
        f'{steps} times of {size} samples with {samples} copies of {depth} layers need '
        f'{needed(samples):.3g} GiB, and max_gib allows {max_gib:g}. Memory grows as the square of '
        f'times and samples: take fewer of them (steps={max(2, steps // 2)}, '
        f'learning_rate={2 * learning_rate:g}), or fewer copies, samples={least}, or say '
        f'max_gib={math.ceil(needed(samples))}.')
  each = (needed(2 * samples) - needed(samples)) / samples
  most = min(_MOST, samples + math.floor((max_gib - needed(samples)) / each))
  scalar = functools.partial(jnp.asarray, dtype=x.dtype)
  setting = Setting(_root(x), (targets, masked), scalar(gamma0), scalar(learning_rate), scalar(rho))
  program = Program(rule, phi, depth, steps, samples, loss, ''.join(sorted(without)))
  key = jax.random.key(0) if key is None else key
  mean = (search(program, setting, key, replicas, most, tolerance) if found else
          average(program, setting, key, replicas))
  if strict and mean.worst > tolerance:
    raise _inaccurate(mean, tolerance)
  return Solution(
      rule=rule, gamma0=gamma0, rho=rho, learning_rate=learning_rate, trained=int(masked.sum()),
      entk=mean.entk, error=mean.error, converged=mean.worst <= tolerance, **mean.march._asdict())


def _inaccurate(mean: Average, tolerance: float) -> ConvergenceError:
  more = math.ceil(mean.samples * (mean.worst / tolerance)**2)
  return ConvergenceError(
      f'the relative errors of f and of the eNTK are up to {mean.error["f"]:.3g} and '
      f'{mean.error["entk"]:.3g}, and tolerance={tolerance:g}: the averages are over '
      f'{mean.samples} copies in {mean.replicas} replicas, and errors fall as the root of both. '
      f'Say samples={more}, or replicas={math.ceil(mean.replicas * more / mean.samples)}, a larger '
      f'tolerance, or strict=False, and Solution.converged will be False.')


def memory(steps: int, size: int, depth: int, samples: int, rule: str, itemsize: int = 4,
           phi: str | Activation | Callable[[Array], Array] = 'tanh') -> int:
  """Bytes that `solve_dmft` needs: O(samples T P depth + depth (T P)^2).

  Args:
    steps: T.
    size: P, samples for training and testing.
    depth: hidden layers.
    samples: copies of a neuron.
    rule: the rule, whose tangents are kept beside the fields.
    itemsize: bytes of a number: 4 in float32.
    phi: the nonlinearity; where it has kinks, fields are kept in place of tangents.
  """
  carried = tangents(rule, depth, as_activation(phi))
  kinds, entries = 1 + len(carried), steps * size
  kept = 0 if carried else depth * len(sources(rule, depth)) * 1.5 * entries * samples
  # Of all layers' phi, g and g~ with their tangents, and once more without; the directions.
  fields = depth * 3 * (kinds + 1.5) * entries * samples + 3 * entries * samples
  # As they are found; and the replicas' mean, the newest, and how far it is away.
  kernels = (4 * depth + 3 * (depth - 1)) * entries**2
  return round(itemsize * (fields + kept + 5 * kernels))


def _root(x: Array) -> Array:
  """[P, P] with K^x = root root^T."""
  kernel = jnp.matmul(x, x.T, precision='highest') / x.shape[1]
  values, vectors = jnp.linalg.eigh(kernel)
  return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]


def _data(x, targets, x_test) -> tuple[Array, Array, Array]:
  """All inputs, their targets (0 where there are none), and which are trained on, 1 or 0."""
  x = checks.inputs(x, 'x')
  targets = checks.targets(targets, len(x)).astype(x.dtype)
  tests = x[:0] if x_test is None else checks.inputs(x_test, 'x_test').astype(x.dtype)
  if tests.shape[1] != x.shape[1]:
    raise TheoryError(f'x_test has {tests.shape[1]} features, and x {x.shape[1]}: give both the '
                      f'same.')
  more = (0, len(tests))
  return tuple(jnp.asarray(one) for one in (
      np.concatenate([x, tests]), np.pad(targets, more), np.pad(np.ones_like(targets), more)))


def _check_copies(samples: int, least: int, replicas: int, steps: int, size: int):
  """Refuses too few copies, and more than can be counted."""
  if samples < least:
    raise TheoryError(
        f'samples={samples} copies are too few for {steps} times of {size} samples: each of the '
        f'{steps * size} entries of a field needs a copy that carries its derivative. Say '
        f'samples={least} or more, or nothing.')
  if samples > _MOST:
    raise TheoryError(f'samples={samples} are more than {_MOST}. Take more replicas instead: '
                      f'samples={_MOST}, replicas={math.ceil(replicas * samples / _MOST)}.')


def _check_range(gamma0: float, dtype: jnp.dtype):
  """Refuses a gamma_0 at which differences that it divides are rounded away, or overflow."""
  least = 1e3 * float(jnp.finfo(dtype).eps)
  if not least <= gamma0 <= 1e6:
    raise TheoryError(
        f'gamma0={gamma0:g} is not between {least:.2g} and 1e6, where {dtype} resolves how '
        f'features move. Below, networks are lazy: say theory.lazy_kernels(x, depth, phi, rule) '
        f'and theory.predict_steps(lazy.entk, y, learning_rate, steps).')


def _check_options(loss, key, without):
  """Refuses what are no loss, key or response functions."""
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  try:
    fits = loss == 'mse' or jax.eval_shape(jax.grad(loss), scalar, scalar).shape == ()
  except Exception:  # Whatever a function of the user's raises.
    fits = False
  if not fits:
    raise TheoryError(f'loss={loss!r} is neither \'mse\' nor a function of one output [] and one '
                      f'target [] that can be differentiated. Say for instance '
                      f'loss=lambda f, y: jnp.abs(f - y)**3.')
  if key is not None and not isinstance(key, jax.Array):
    raise TheoryError(f'key={key!r} is no random key. Say key=jax.random.key(0).')
  if not isinstance(without, str) or set(without) - set('abcd'):
    raise TheoryError(f'without={without!r} names no response functions: they are a, b, c and d. '
                      f'Say for instance without=\'bc\'.')
