"""Figures of what probes found: rules beside each other, over training and by layer."""
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bioprop.bench import style
from bioprop.bench.report import series
from bioprop.bench.report.blocks import Picture
from bioprop.bench.report.cells import Cell
from bioprop.bench.report.runs import Run
from bioprop.training import probing

Found = Mapping[str, np.ndarray]  # Of one probe at one step.
_NAMED = 12  # Layers whose names have room on an axis.


class Quantity(NamedTuple):
  """A number of each measurement: which probe has it, its name in files, and in words."""
  kind: str
  name: str
  words: str
  of: Callable[[Found], float | None]


class Layers(NamedTuple):
  """A number of each layer: the first of the keys that there is, perhaps with biases."""
  kind: str
  name: str
  words: str
  keys: tuple[str, ...]
  biases: bool


def natural(key: str) -> list[str | int]:
  """Orders names by the numbers in them."""
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', key)]


def of_layers(found: Found, name: str) -> list[np.ndarray]:
  """Returns what is there of each layer, from the input up: by name."""
  return [found[key] for key in sorted(found, key=natural) if key.startswith(f'{name}/')]


def mean(values: Sequence) -> float | None:
  """None of nothing."""
  return float(np.mean(values)) if len(values) else None


def last(found: Found, name: str) -> float | None:
  """The last layer's."""
  return (of_layers(found, name) or [None])[-1]


def feedback(found: Found) -> float | None:
  """The mean over layers of the cosine of weights and feedback, direct or not."""
  return mean(of_layers(found, 'cosine') or of_layers(found, 'direct'))


QUANTITIES = (
    Quantity('angles', 'angle', 'cosine of pseudogradient and gradient',
             lambda found: found['cosine']),
    Quantity('angles', 'signals', 'cosine of the signals, mean over hidden layers',
             lambda found: mean(of_layers(found, 'signals')[:-1])),
    Quantity('alignment', 'feedback', 'cosine of weights and feedback, mean over layers', feedback),
    Quantity('entk', 'entk-alignment', 'alignment of the eNTK with the targets',
             lambda found: found.get('target_alignment')),
    Quantity('features', 'phi-alignment', 'alignment of the last Φ with the targets',
             lambda found: last(found, 'target_alignment')),
    Quantity('entk', 'rank', 'effective rank of the eNTK', lambda found: found['effective_rank']),
    Quantity('theory', 'distance', 'distance of the eNTK from infinite width\'s',
             lambda found: found['distance']),
)
LAYERS = (
    Layers('entk', 'share', 'share of the eNTK\'s trace', ('share',), True),
    Layers('angles', 'angle-layers', 'cosine of pseudogradient and gradient', ('cosine',), False),
    Layers('alignment', 'feedback-layers', 'cosine of weights and feedback', ('cosine', 'direct'),
           False),
)
_BESIDE = (('loss', 'loss on the probe\'s batch'),
           ('target_alignment', 'alignment of the eNTK with the targets'))


class Measured(NamedTuple):
  """A setting with what was measured in it: rows of a table, and by directory of each run the
  measurements of its probes, by type."""
  cells: Sequence[Cell]
  found: Mapping[pathlib.Path, Mapping[str, list[Found]]]

  @property
  def rules(self) -> Mapping[str, Cell]:
    """The rows by rule."""
    return series.labelled(self.cells)

  def of(self, run: Run, kind: str) -> list[Found]:
    """What a run's probe of a type found, by step."""
    return self.found[run.path].get(kind, [])


def measure(cells: Sequence[Cell]) -> Measured:
  """Reads what the probes of all runs found; the errors of `read`."""
  return Measured(cells, {run.path: read(run) for cell in cells for run in cell.runs})


def read(run: Run) -> dict[str, list[Found]]:
  """Returns what the probes of a run found, by type; of several of a type, the first.

  Those of the run's configuration come before those of `bioprop probe`.

  Raises:
    WorkdirError: if a file is damaged.
  """
  found = {}
  for probes in (run.config.get('probes') or {}, probing.noted(run.path)):
    for name, options in probes.items():
      if any((run.path / 'probes' / name).glob('*.npz')):
        found.setdefault(options['type'], probing.read(run.path, name))
  return found


