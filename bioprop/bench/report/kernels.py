"""Kernel matrices of several rules, before and after training."""
from collections.abc import Iterator, Mapping

import numpy as np

from bioprop.bench import plots, style
from bioprop.bench.report import series
from bioprop.bench.report.blocks import Picture
from bioprop.bench.report.measured import Measured, natural

_SIDE = 1.25  # Inches.


def pictures(measured: Measured, where: str) -> Iterator[Picture]:
  """Yields the eNTK, and the kernel of the last hidden layer, of one seed of each rule.

  Args:
    measured: of one setting.
    where: the setting, for the titles.
  """
  for kind, name, words in (('entk', 'entk', 'eNTK'), ('features', 'phi', 'last Φ')):
    rows = {}
    for label, cell in series.labelled(measured.cells).items():
      found = next((found for run in cell.finished or cell.runs
                    if (found := measured.of(run, kind))), None)
      if found:
        rows[label] = [(int(one['step']), one[_key(one, kind)]) for one in (found[0], found[-1])]
        labels = found[0]['labels']
    if rows:
      yield Picture(f'kernels-{name}', f'The {words} of the first seed at the start and at the '
                    f'end, {where}, each divided by its largest entry; examples are ordered by '
                    'class.',
                    f'Matrices of {words}, a row for each rule ({", ".join(rows)}), at the start '
                    'and at the end of training.', _grid(rows, labels, words))


def _key(found: Mapping[str, np.ndarray], kind: str) -> str:
  return 'kernel' if kind == 'entk' else max(
      (key for key in found if key.startswith('phi/')), key=natural)


def _scaled(kernel: np.ndarray) -> np.ma.MaskedArray:
  """Its largest entry is 1; what is not finite is left out, and nothing but zeros stays so."""
  there = np.ma.masked_invalid(kernel)
  largest = np.ma.filled(np.abs(there).max(), 0.0)
  return there / (float(largest) or 1.0)


def _grid(rows, labels, words):
  """One scale for all; a tick in the middle of each class."""
  scaled = {label: [(step, _scaled(kernel)) for step, kernel in pair]
            for label, pair in rows.items()}
  low = min(0.0, *(float(np.ma.filled(kernel.min(), 0.0))
                   for pair in scaled.values() for _, kernel in pair))
  figure = style.panel(_SIDE * len(rows) + 0.3)
  grid = figure.subplots(len(rows), 2, squeeze=False)
  for line, (label, pair) in zip(grid, scaled.items()):
    for axes, (step, kernel) in zip(line, pair):
      image = axes.imshow(kernel, vmin=low, vmax=1, cmap='cividis', interpolation='nearest')
      axes.set_title(f'{label}, step {step}', fontsize=7)
      axes.spines[:].set_visible(False)
      plots.mark_classes(axes, labels)
  figure.colorbar(image, ax=grid, label=f'{words} / its largest entry', aspect=30 * len(rows) / 2)
  return figure
