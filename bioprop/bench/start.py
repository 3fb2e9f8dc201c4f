r"""What it is worth to the mean-field solver that the start is known.

    python -m bioprop.bench.start [--rules=bp,fa,dfa] [--depths=1,2] [--copies=1000]
        [--gamma0=0.05,0.3,1,2] [--replicas=24] [--out=start.png]

The standard deviation over replicas of so many copies, relative to the mean, of f and of K, with
and without the lazy limit's K as what is known of the start; fa has rho = .5. Four samples in six
dimensions, tanh, learning rate .1, 16 times.
"""
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from matplotlib.figure import Figure

from bioprop import theory
from bioprop.bench import plots
from bioprop.bench.accuracy import numbers
from bioprop.bench.dmft import data
from bioprop.theory import checks
from bioprop.theory.march import RULES, march
from bioprop.theory.problem import Lazy, Program, Setting
from bioprop.training import cli

_SIZE, _STEPS = (4, 6), 16


def setting(rule: str, depth: int, gamma0: float) -> Setting:
  """What is solved, the start unknown."""
  checks.choice('rule', rule, RULES)
  x, y = data(*_SIZE)
  values, vectors = jnp.linalg.eigh(x @ x.T / x.shape[1])
  root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
  ones, none = jnp.ones(depth + 1), jnp.zeros(depth + 1)
  rho = 0.5 if rule == 'fa' else 0.0
  return Setting(root, y[:, None], jnp.ones(len(y)), jnp.ones((_STEPS, len(y))),
                 jnp.asarray(gamma0), jnp.asarray(0.1), jnp.asarray(rho), none[0], ones, none, none)


def start(rule: str, depth: int, rho: float) -> Lazy:
  """What is known of it."""
  layers = theory.lazy_kernels(data(*_SIZE)[0], depth, 'tanh', rule, rho=rho).layers
  return Lazy(layers[-1] if rule == 'hebb' else sum(layers), layers[-1] + layers[-2])


def spread(rule: str, depth: int, gamma0: float, copies: int, replicas: int, known: bool
           ) -> tuple[float, float]:
  """The relative standard deviation of f and of K."""
  program = Program(rule, theory.as_activation('tanh'), depth, _STEPS, copies, 'mse')
  on = setting(rule, depth, gamma0)
  on = on._replace(lazy=start(rule, depth, float(on.rho))) if known else on
  found = [march(program, on, key) for key in jax.random.split(jax.random.key(0), replicas)]

  def relative(values):
    values = np.stack(values).astype(np.float64)
    return float(np.sqrt(values.var(0, ddof=1).sum()) / np.linalg.norm(values.mean(0)))

  return relative([one.f for one in found]), relative([one.entk for one in found])


def define_flags() -> None:
  """Defines the flags that the file's head names."""
  flags.DEFINE_list('rules', ['bp', 'fa', 'dfa'], 'Rules.')
  flags.DEFINE_list('depths', ['1', '2'], 'Hidden layers.')
  flags.DEFINE_list('gamma0', ['0.05', '0.3', '1', '2'], 'Richness.')
  flags.DEFINE_integer('copies', 1000, 'S.', lower_bound=2)
  flags.DEFINE_integer('replicas', 24, 'Of copies.', lower_bound=2)
  flags.DEFINE_string('out', None, 'A figure, its ending its format.')


def main(argv):
  """Prints a line a rule, depth and richness, and draws f's."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  f, richness, depths = flags.FLAGS, numbers('gamma0', float), numbers('depths')
  least = _STEPS * _SIZE[0]
  if f.copies < least:
    raise app.UsageError(f'--copies={f.copies} are too few. Say --copies={least}.')
  figure = Figure(figsize=(4 * len(depths), 3.5), layout='constrained')
  with cli.reported():
    for axes, depth in zip(figure.subplots(1, len(depths), squeeze=False)[0], depths):
      for number, rule in enumerate(f.rules):
        _row(axes, f'C{number}', rule, depth, richness)
      axes.set(xlabel='$\\gamma_0$', ylabel='error of f', title=f'depth {depth}')
    axes.legend()
    if f.out:
      plots.save(figure, f.out)


def _row(axes, color: str, rule: str, depth: int, richness: list[float]) -> None:
  f = flags.FLAGS
  pairs = [[spread(rule, depth, gamma0, f.copies, f.replicas, known) for known in (False, True)]
           for gamma0 in richness]
  for gamma0, (without, known) in zip(richness, pairs):
    print(f'{rule} depth {depth} gamma_0 {gamma0:g}: f {without[0]:.4f}, known {known[0]:.4f}; '
          f'K {without[1]:.4f}, known {known[1]:.4f}', flush=True)
  for which, style in enumerate(('--', '-')):
    axes.loglog(richness, [pair[which][0] for pair in pairs], style, color=color,
                label=f'{rule}, start known' if which else rule)


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
