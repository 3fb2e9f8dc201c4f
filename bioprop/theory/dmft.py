r"""Mean-field theory of networks that learn features, for the user.

    solution = theory.solve_dmft(x, y, depth=2, rule='fa', gamma0=2.0, learning_rate=0.1, steps=100)
    solution.f, solution.entk, solution.phi, solution.error

predicts what width does not change of

    model = MLP(classes=1, hidden=(N,) * 2, activation='tanh', parametrization='mup', gamma0=2.0,
                use_bias=False)

trained on all samples at once, on the loss SUM |f - f_0 - y|^2 / 2, by plain SGD with the learning
rate 0.1 gamma_0^2 N (`model.learning_rate_factor`); or with several outputs, biases, momentum, or
in batches. The equations and how they are solved stand in
bioprop/theory/march.py. Averages over `samples` copies of a neuron have errors that fall as their
square root; independent `replicas` tell how large they are, and a solution whose errors exceed
`tolerance` is not returned unless it is asked for. What replicas share they cannot tell: a bias of
O(1 / samples).
"""
import bisect
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory import asked, checks
from bioprop.theory.activations import Activation, Quadrature
from bioprop.theory.elementwise import as_activation, check_smooth, check_steps
from bioprop.theory.footprint import memory
from bioprop.theory.lazy import PerLayer, lazy_kernels
from bioprop.theory.march import RULES
from bioprop.theory.piecewise import Piecewise
from bioprop.theory.problem import Lazy, Program, Setting
from bioprop.theory.replicas import Average, average, search
from bioprop.theory.responses import sources
from bioprop.theory.solution import Solution
from bioprop.typing import Array, Float, Int, Key


