r"""How networks of several outputs come to their limit as they widen.

    python -m bioprop.bench.widths [--rules=bp,fa,fa:0.5,dfa,hebb] [--depths=1,2] [--outputs=3]
        [--widths=250,1000,4000] [--networks=4] [--copies=8000]

Three samples in six dimensions, random targets, learning rate .12, 12 times, gamma_0 = 1.5 (fa and
dfa 3, hebb .3), tanh. For each rule (fa:0.5 has rho = .5) and depth: the root mean square over
networks of the relative distance of K, over times, samples and all pairs of outputs, from the
theory's; its slope over widths (-.5 is the root); that of the widest networks' mean K, and what the
theory says of its own error.
"""
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from bioprop import theory
from bioprop.bench import wide
from bioprop.bench.accuracy import apart, numbers
from bioprop.training import cli

_GAMMA0 = {'hebb': 0.3, 'fa': 3.0, 'dfa': 3.0}
_RUN = {'learning_rate': 0.12, 'steps': 12}


def data(outputs: int) -> tuple[np.ndarray, np.ndarray]:
  """Inputs [3, 6] of norm sqrt(6), and targets [3, C]."""
  drawn = np.random.RandomState(0)
  x = drawn.standard_normal((3, 6))
  x *= np.sqrt(6) / np.linalg.norm(x, axis=1, keepdims=True)
  return np.float32(x), np.float32(drawn.standard_normal((3, outputs)))


def define_flags() -> None:
  """Defines the flags that the file's head names."""
  flags.DEFINE_list('rules', ['bp', 'fa', 'fa:0.5', 'dfa', 'hebb'], 'Rules, with rho of fa.')
  flags.DEFINE_list('depths', ['1', '2'], 'Hidden layers.')
  flags.DEFINE_list('widths', ['250', '1000', '4000'], 'N.')
  for name, value, least, words in (('outputs', 3, 2, 'C.'), ('networks', 4, 1, 'Seeds.'),
                                    ('copies', 8000, 2, 'S of the theory.')):
    flags.DEFINE_integer(name, value, words, lower_bound=least)


def main(argv):
  """Prints a line a rule and depth."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  depths, widths = numbers('depths'), numbers('widths')
  if len(widths) < 2:
    raise app.UsageError(f'--widths={widths[0]} has no slope. Say --widths=250,1000.')
  with cli.reported():
    for depth in depths:
      for name in flags.FLAGS.rules:
        _row(name, depth, widths)


def _row(name: str, depth: int, widths: list[int]) -> None:
  f, (x, y), (rule, _, rho) = flags.FLAGS, data(flags.FLAGS.outputs), name.partition(':')
  shared = dict(rule=rule, depth=depth, rho=float(rho or 0), gamma0=_GAMMA0.get(rule, 1.5), **_RUN)
  exact, errors = theory.solve_dmft(x, y, samples=f.copies, strict=False, **shared), []
  for width in widths:
    found = [wide.train(x=jnp.asarray(x), y=jnp.asarray(y), width=width, seed=seed, **shared).entk
             for seed in range(f.networks)]
    errors.append(np.sqrt(np.mean([apart(one, exact.between)**2 for one in found])))
  slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
  print(f'{name:<8}depth {depth}: {", ".join(f"{one:.4f}" for one in errors)}; slope {slope:+.2f}; '
        f'mean of the widest {apart(np.mean(found, 0), exact.between):.4f}; theory '
        f'{exact.error["entk"]:.4f}', flush=True)


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
