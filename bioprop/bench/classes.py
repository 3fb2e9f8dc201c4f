r"""Ten classes of images at infinite width: what it takes, and networks beside it.

    python -m bioprop.bench.classes [--dataset=mnist] [--samples=200] [--steps=200] [--depth=2]
        [--copies=8000] [--replicas=4] [--rules=bp,dfa] [--width=2000] [--networks=2]

The first images of the training set, less the mean image and at norm sqrt(D); one-hot targets,
cross-entropy, gamma_0 = 1 (hebb .1), the learning rate --rate over the samples; `past='summed'`,
kernels at the first and the last time. Told: the memory that `theory.memory` says beforehand and
the process's most so far, time, errors, the mean loss at the end and how far the networks' outputs
and their mean are.
"""
import resource
import time

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from bioprop import data, theory
from bioprop.bench import wide
from bioprop.training import cli


def images(name: str, data_dir: str | None, samples: int) -> tuple[np.ndarray, np.ndarray]:
  """Inputs [P, D] and one-hot targets [P, C]."""
  found = data.load(name, data_dir=data_dir, validation=0)
  x = found.train.images[:samples].reshape(samples, -1).astype(np.float32)
  x -= x.mean(0, keepdims=True)
  x *= np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
  return x, np.eye(found.num_classes, dtype=np.float32)[found.train.labels[:samples]]


def cross_entropy(f: np.ndarray, y: np.ndarray) -> float:
  """Mean over samples."""
  return float(np.mean(np.logaddexp.reduce(f, -1) - np.sum(f * y, -1)))


def define_flags() -> None:
  """Defines the flags that the file's head names."""
  flags.DEFINE_string('dataset', 'mnist', 'Images, as data.load names them.')
  flags.DEFINE_string('data_dir', None, 'Where they are.')
  for name, value, least, words in (
      ('samples', 200, 2, 'P.'), ('steps', 200, 2, 'T.'), ('depth', 2, 1, 'Hidden layers.'),
      ('copies', 8000, 2, 'S.'), ('replicas', 4, 2, 'Of copies.'), ('width', 2000, 1, 'N.'),
      ('networks', 2, 0, 'Seeds.')):
    flags.DEFINE_integer(name, value, words, lower_bound=least)
  flags.DEFINE_float('rate', 0.5, 'Learning rate times samples.', lower_bound=1e-9)
  flags.DEFINE_float('rho', 0.0, 'Of fa.', lower_bound=0.0, upper_bound=1.0)
  flags.DEFINE_list('rules', ['bp', 'dfa'], 'Rules.')


def main(argv):
  """Prints a line a rule."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  f = flags.FLAGS
  if f.samples >= f.copies:
    raise app.UsageError(f'--copies={f.copies} are to be many times --samples={f.samples}: say '
                         f'--copies={10 * f.samples}.')
  with cli.reported():
    x, y = images(f.dataset, f.data_dir, f.samples)
    for rule in f.rules:
      _row(rule, x, y)


def _row(rule: str, x: np.ndarray, y: np.ndarray) -> None:
  f = flags.FLAGS
  shared = dict(depth=f.depth, gamma0=0.1 if rule == 'hebb' else 1.0, steps=f.steps, rule=rule,
                learning_rate=f.rate / f.samples, loss='cross_entropy',
                rho=f.rho if rule == 'fa' else 0.0)
  told = theory.memory(f.steps, f.samples, f.depth, f.copies, rule, outputs=y.shape[1], kernels=2,
                       past='summed') / 2**30
  began = time.perf_counter()
  found = theory.solve_dmft(x, y, kernels_at=[0, -1], past='summed', samples=f.copies,
                            replicas=f.replicas, strict=False, max_gib=told + 1, **shared)
  seconds = time.perf_counter() - began
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  moved = np.linalg.norm(found.entk[-1] - found.entk[0]) / np.linalg.norm(found.entk[0])
  print(f'{rule}: told {told:.2f} GiB, most {most:.2f} GiB, {seconds:.0f} s; errors of f '
        f'{found.error["f"]:.3f}, of K {found.error["entk"]:.3f}; loss '
        f'{cross_entropy(found.f[0], y):.3f} to {cross_entropy(found.f[-1], y):.3f}, K moved by '
        f'{moved:.2f}', flush=True)
  outputs = [wide.outputs(x=jnp.asarray(x), y=jnp.asarray(y), width=f.width, seed=seed, **shared)
             for seed in range(f.networks)]
  if outputs:
    size = np.linalg.norm(found.f)
    each = np.mean([np.linalg.norm(one - found.f) for one in outputs]) / size
    print(f'{rule}: {f.networks} networks of width {f.width}: f is {each:.3f} away, their mean '
          f'{np.linalg.norm(np.mean(outputs, 0) - found.f) / size:.3f}', flush=True)


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
