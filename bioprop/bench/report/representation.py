"""A table of what rules did to networks, from the probes of their runs, first -> last:

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
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bioprop import measure
from bioprop.bench.report.measured import Found, feedback, last, mean, natural, of_layers

NOTES = (
    'A(K), A(Φ): alignment of the eNTK, and of the kernel of the last hidden layer, with the '
    'targets, all centred. rank: effective rank of the eNTK. corr: cosine of the signals under '
    'backprop and under the rule, mean over hidden layers and samples. cos(W, B): cosine of '
    'weights and feedback, mean over layers. readout: its share of the trace of the eNTK. moved: '
    '1 − CKA between the first and the last Φ, mean over hidden layers.',
    'An arrow leads from the first measurement to the last.')


def row(run: pathlib.Path, probes: Mapping[str, Sequence[Found]],
        final: Mapping[str, float]) -> dict[str, str]:
  """One run's line: by column, 'first -> last' or one number; '-' where no probe has it.

  Args:
    run: its directory.
    probes: what they found, by type.
    final: the test result.
  """
  accuracy = final.get('test_accuracy')
  over = lambda kind, value: _first_and_last(probes.get(kind, ()), value)
  return {
      'run': '/'.join(run.parts[-2:]),
      'test %': '-' if accuracy is None else f'{100 * accuracy:.1f}',
      'A(K)': over('entk', lambda found: found.get('target_alignment')),
      'A(Phi)': over('features', lambda found: last(found, 'target_alignment')),
      'rank': over('entk', lambda found: found['effective_rank']),
      'corr': over('angles', lambda found: mean(of_layers(found, 'signals')[:-1])),
      'cos(W, B)': over('alignment', feedback),
      'readout': over('entk', _readout),
      'moved': _moved(probes.get('features', ())),
  }


def _first_and_last(found: Sequence[Found], value: Callable[[Found], np.ndarray | None]) -> str:
  values = [value(one) for one in (found[0], found[-1])] if found else [None]
  return '-' if None in values else ' -> '.join(f'{one:.2f}' for one in values)


def _readout(found: Found):
  """The share of the layer that is last by name, its bias included."""
  keys = [key for key in found if key.startswith('share/')]
  top = max(keys, key=natural).rpartition('/')[0]
  return sum(found[key] for key in keys if key.startswith(f'{top}/'))


def _moved(found: Sequence[Found]) -> str:
  if not found:
    return '-'
  first, end = (of_layers(one, 'phi')[1:] for one in (found[0], found[-1]))  # Less the input's own.
  apart = [1 - measure.centred_alignment(*pair) for pair in zip(first, end)]
  return f'{np.mean(apart):.3f}' if apart else '-'