def solve_dmft(
    x: Float[Array, 'P D'],
    targets: Float[Array, 'P ...'],
    *,
    depth: int,
    gamma0: float,
    learning_rate: float,
    steps: int,
    phi: str | Activation | Callable[[Array], Array] = 'tanh',
    rule: str = 'bp',
    rho: float = 0.0,
    loss: str | Callable[[Array, Array], Array] = 'mse',
    weight_variance: PerLayer = 1.0,
    bias_variance: PerLayer = 0.0,
    bias_rate: PerLayer | None = None,
    momentum: float = 0.0,
    batches: Int[Array, 'T-1 B'] | None = None,
    x_test: Float[Array, 'P_test D'] | None = None,
    kernels_at: Sequence[int] | None = None,
    past: str = 'kept',
    samples: int | None = None,
    replicas: int | None = None,
    key: Key | None = None,
    tolerance: float = 0.05,
    strict: bool = True,
    max_gib: float = 4.0,
    without: str = '',
) -> Solution:
  """Solves the mean-field equations of a network.

  Args:
    x: inputs [P, D], of which the theory sees K^x = x . x' / D. Their dtype is that of the march.
    targets: y [P] of one output, or [P, C] of C outputs.
    depth: hidden layers, L.
    gamma0: richness, positive.
    learning_rate: eta, of the sum of losses over samples; the network's is eta gamma_0^2 N.
    steps: T, the number of times; the first is before training, the last after T - 1 steps.
    phi: the nonlinearity: a name, an `Activation`, or an elementwise JAX function.
    rule: 'bp', 'fa', 'dfa', 'hebb', 'gln', or 'align_prop', which is fa with rho = 1.
    rho: correlation of fa's feedback with the initial weights, in [0, 1].
    loss: 'mse', |f - y|^2 / 2; of two outputs or more also 'cross_entropy', - y . log softmax(f);
      or a function of the outputs [C] and targets [C] of one sample (of [] and [] where targets
      are [P]) to a number [].
    weight_variance: s^2, one number or L + 1, from the first layer up, as in `lazy_kernels`. Of
      hebb's and dfa's signals it is no part.
    bias_variance: of the biases at the start, one number or L + 1.
    bias_rate: r, the biases' learning rate over the weights', one number or L + 1. 0: there are
      none that learn; 1: as MLP(use_bias=True); None: bias_variance.
    momentum: of heavy balls, as of `optax.sgd(momentum=)`, in [0, 1).
    batches: which samples each step is of, their indices [T - 1, B]; None: all.
    x_test: inputs [P', D] of samples that are not trained on.
    kernels_at: times, from 0 to T - 1, at which kernels of each layer, of all pairs of outputs, and
      responses are kept; None: all. Those of T P = 40,000 would fill 6 GiB each.
    past: how the past of weights between hidden layers is known, which with one layer there is none
      of. 'kept': the copies' fields at all times, and at least T P copies where there are
      responses. 'summed': a matrix [S, S] that does not grow with T P, for T P too many, and
      responses by regression on at most S / 4 directions of past fields; a past of more is refused.
      What is projected on them is a bias that replicas do not tell: take S many times P. Where phi
      has kinks and K grows tenfold, it was 10% from 'kept'.
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
  x, targets, trained, outputs = asked.data(x, targets, x_test)
  rule, rho, depth, steps, gamma0, learning_rate = checks.training(
      RULES, rule, rho, depth, steps, gamma0, learning_rate)
  tolerance, max_gib = (checks.positive('tolerance', tolerance),
                        checks.positive('max_gib', max_gib))
  asked.check_range(gamma0, x.dtype)
  asked.check_options(loss, outputs, key, without)
  network = [checks.per_layer(name, value, depth + 1) for name, value in (
      ('weight_variance', weight_variance), ('bias_variance', bias_variance),
      ('bias_rate', bias_variance if bias_rate is None else bias_rate))]
  momentum, times = asked.momentum(momentum), asked.times(kernels_at, steps)
  counts = asked.counts(batches, steps, len(x), int(trained.sum()))
  checks.choice('past', past, ('kept', 'summed'))
  given, phi = phi, as_activation(phi)
  if sources(rule, depth) and isinstance(phi, Quadrature):
    check_smooth(phi)  # What it bears in averages is a pole in derivatives.
  if isinstance(phi, Piecewise):
    check_steps(phi)
  size = len(x)
  # Each entry of a field that is derived in needs a copy that carries its derivative.
  entries = steps * size if sources(rule, depth) and past == 'kept' else 0
  least = max(entries, size + 1, (outputs or 1) + 1)
  found = samples is None
  samples = max(1000, least) if found else checks.whole('samples', samples, 1)
  replicas = checks.whole('replicas', (8 if found else 4) if replicas is None else replicas, 2)
  asked.check_copies(samples, least, replicas, steps, size)
  needed = lambda copies: memory(steps, size, depth, copies, rule, x.dtype.itemsize, phi,
                                 outputs or 1, len(times or range(steps)), past) / 2**30
  if needed(samples) > max_gib:
    raise TheoryError(
        f'{steps} times of {size} samples with {samples} copies of {depth} layers need '
        f'{needed(samples):.3g} GiB, and max_gib allows {max_gib:g}. Memory grows as the square of '
        f'times and samples: take fewer of them (steps={max(2, steps // 2)}, '
        f'learning_rate={2 * learning_rate:g}), or fewer copies, samples={least}, or keep kernels '
        f'at fewer times, kernels_at=[0, -1], or their past as sums, past=\'summed\', or say '
        f'max_gib={math.ceil(needed(samples))}.')
  most = samples - 1 + bisect.bisect(range(samples, asked.MOST + 1), max_gib, key=needed)
  numbers = functools.partial(jnp.asarray, dtype=x.dtype)
  setting = Setting(_root(x), targets, trained, *map(numbers, (
      counts, gamma0, learning_rate, rho, momentum, *network)))
  if not isinstance(given, Quadrature):  # Which may be of few terms.
    setting = setting._replace(lazy=_lazy(x, given, rule, rho, depth, network))
  program = Program(rule, phi, depth, steps, samples, loss, ''.join(sorted(without)), outputs,
                    times, past)
  key = jax.random.key(0) if key is None else key
  mean = (search(program, setting, key, replicas, most, tolerance) if found else
          average(program, setting, key, replicas))
  if strict and mean.worst > tolerance:
    raise _inaccurate(mean, tolerance)
  return Solution(
      rule=rule, gamma0=gamma0, rho=rho, learning_rate=learning_rate, trained=int(trained.sum()),
      kernel_times=np.asarray(program.kept), error=mean.error, converged=mean.worst <= tolerance,
      **{name: one for name, one in mean.march._asdict().items() if name != 'missed'})


def _inaccurate(mean: Average, tolerance: float) -> ConvergenceError:
  more = math.ceil(mean.samples * (mean.worst / tolerance)**2)
  return ConvergenceError(
      f'the relative errors of f and of the eNTK are up to {mean.error["f"]:.3g} and '
      f'{mean.error["entk"]:.3g}, and tolerance={tolerance:g}: the averages are over '
      f'{mean.samples} copies in {mean.replicas} replicas, and errors fall as the root of both. '
      f'Say samples={more}, or replicas={math.ceil(mean.replicas * more / mean.samples)}, a larger '
      f'tolerance, or strict=False, and Solution.converged will be False.')


def _root(x: Array) -> Array:
  """[P, P] with K^x = root root^T."""
  kernel = jnp.matmul(x, x.T, precision='highest') / x.shape[1]
  values, vectors = jnp.linalg.eigh(kernel)
  return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]


def _lazy(x, phi, rule, rho, depth, network) -> Lazy:
  """K at the start."""
  weights, biases, rates = network
  layers = lazy_kernels(x, depth, phi, rule, rho=rho, weight_variance=weights,
                        bias_variance=biases, bias_rate=rates).layers
  return Lazy(layers[-1] if rule == 'hebb' else sum(layers), layers[-1] + layers[-2])
