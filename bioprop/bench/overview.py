r"""The picture of README: rules, their kernels, and what theory predicts of both.

    python -m bioprop.bench.overview [--out=overview.png] [--rules=bp,fa,dfa,hebb]
        [--width=2000] [--seeds=4] [--steps=60]

Two classes of scikit-learn's digits, a network of two hidden layers of tanh units in the 'mup'
parametrisation at gamma_0 = 2, trained by gradient descent under each rule. Marks are networks,
means over seeds; lines the mean-field theory of infinite width (Bordelon & Pehlevan 2023, arXiv
2210.02157), which is told the samples and nothing of the networks. Kernels are effective eNTKs
after the last step, samples ordered by class.
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bioprop import measure, theory
from bioprop.bench import plots, style, wide
from bioprop.training import cli

_SAMPLES, _CLASSES = 12, (3, 8)
_SETTING = {'depth': 2, 'gamma0': 2.0, 'learning_rate': 0.02, 'phi': 'tanh'}
_NAMES = {'bp': 'backprop', 'fa': 'feedback alignment', 'dfa': 'direct feedback', 'hebb': 'Hebb',
          'gln': 'gated linear'}


def data() -> tuple[np.ndarray, np.ndarray]:
  """Digits [P, 64] of two classes, centred and of norm sqrt(64), and targets [P] of -1 and 1."""
  from sklearn.datasets import load_digits
  images, labels = load_digits(return_X_y=True)
  half = _SAMPLES // 2
  x = np.concatenate([images[labels == one][:half] for one in _CLASSES])
  x = x - x.mean(0, keepdims=True)
  x = x * np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
  return np.asarray(x, np.float32), np.repeat(np.asarray([-1, 1], np.float32), half)


def courses(rule: str, width: int, seeds: int, steps: int) -> dict[str, tuple]:
  """(f [T, P], K [T, P, P]) of 'network', the mean over seeds, and of 'theory'."""
  x, y = data()
  solution = theory.solve_dmft(x, y, rule=rule, steps=steps, **_SETTING)
  networks = [wide.train(rule, x, y, width=width, steps=steps, seed=seed, **_SETTING)
              for seed in range(seeds)]
  mean = lambda name: np.mean([getattr(one, name) for one in networks], 0)
  return {'network': (mean('f'), mean('entk')), 'theory': (solution.f, solution.entk)}


def draw(found: Mapping[str, Mapping[str, tuple]]) -> Figure:
  """Loss, alignment of the kernel with the targets, and the last kernels, of each rule."""
  y = data()[1]
  targets = jnp.asarray(np.outer(y, y))
  looks = style.looks(found)
  figure = Figure(figsize=(9.2, 2.8), dpi=200, layout='constrained')
  left, right = figure.subfigures(1, 2, width_ratios=(1.35, 1))
  losses, alignments = left.subplots(1, 2)
  for rule, course in found.items():
    for who, (f, kernel) in course.items():
      look = dict(looks[rule], label=_NAMES.get(rule, rule))
      if who == 'network':
        look |= {'linestyle': '', 'label': None, 'markevery': max(1, len(f) // 10), 'zorder': 3}
      else:
        look |= {'marker': '', 'linestyle': '-'}
      losses.plot(np.square(f - y).mean(1), **look)
      alignments.plot(jax.vmap(measure.target_alignment, (0, None))(
          jnp.asarray(kernel, jnp.float32), targets), **look)
  losses.set(title='The rule: how it learns', xlabel='step', ylabel='mean square error',
             ylim=(0, None))
  alignments.set(title='The kernel: how it aligns', xlabel='step', ylabel='eNTK–target alignment')
  handles, labels = losses.get_legend_handles_labels()
  handles += [Line2D([], [], color='grey', marker='o', linestyle=''),
              Line2D([], [], color='grey')]
  losses.legend(handles, [*labels, 'networks', 'theory'])
  grid = right.subplots(2, len(found), squeeze=False)
  for column, (rule, course) in zip(grid.T, found.items()):
    top = max(abs(kernel[-1]).max() for _, kernel in course.values())
    for axes, (_, kernel) in zip(column, course.values()):
      axes.imshow(kernel[-1], cmap='PuOr_r', vmin=-top, vmax=top)
      axes.set(xticks=[], yticks=[])
      axes.spines[:].set_visible(True)
    column[0].set_title(rule)
  for axes, who in zip(grid[:, 0], ('networks', 'theory')):
    axes.set_ylabel(who)
  right.suptitle('The theory: the eNTK after training', fontsize=8)
  return figure


def define_flags() -> None:
  """Defines the flags that the file's head names."""
  flags.DEFINE_list('rules', ['bp', 'fa', 'dfa', 'hebb'], 'Rules that theory.solve_dmft knows.')
  flags.DEFINE_integer('width', 2000, 'Of the networks.', lower_bound=1)
  flags.DEFINE_integer('seeds', 4, 'Networks for each rule.', lower_bound=1)
  flags.DEFINE_integer('steps', 60, 'Of gradient descent.', lower_bound=2)
  flags.DEFINE_string('out', 'overview.png', 'The figure, its ending its format.')


def main(argv):
  """Trains, solves, draws, and prints how far theory and networks are from each other."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  f = flags.FLAGS
  with cli.reported():
    found = {rule: courses(rule, f.width, f.seeds, f.steps) for rule in f.rules}
    for rule, course in found.items():
      apart = [np.linalg.norm(a - b) / np.linalg.norm(b)
               for a, b in zip(course['network'], course['theory'])]
      print(f'{rule}: networks and theory differ by {apart[0]:.3f} (f) and {apart[1]:.3f} (eNTK) '
            f'of their norm')
    with style.for_print():
      plots.save(draw(found), f.out)
  print(f'{f.out} has the picture')


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
