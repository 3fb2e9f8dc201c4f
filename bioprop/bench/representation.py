"""A table of what rules did to networks, from the probes of their runs.

    python -m bioprop.bench.representation WORKDIR ...

For each run, of what its probes found first -> last:

    A(K)        alignment of the eNTK with the targets, both centred
    A(Phi)      the same of the kernel of the last hidden layer
    rank        effective rank of the eNTK
    corr        mean over hidden layers and samples of the cosine of g and g~, the signals that
                arrive at a layer under backprop and under the rule
    cos(W, B)   mean over layers of the cosine of forward weights and feedback; of direct feedback
                with the product of the weights above
    readout     share of the readout in the trace of the eNTK: near 1, only it learns
    moved       1 - CKA between the first and the last Phi, mean over hidden layers
"""
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from bioprop import measure
from bioprop.errors import WorkdirError
from bioprop.training import cli, metrics, probing

Found = Mapping[str, np.ndarray]


def row(run: str | pathlib.Path) -> dict[str, str]:
  """One run's line: by column, 'first -> last' or one number; '-' where no probe has it.

  Raises:
    WorkdirError: if the directory holds no run.
  """
  probes = probing.read_all(run)
  final = next((one for one in metrics.read(run) if 'test_accuracy' in one), {})
  accuracy = final.get('test_accuracy')
  over = lambda kind, value: _first_and_last(probes.get(kind, ()), value)
  return {
      'run': '/'.join(pathlib.Path(run).parts[-2:]),
      'test %': '-' if accuracy is None else f'{100 * accuracy:.1f}',
      'A(K)': over('entk', lambda found: found.get('target_alignment')),
      'A(Phi)': over('features', lambda found: _last(found, 'target_alignment')),
      'rank': over('entk', lambda found: found['effective_rank']),
      'corr': over('angles', lambda found: _mean(_layers(found, 'signals')[:-1])),
      'cos(W, B)': over('alignment', lambda found: _mean(
          _layers(found, 'cosine') or _layers(found, 'direct'))),
      'readout': over('entk', _readout),
      'moved': _moved(probes.get('features', ())),
  }


def _first_and_last(found: Sequence[Found], value: Callable[[Found], np.ndarray | None]) -> str:
  values = [value(one) for one in (found[0], found[-1])] if found else [None]
  return '-' if None in values else ' -> '.join(f'{one:.2f}' for one in values)


def _natural(key: str) -> list[str | int]:
  """Orders names by the numbers in them."""
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', key)]


def _layers(found: Found, name: str) -> list[np.ndarray]:
  """What is there of each layer, from the input up: by name."""
  return [found[key] for key in sorted(found, key=_natural) if key.startswith(f'{name}/')]


def _last(found: Found, name: str):
  return (_layers(found, name) or [None])[-1]


def _mean(values):
  return float(np.mean(values)) if values else None


def _readout(found: Found):
  """The share of the layer that is last by name, its bias included."""
  keys = [key for key in found if key.startswith('share/')]
  last = max(keys, key=_natural).rpartition('/')[0]
  return sum(found[key] for key in keys if key.startswith(f'{last}/'))


def _moved(found: Sequence[Found]) -> str:
  if not found:
    return '-'
  first, last = (_layers(one, 'phi')[1:] for one in (found[0], found[-1]))  # Less the input's own.
  apart = [1 - measure.centred_alignment(*pair) for pair in zip(first, last)]
  return f'{np.mean(apart):.3f}' if apart else '-'


def main(argv):
  """Prints the table."""
  logging.set_verbosity(logging.WARNING)
  with cli.reported():
    if not argv[1:]:
      raise WorkdirError('there are no runs. Type for instance: '
                         'python -m bioprop.bench.representation runs/ntk/*/*')
    rows = [row(run) for run in argv[1:]]
  cells = [list(rows[0]), *(list(one.values()) for one in rows)]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths)) + ' |'
           for line in cells]
  lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  print('\n'.join(lines))


if __name__ == '__main__':
  cli.start(main)
