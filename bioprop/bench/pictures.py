"""Draws what the probes of a run found, from its directory:

    kernels.png    the effective eNTK and each layer's Phi, ordered by class, over training
    angles.png     by layer: cosine of pseudogradient and gradient, and of W and B, over training
    alignment.png  by layer: alignment with the targets, and share of the eNTK, over training
    spectrum.png   singular values of the eNTK, over training
    theory.png     the eNTK, its alignment and the loss, beside those of infinite width

Which of them there are depends on the run's probes. train.py draws them into the run's directory,
and `bioprop report WORKDIR` shows them.
"""
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bioprop import measure
from bioprop.bench import plots, style
from bioprop.training import probing, workdir

_LETTERS = 9  # Of a title, in an inch.

Found = Sequence[Mapping[str, np.ndarray]]  # Of one probe, in the order of steps.


def draw(run: str | os.PathLike, folder: str | os.PathLike) -> list[pathlib.Path]:
  """Draws a run's pictures.

  Args:
    run: the run's directory.
    folder: where they are written, over pictures of the same names.

  Returns:
    The files; none if the run has no probes.

  Raises:
    WorkdirError: if the directory holds no run, its probes have found nothing yet, or a picture
      cannot be written.
  """
  config, by_type = workdir.config_of(run, 'model', 'dataset', 'rule'), probing.read_all(run)
  title = f'{pathlib.Path(run).name}: {config["model"]} on {config["dataset"]}, {config["rule"]}'
  files = []
  for name, figure in figures(by_type).items():
    figure.suptitle(textwrap.fill(title, int(_LETTERS * figure.get_figwidth())))
    files.append(pathlib.Path(folder) / f'{name}.png')
    plots.save(figure, files[-1])
  return files


def figures(by_type: Mapping[str, Found]) -> dict[str, Figure]:
  """Returns a run's pictures by name, of what its probes found, by type."""
  made = {}
  with style.distinct():
    for name, picture in (('kernels', _kernels), ('angles', _angles), ('alignment', _alignment),
                          ('spectrum', _spectrum), ('theory', _theory)):
      figure = picture(by_type)
      if figure is not None:
        made[name] = figure
  return made


def _kernels(by_type) -> Figure | None:
  """A row for each moment, a column for each kernel."""
  columns = [(kind, key) for kind in ('entk', 'features') if kind in by_type
             for key in by_type[kind][0] if key == 'kernel' or key.startswith('phi/')]
  if not columns:
    return None
  moments = _moments(by_type[columns[0][0]])
  figure = Figure(figsize=(2.4 * len(columns), 2.5 * len(moments) + 0.4), layout='constrained')
  grid = figure.subplots(len(moments), len(columns), squeeze=False)
  for row, moment in zip(grid, moments):
    for axes, (kind, key) in zip(row, columns):
      found = _nearest(by_type[kind], by_type[columns[0][0]][moment]['step'])
      show_kernel(axes, found[key], found['labels'], f'{_short(key)}, step {found["step"]}')
  return figure


def show_kernel(axes: Axes, kernel: np.ndarray, labels: np.ndarray, title: str,
                limit: float | None = None) -> None:
  """Draws a kernel, its classes named.

  Args:
    axes: where.
    kernel: [n, n].
    labels: of the samples; ascending where they are classes.
    title: above it.
    limit: the number of the darkest colour; None: the largest of the kernel.
  """
  limit = limit or np.abs(kernel).max() or 1
  axes.imshow(kernel, vmin=-limit, vmax=limit, cmap='RdBu_r', interpolation='nearest')
  axes.set_title(title, fontsize=8)
  plots.mark_classes(axes, labels)


def _angles(by_type) -> Figure | None:
  panels = [
      ('angles', 'cosine', 'cosine of pseudogradient\nand gradient'),
      ('angles', 'signals', 'cosine of the signals\nat the layer\'s output'),
      ('angles', 'ratio', '|pseudogradient| / |gradient|'),
      ('alignment', 'cosine', 'cosine of W and B'),
      ('alignment', 'direct', 'cosine of direct feedback and\nthe product of the weights above'),
  ]
  return _over_training(by_type, panels)


