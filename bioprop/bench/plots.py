"""Figures. The only module that imports matplotlib."""
import os
import pathlib

from matplotlib.figure import Figure

from bioprop.training import metrics


def curves(workdir: str | os.PathLike, path: str | os.PathLike) -> None:
  """Draws a run's loss and accuracy by epoch, and its test result as a line across.

  Args:
    workdir: the run's directory; its metrics are read.
    path: file to write; the ending gives the format.
  """
  records = metrics.read(workdir)
  epochs = [record for record in records if 'epoch' in record]
  final = next((record for record in records if 'test_loss' in record), None)
  # Figure without pyplot: no display, no global state.
  figure = Figure(figsize=(9, 3.5), layout='constrained')
  for axes, quantity in zip(figure.subplots(1, 2), ('loss', 'accuracy')):
    for split in ('train', 'validation'):
      name = f'{split}_{quantity}'
      points = [(record['epoch'], record[name]) for record in epochs if name in record]
      if points:
        # A run of one epoch is a point, which a line does not show.
        axes.plot(*zip(*points), label=split, marker='.' if len(points) < 20 else '')
    if final:
      value = final[f'test_{quantity}']
      axes.axhline(value, color='gray', linestyle=':', label=f'test {value:.4g}')
    axes.set(xlabel='epoch', ylabel=quantity)
    axes.legend()
  figure.suptitle(pathlib.Path(workdir).name)
  figure.savefig(path)