def pictures(measured: Measured, looks: Mapping, where: str) -> Iterator[Picture]:
  """Yields a figure of each quantity that there is.

  Args:
    measured: of one setting.
    looks: of rules.
    where: the setting, for the titles.
  """
  for quantity in QUANTITIES:
    lines = series.lines(measured.rules, lambda run, own=quantity: {
        int(one['step']): value for one in measured.of(run, own.kind)
        if (value := own.of(one)) is not None})
    if lines:
      yield Picture(quantity.name, f'{series.sentence(quantity.words)}, {where}.',
                    series.text(f'{series.sentence(quantity.words)} over training', lines),
                    series.draw(lines, looks, 'step', _folded(quantity.words)))
  yield from _theory(measured, looks, where)
  for layers in LAYERS:
    yield from _by_layer(measured, layers, looks, where)


def _theory(measured, looks, where):
  """The networks, and their own limits of infinite width."""
  for name, words in _BESIDE:
    own, limit = (series.lines(measured.rules, lambda run, key=key: {
        int(one['step']): float(one[key]) for one in measured.of(run, 'theory') if key in one})
        for key in (name, f'infinite_{name}'))
    if not limit:
      continue
    figure = series.draw(own, looks, 'step', _folded(words), spread=name == 'loss')
    for one in limit:
      figure.axes[0].plot(one.x, one.mean, linewidth=3, alpha=0.4,
                          **{**looks[one.label], 'marker': ''})
    yield Picture(f'theory-{name}', f'{series.sentence(words)}, {where}: networks (marks), and '
                  'their limits of infinite width (broad lines).', ' '.join((
                      series.text(f'{series.sentence(words)} over training', own),
                      series.text('Of infinite width', limit))), figure)


def _by_layer(measured, layers: Layers, looks, where) -> Iterator[Picture]:
  """The last measurement by layer; the first one fainter."""
  first, end = (series.lines(measured.rules, lambda run, at=at: _each(
      measured.of(run, layers.kind), at, layers)) for at in (0, -1))
  names = sorted({x for line in end for x in line.x}, key=natural)
  if not names:
    return
  figure = style.panel()
  axes = figure.subplots()
  place = {name: at for at, name in enumerate(names, 1)}
  for lines, alpha in ((first, 0.3), (end, 1.0)):
    for line in sorted(lines, key=lambda one: -one.mean[-1]):
      axes.errorbar([place[x] for x in line.x], line.mean, line.sd if alpha == 1 else None,
                    label=line.label if alpha == 1 else None, alpha=alpha, capsize=2,
                    **looks[line.label])
  long = len(names) > _NAMED
  if not long:
    axes.set_xticks(list(place.values()), names, rotation=30, ha='right', rotation_mode='anchor')
  axes.set(xlabel=f'layer, of {len(names)}' if long else '', ylabel=_folded(layers.words),
           xlim=(0.7, len(names) + 0.3))
  style.legend_below(figure)
  yield Picture(layers.name, f'{series.sentence(layers.words)} by layer from the input up, '
                f'{where}: at the end, with one standard deviation; faint: at the start.',
                series.text(f'{series.sentence(layers.words)} by layer, one line a rule', end,
                            'In the last layer'), figure)


def _each(found: Sequence[Found], at: int, layers: Layers) -> dict[str, float]:
  """Values by layer."""
  values: dict[str, float] = {}
  for name in layers.keys if found else ():
    for key in sorted(found[at], key=natural):
      head, *path = key.split('/')
      if head != name or not path or (path[-1] == 'bias' and not layers.biases):
        continue
      layer = '/'.join(path[:-1]) or path[0]
      values[layer] = values.get(layer, 0.0) + float(found[at][key])
    if values:
      break
  return values


def _folded(words: str) -> str:
  """An axis is shorter than some descriptions."""
  return '\n'.join(textwrap.wrap(words, 30))
