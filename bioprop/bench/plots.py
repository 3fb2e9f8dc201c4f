"""Figures of losses and accuracies; those of probes are in `bioprop.bench.pictures`."""
import os
import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bioprop.errors import WorkdirError
from bioprop.training import files, metrics


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
  records = metrics.read(workdir)
  epochs = [record for record in records if 'epoch' in record]
  final = next((record for record in records if 'test_loss' in record), None)
  score = 'r2' if any('train_r2' in record for record in epochs) else 'accuracy'
  # Figure without pyplot: no display, no global state.
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
    _count_epochs(axes, [record['epoch'] for record in epochs])
    axes.legend()
  figure.suptitle(pathlib.Path(workdir).name)
  save(figure, path)


def losses(workdirs: Sequence[str | os.PathLike], path: str | os.PathLike,
           lines: Mapping[str, float]) -> None:
  """Draws the losses of several runs by epoch, one curve a run.

  Args:
    workdirs: the runs' directories; a curve is the validation loss, or the training loss of a run
      without validation.
    path: file to write; the ending gives the format.
    lines: losses to draw across, by name.

  Raises:
    WorkdirError: if a run's metrics are damaged, or the file cannot be written.
  """
  figure = Figure(figsize=(8, 4), layout='constrained')
  axes = figure.subplots()
  names = [pathlib.Path(workdir).name for workdir in workdirs]
  seen, unheld = [], []  # All epochs, and the runs without validation.
  for name, workdir in zip(names, workdirs):
    records = [record for record in metrics.read(workdir) if 'epoch' in record]
    points = [(record['epoch'], record.get('validation_loss', record['train_loss']))
              for record in records]
    seen += [epoch for epoch, _ in points]
    if any('validation_loss' not in record for record in records):
      unheld.append(name)
    # A run of one epoch is a point, which a line does not show.
    axes.plot([epoch for epoch, _ in points], [loss for _, loss in points],
              label=name, marker='.' if len(points) < 20 else '')
  for (name, value), style in zip(lines.items(), (':', '--', '-.') * len(lines)):
    axes.axhline(value, color='gray', linestyle=style, label=f'{name} {value:.4g}')
  also = f'\n(training loss: {", ".join(unheld)})' if unheld else ''
  axes.set(xlabel='epoch', ylabel='training loss' if unheld == names else f'validation loss{also}')
  _count_epochs(axes, seen)
  axes.relim()  # A line across is no data yet to the limits: it would lie on the frame.
  axes.autoscale_view()
  figure.legend(loc='outside right upper')
  save(figure, path)


def _count_epochs(axes, epochs):
  """Whole epochs on the axis; around a single one, which has no extent, room for a whole one."""
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  if len(set(epochs)) == 1:
    axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
