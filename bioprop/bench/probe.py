"""Measures networks of runs that are over, or were interrupted, at their checkpoints.

    bioprop probe WORKDIR ... --type=entk --batch=64 [--name=NAME] [--block=N] [--data_dir=DIR]
    bioprop probe WORKDIR --config=own.py    # of a rule or a model that this file of yours adds

As if the run had had config.probes.NAME = dict(type='entk', batch=64): the files are
WORKDIR/probes/NAME/<step>.npz, of the same training examples, and the pictures are drawn anew, of
the run's own probes first. A run keeps its last config.keep checkpoints; what it began with is made
again from its configuration. Nothing that was measured is written over, and the run can go on.

Types: entk, the effective neural tangent kernel; features, the kernels of each layer; angles, of
pseudogradients and gradients; alignment, of feedback and weights; theory, the network beside its
limit of infinite width.
"""
import pathlib
import re

import numpy as np
from absl import flags, logging

from bioprop.bench import pictures
from bioprop.errors import ConfigError, WorkdirError
from bioprop.models import MODELS
from bioprop.probes import PREDICTED, TYPES
from bioprop.rules import RULES
from bioprop.training import afterwards, cli, configs, workdir

PROGRAM = cli.PLAIN


def define_flags() -> None:
  """Defines --type, --batch, --block, --name and --data_dir."""
  flags.DEFINE_enum('type', 'entk', [*TYPES, *PREDICTED], 'What is measured.')
  flags.DEFINE_integer('batch', 64, 'Training examples to measure on, as many of each class.', 1)
  flags.DEFINE_integer('block', None, 'So many derivatives are held at once; without: all.', 1)
  flags.DEFINE_string('name', None, 'Folder of the files in WORKDIR/probes; without: the type.')
  flags.DEFINE_string('config', None, 'A configuration that adds a rule or a model; its values are '
                      'not used.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def main(argv):
  """Measures each run, prints the scalars of its network, and draws its pictures."""
  logging.set_verbosity(logging.WARNING)
  options = {'type': flags.FLAGS.type, 'batch': flags.FLAGS.batch}
  if flags.FLAGS.block is not None:
    options['block'] = flags.FLAGS.block
  with cli.reported():
    if not argv[1:]:
      raise WorkdirError('there are no runs to measure. Type for instance: '
                         'bioprop probe runs/one --type=entk')
    name = flags.FLAGS.name or flags.FLAGS.type
    if not re.fullmatch(r'\w[\w.+=-]*', name):
      raise ConfigError(f'--name is {name!r}, and is to be that of a folder, of letters, '
                        f'digits and ._+=-. Type for instance --name={flags.FLAGS.type}-2.')
    if flags.FLAGS.config:
      configs.load(flags.FLAGS.config)
    for run in map(pathlib.Path, argv[1:]):
      _check_known(run)
      _measure(run, name, options)


def _check_known(run):
  found = workdir.config_of(run, 'rule', 'model')
  for name, known in (('rule', RULES), ('model', MODELS)):
    if found[name] not in known:
      raise ConfigError(f'{run} has the {name} {found[name]!r}, and bioprop has none of this name. '
                        'Where a configuration of yours adds it, name that file too: '
                        f'bioprop probe {run} --config={found[name]}.py')


def _measure(run, name, options):
  moments = []
  for moment in afterwards.measure(run, name, options, flags.FLAGS.data_dir):
    moments.append(moment)
    print(f'{run}: {_said(moment)}', flush=True)
  kept = ', '.join(str(moment.epoch) for moment in moments if moment.epoch)
  there = f'and checkpoints of epochs {kept}' if kept else 'and no checkpoint'
  print(f'{run}: the start {there} are all that there is. To keep more, train with a larger '
        '--config.keep.')
  for file in pictures.draw(run, run):
    print(file)


def _said(moment):
  """'epoch 2, step 14: effective_rank 3.2': what is of the whole network."""
  at = f'epoch {moment.epoch}, step {moment.step}' if moment.epoch else 'the start'
  if moment.measured is None:
    return f'{at} is measured already'
  whole = [f'{key} {value:.4g}' for key, value in moment.measured.found.items()
           if value.ndim == 0 and '/' not in key and np.isfinite(value)]
  return f'{at}: {", ".join(whole) or "measured"}'


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
