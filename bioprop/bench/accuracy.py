r"""How the error of mean-field theory falls with copies of a neuron, down to that of networks.

    python -m bioprop.bench.accuracy [--rules=bp,fa] [--depths=1,2,3,4] [--copies=250,1000,4000]
        [--activation=scaled_relu] [--width=1000] [--networks=8] [--keys=4]

Four samples in eight dimensions, learning rate .05, 30 times, gamma_0 = 1 (hebb .05, fa, dfa 1.5).
For each rule and depth: the root mean square over keys of the relative distance of the eNTK from
that of four times as many copies as the most in eight replicas; the slope of its logarithm (-.5 is
the root of copies); how far the mean of the networks' eNTKs is from that, and its standard error.
"""
import math

import jax
import numpy as np
from absl import app, flags, logging

from bioprop import theory
from bioprop.bench import wide
from bioprop.bench.dmft import data
from bioprop.bench.theory.dynamics import ACTIVATIONS
from bioprop.training import cli

_GAMMA0 = {'hebb': 0.05, 'fa': 1.5, 'dfa': 1.5}
_RUN = {'learning_rate': 0.05, 'steps': 30}
_SIZE = 4, 8


def apart(one: np.ndarray, other: np.ndarray) -> float:
  """Relative distance."""
  return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def errors(rule: str, depth: int, activation: str, copies: list[int], keys: int
           ) -> tuple[list[float], np.ndarray]:
  """The error with so many copies each, and the eNTK [T, P, P] of many more."""
  x, y = data(*_SIZE)
  phi = ACTIVATIONS.get(activation, (activation,) * 2)[0]

  def entk(samples: int, replicas: int, seed: int) -> np.ndarray:
    return theory.solve_dmft(
        x, y, rule=rule, depth=depth, gamma0=_GAMMA0.get(rule, 1.0), phi=phi, samples=samples,
        replicas=replicas, strict=False, key=jax.random.key(seed), rho=_rho(rule), max_gib=8.0,
        **_RUN).entk

  exact = entk(4 * max(copies), 8, keys)
  found = [[apart(entk(samples, 2, seed), exact)**2 for seed in range(keys)] for samples in copies]
  # Of one replica, of which two are averaged.
  return [float(np.sqrt(2 * np.mean(row))) for row in found], exact


def networks(rule: str, depth: int, activation: str, width: int, count: int) -> np.ndarray:
  """The eNTKs [count, T, P, P] of networks."""
  x, y = data(*_SIZE)
  phi = ACTIVATIONS.get(activation, (activation,) * 2)[1]
  return np.stack([wide.train(
      rule, x, y, width=width, depth=depth, rho=_rho(rule), phi=phi,
      gamma0=_GAMMA0.get(rule, 1.0), seed=seed, **_RUN).entk for seed in range(count)])


def _rho(rule: str) -> float:
  return 0.5 if rule == 'fa' else 0.0


def define_flags() -> None:
  """Defines --rules, --depths, --copies, --activation, --width, --networks and --keys."""
  flags.DEFINE_list('rules', ['bp', 'fa', 'dfa', 'hebb', 'gln'], 'Rules, fa at rho = 0.5.')
  flags.DEFINE_list('depths', ['1', '2', '3', '4'], 'Numbers of hidden layers.')
  flags.DEFINE_list('copies', ['250', '1000', '4000'], 'Copies of a neuron.')
  flags.DEFINE_string('activation', 'scaled_relu', 'As in configs/theory_*.py.')
  for name, value, words in (('width', 1000, 'Of networks.'), ('networks', 8, 'How many.'),
                             ('keys', 4, 'Over which errors are taken.')):
    flags.DEFINE_integer(name, value, words, lower_bound=2)


def numbers(name: str, kind: type = int) -> list:
  """A flag's list as numbers above 0; raises UsageError if it is none."""
  values = flags.FLAGS[name].value
  try:
    found = [kind(one) for one in values]
  except ValueError:
    found = []
  if not found or not all(0 < one < math.inf for one in found):
    what = 'whole numbers' if kind is int else 'numbers'
    raise app.UsageError(f'--{name}={",".join(values)} is no list of {what} above 0. Type for '
                         f'instance --{name}={",".join(flags.FLAGS[name].default)}.')
  return found


def main(argv):
  """Prints the table."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  with cli.reported():
    _table(flags.FLAGS, numbers('copies'), numbers('depths'))


def _table(f, copies: list[int], depths: list[int]) -> None:
  print('| rule | depth | ' + ' | '.join(f'{one} copies' for one in copies)
        + f' | slope | {f.networks} networks of width {f.width} | their standard error |')
  print('|---' * (len(copies) + 5) + '|')
  for rule in f.rules:
    for depth in depths:
      found, exact = errors(rule, depth, f.activation, copies, f.keys)
      slope = np.polyfit(np.log(copies), np.log(found), 1)[0]
      trained = networks(rule, depth, f.activation, f.width, f.networks)
      mean = trained.mean(0)
      noise = np.linalg.norm(trained.std(0, ddof=1)) / f.networks**0.5 / np.linalg.norm(mean)
      shown = ' | '.join(f'{one:.3f}' for one in found)
      far = apart(mean, exact)
      print(f'| {rule} | {depth} | {shown} | {slope:.2f} | {far:.3f} | {noise:.3f} |', flush=True)


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