def _alignment(by_type) -> Figure | None:
  panels = [
      ('entk', 'target_alignment', 'alignment of the eNTK\nwith the targets'),
      ('features', 'target_alignment', 'alignment of Phi\nwith the targets'),
      ('entk', 'share', 'share of the eNTK\'s trace'),
      ('features', 'effective_rank', 'effective rank of Phi'),
  ]
  return _over_training(by_type, panels)


def _over_training(by_type, panels) -> Figure | None:
  """A panel for each quantity that there is, a line for each layer and one for the network."""
  drawn = []
  for kind, name, label in panels:
    found = by_type.get(kind, [])
    keys = [key for key in (found[0] if found else ()) if not key.endswith('/bias')
            and key.split('/')[0] == name and found[0][key].ndim == 0]
    if keys:
      drawn.append((found, keys, label))
  if not drawn:
    return None
  figure = Figure(figsize=(4.2 * len(drawn), 3.8), layout='constrained')
  for axes, (found, keys, label) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn):
    for key in keys:
      whole = '/' not in key
      axes.plot([one['step'] for one in found], [one[key] for one in found], marker='.',
                color='black' if whole else None, label='network' if whole else _short(key))
    axes.set(xlabel='step', ylabel=label)
    axes.legend(fontsize=7)
  return figure


def _spectrum(by_type) -> Figure | None:
  if 'entk' not in by_type:
    return None
  figure = Figure(figsize=(5, 3.8), layout='constrained')
  axes = figure.subplots()
  for moment in _moments(by_type['entk']):
    found = by_type['entk'][moment]
    values = np.asarray(measure.spectrum(found['kernel']))
    axes.plot(np.arange(1, len(values) + 1), values, marker='.', label=f'step {found["step"]}')
  axes.set(xscale='log', yscale='log', xlabel='index', ylabel='singular value of the eNTK')
  axes.legend()
  return figure


def _theory(by_type) -> Figure | None:
  """Kernels above, with the one that does not change first; lines over training below."""
  found = by_type.get('theory')
  if found is None:
    return None
  kernels = [('infinite width', found[0]['infinite_kernel'])]
  kernels += [(f'step {found[at]["step"]}', found[at]['kernel']) for at in _moments(found)]
  figure = Figure(figsize=(12, 6.4), layout='constrained')
  above, below = figure.subfigures(2, 1)
  limit = max(np.abs(kernel).max() for _, kernel in kernels) or 1
  for axes, (name, kernel) in zip(above.subplots(1, len(kernels), squeeze=False)[0], kernels):
    show_kernel(axes, kernel, found[0]['labels'], f'eNTK, {name}', limit)
  panels = [(name, text) for name, text in (
      ('target_alignment', 'alignment of the eNTK\nwith the targets'),
      ('loss', 'loss on the probe\'s batch'),
      ('distance', 'distance of the eNTK\nfrom infinite width\'s')) if name in found[0]]
  for axes, (name, text) in zip(below.subplots(1, len(panels), squeeze=False)[0], panels):
    for key, label, dash in (
        (name, 'network', '.-'), (f'infinite_{name}', 'infinite width', '--')):
      own = [one for one in found if key in one]
      if own:
        axes.plot([one['step'] for one in own], [one[key] for one in own], dash, color='black',
                  label=label)
    axes.set(xlabel='step', ylabel=text)
    axes.legend(fontsize=7)
  return figure


def _moments(found: Found) -> list[int]:
  """The start, the middle and the end, by step."""
  steps = [int(one['step']) for one in found]
  middle = int(np.argmin(np.abs(np.array(steps) - steps[-1] / 2)))
  return sorted({0, middle, len(steps) - 1})


def _nearest(found: Found, step: int) -> Mapping[str, np.ndarray]:
  return min(found, key=lambda one: abs(int(one['step']) - int(step)))


def _short(key: str) -> str:
  """The layer of 'phi/Dense_0/kernel'; what names no layer as it is."""
  name, *path = key.split('/')
  layer = '/'.join(path[:-1]) if len(path) > 1 else '/'.join(path)
  return f'Phi {layer}' if name == 'phi' else layer or {'kernel': 'eNTK'}.get(name, name)
