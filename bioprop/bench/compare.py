"""Several runs side by side: a table of their results, and their losses in one figure.

    python -m bioprop.bench.compare WORKDIR WORKDIR ... --out=losses.png

Beside runs on a text stand the entropies of the characters that they were trained on: what counting
single characters, and pairs of them, comes to.
"""
import os
import pathlib
from collections.abc import Sequence

from absl import flags

from bioprop import data
from bioprop.bench import plots
from bioprop.errors import WorkdirError
from bioprop.training import cli, metrics, workdir

_COLUMNS = ('epochs', 'train_loss', 'validation_loss', 'test_loss', 'test_accuracy')
_FIT = 'test_r2'  # Of runs on targets, a column where there are such.


def table(runs: Sequence[str | os.PathLike]) -> str:
  """Returns a line for each run: the last epoch's losses, and the test result of finished runs.

  Raises:
    WorkdirError: if a directory holds no run, or a damaged one.
  """
  found = []
  for run in map(pathlib.Path, runs):
    epochs = workdir.config_of(run, 'epochs')['epochs']
    numbers = {'epoch': 0}
    for record in metrics.read(run, epochs):
      numbers.update(record)
    found.append((run, numbers))
  fits = any(_FIT in numbers for _, numbers in found)
  columns = (*_COLUMNS, _FIT) if fits else _COLUMNS
  rows = [('run', *(name.replace('_', ' ') for name in columns))]
  for run, numbers in found:
    rows.append((run.name, str(numbers['epoch']), *(
        f'{numbers[name]:.4f}' if name in numbers else '-' for name in columns[1:])))
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths))
                   for row in rows)


def entropies(runs: Sequence[str | os.PathLike]) -> dict[str, float]:
  """Returns the unigram and bigram entropy of the training text, in nats per character.

  Nothing, unless all runs were trained on the same text.

  Raises:
    WorkdirError: if a directory holds no run.
  """
  configs = [workdir.config_of(run, 'dataset', 'validation') for run in runs]
  texts = {(config['dataset'], config['validation']) for config in configs}
  if len(texts) != 1 or configs[0]['dataset'] != 'characters':
    return {}
  train = data.load('characters', validation=configs[0]['validation']).train
  return {'unigram entropy': data.unigram_entropy(train),
          'bigram entropy': data.bigram_entropy(train)}


def define_flags() -> None:
  """Defines --out."""
  flags.DEFINE_string('out', 'losses.png', 'File of the figure; its ending is the format.')


def main(argv):
  """Prints the table and the entropies, and draws the figure."""
  with cli.reported():
    if not argv[1:]:
      raise WorkdirError('there are no runs to compare. Type for instance: '
                         'python -m bioprop.bench.compare runs/one runs/other --out=losses.png')
    lines = entropies(argv[1:])
    print(table(argv[1:]))
    for name, value in lines.items():
      print(f'{name}: {value:.4f} nats per character')
    plots.losses(argv[1:], flags.FLAGS.out, lines)
  print(f'in {flags.FLAGS.out}')


if __name__ == '__main__':
  define_flags()
  cli.start(main)
