"""The figure of a run's losses and scores, and what figures have in common."""
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bioprop.bench import style
from bioprop.errors import WorkdirError
from bioprop.training import files, metrics

_CLASSES = 20  # That are named at the side of a matrix.


def save(figure: Figure, path: str | os.PathLike) -> None:
  """Writes a figure, whole or not at all, over what is there; its ending gives the format.

  Raises:
    WorkdirError: if there is no such format, or the file cannot be written.
  """
  kind = pathlib.Path(path).suffix[1:]
  kinds = figure.canvas.get_supported_filetypes()
  if kind not in kinds:
    raise WorkdirError(f'cannot draw {path}: its ending is none of a format of figures. Valid: '
                       f'{", ".join(kinds)}. Type for instance '
                       f'{pathlib.Path(path).with_suffix(".png")}.')
  try:
    with files.replacing(path) as file:
      figure.savefig(file, format=kind)
  except OSError as error:
    raise WorkdirError(f'cannot draw {path}: {error.strerror or error}. What it shows is where it '
                       'was; draw it into a file in a directory that you can write to.') from error


def curves(workdir: str | os.PathLike, path: str | os.PathLike) -> None:
  """Draws a run's loss and accuracy (of targets: R^2) by epoch, and its test result across.

  Args:
    workdir: the run's directory; its metrics are read.
    path: file to write; the ending gives the format.

  Raises:
    WorkdirError: if the metrics are damaged, or the file cannot be written.
  """
  figure = curves_of(workdir)
  figure.suptitle(pathlib.Path(workdir).name)
  save(figure, path)


def curves_of(workdir: str | os.PathLike) -> Figure:
  """Returns the figure of `curves`, without its title.

  Raises:
    WorkdirError: if the metrics are damaged.
  """
  records = metrics.read(workdir)
  epochs = [record for record in records if 'epoch' in record]
  final = next((record for record in records if 'test_loss' in record), None)
  score = 'r2' if any('train_r2' in record for record in epochs) else 'accuracy'
  # Figure without pyplot: no display, no global state.
  with style.distinct():
    figure = Figure(figsize=(9, 3.5), layout='constrained')
    for axes, quantity in zip(figure.subplots(1, 2), ('loss', score)):
      for split in ('train', 'validation'):
        name = f'{split}_{quantity}'
        points = [(record['epoch'], record[name]) for record in epochs if name in record]
        if points:
          # A run of one epoch is a point, which a line does not show.
          axes.plot(*zip(*points), label=split, marker='.' if len(points) < 20 else '')
      if final:
        value = final[f'test_{quantity}']
        axes.axhline(value, color='gray', linestyle=':', label=f'test {value:.4g}')
      axes.set(xlabel='epoch', ylabel='$R^2$' if quantity == 'r2' else quantity)
      count_epochs(axes, [record['epoch'] for record in epochs])
      axes.legend()
  return figure


def count_epochs(axes: Axes, epochs: Sequence[int]) -> None:
  """Whole epochs on the axis; around a single one, which has no extent, room for a whole one."""
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  if len(set(epochs)) == 1:
    axes.set_xlim(epochs[0] - 1, epochs[0] + 1)


def mark_classes(axes: Axes, labels: np.ndarray) -> None:
  """Puts ticks in the middle of classes, named by them; none where labels are no classes."""
  axes.tick_params(length=0, labelsize=5)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    axes.set(xticks=[], yticks=[])
    return
  classes = np.unique(labels)
  classes = classes[::-(-len(classes) // _CLASSES)]  # As many as there is room for.
  middles = [np.flatnonzero(labels == one).mean() for one in classes]
  axes.set_xticks(middles, classes)
  axes.set_yticks(middles, classes)
