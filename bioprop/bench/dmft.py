r"""Time of the mean-field solver, beside the iteration that papers describe.

    python -m bioprop.bench.dmft [--steps=100] [--samples=10] [--depth=3] [--copies=1000]

The defaults are the predecessor's setting (arXiv 2205.09653: T = 100, P = 10, depth 3, S = 1000, 20
iterations). Both take the kernels from so many copies of a neuron. The straightforward iteration
(bioprop/bench/fixed_point.py) costs hours there: it is timed with --directions of its T P
derivatives and with twice as many, and the rest follows, as all cost the same. Compiling is left
out.
"""
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from bioprop import theory
from bioprop.bench import fixed_point
from bioprop.training import cli

_ITERATIONS = 20


def data(samples: int, features: int) -> tuple[jax.Array, jax.Array]:
  """Inputs of norm sqrt(features), and targets +1 and -1."""
  drawn = np.random.RandomState(0)
  x = drawn.standard_normal((samples, features))
  x *= np.sqrt(features) / np.linalg.norm(x, axis=1, keepdims=True)
  return jnp.asarray(x, jnp.float32), jnp.asarray(np.arange(samples) % 2 * 2 - 1, jnp.float32)


def solver_seconds(x, y, depth: int, steps: int, copies: int, rule: str) -> float:
  """Time of one replica of `theory.solve_dmft`: half of the two that it needs for its errors."""
  solve = lambda seed: theory.solve_dmft(
      x, y, depth=depth, gamma0=1.0, learning_rate=1 / len(y), steps=steps, rule=rule,
      samples=copies, replicas=2, strict=False, key=jax.random.key(seed))
  solve(0)
  began = time.perf_counter()
  solve(1)
  return (time.perf_counter() - began) / 2


def iteration_seconds(x, y, depth: int, steps: int, copies: int,
                      directions: int) -> tuple[float, float]:
  """Time of one iteration, and what of it one direction takes."""
  kx = x @ x.T / x.shape[1]
  times = []
  for count in (directions, 2 * directions):
    run = lambda key, count=count: jax.block_until_ready(fixed_point.iterate(
        fixed_point.begin(kx, depth, steps), y, key, phi=jnp.tanh, gamma0=1.0, rate=1 / len(y),
        samples=copies, damping=0.7, directions=count))
    run(jax.random.key(0))
    began = time.perf_counter()
    run(jax.random.key(1))
    times.append(time.perf_counter() - began)
  each = max(times[1] - times[0], 0.0) / directions
  return times[0] + (steps * len(y) - directions) * each, each


def define_flags() -> None:
  """Defines --steps, --samples, --depth, --copies, --directions and --rules."""
  for name, value, least, words in (
      ('steps', 100, 2, 'T, times.'), ('samples', 10, 1, 'P.'), ('depth', 3, 1, 'Hidden layers.'),
      ('copies', 1000, 2, 'S, copies of a neuron.'),
      ('directions', 4, 1, 'Of the T P derivatives of the iteration, how many are timed.')):
    flags.DEFINE_integer(name, value, words, lower_bound=least)
  flags.DEFINE_list('rules', ['bp', 'fa', 'dfa', 'hebb'], 'Rules to time the solver under.')


def main(argv):
  """Prints the times."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  f = flags.FLAGS
  if 2 * f.directions > f.steps * f.samples:
    raise app.UsageError(f'--directions={f.directions}, and twice as many are timed, but there are '
                         f'{f.steps * f.samples}: say --directions=1.')
  x, y = data(f.samples, 25)
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}: T={f.steps}, P={f.samples}, '
        f'depth {f.depth}, S={f.copies}')
  seconds = {}
  for rule in f.rules:
    seconds[rule] = solver_seconds(x, y, f.depth, f.steps, f.copies, rule)
    gib = theory.memory(f.steps, f.samples, f.depth, f.copies, rule) / 2**30
    print(f'{"solve_dmft " + rule:<24}{seconds[rule]:>12.2f} s{gib:>10.2f} GiB', flush=True)
  iteration, each = iteration_seconds(x, y, f.depth, f.steps, f.copies, f.directions)
  print(f'{"one iteration, bp":<24}{iteration:>12.2f} s, of which one direction {each:.3f} s')
  total = _ITERATIONS * iteration
  over = f', {total / seconds["bp"]:.0f} times solve_dmft' if 'bp' in seconds else ''
  print(f'{f"{_ITERATIONS} iterations, bp":<24}{total:>12.2f} s{over}')


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(rules=True, arguments=False))
