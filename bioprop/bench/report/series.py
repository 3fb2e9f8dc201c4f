"""Lines with bands: what several seeds gave, by rule."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from bioprop.bench import plots, statistics, style

_DECADES = 30  # Above this ratio of largest and smallest, an axis is logarithmic.
_MARKS = 8  # A line has about as many marks.


class Series(NamedTuple):
  """One line: x, mean [points], and standard deviation [points], None of a single seed."""
  label: str
  x: Sequence[Any]
  mean: np.ndarray
  sd: np.ndarray | None

  @property
  def end(self) -> str:
    """Its last value."""
    one = statistics.Summary(self.mean[-1], None if self.sd is None else self.sd[-1], 0)
    return f'{self.label} {one}'


def over_seeds(label: str, lines: Sequence[Mapping[Any, float]]) -> Series | None:
  """Returns a line from those of the seeds, at the points that all of them have.

  Args:
    label: of the line.
    lines: values by x, one of each seed.

  Returns:
    None if there are no points.
  """
  lines = [line for line in lines if line]
  shared = [x for x in (lines[0] if lines else ()) if all(x in line for line in lines)]
  if not shared:
    return None
  values = np.array([[line[x] for x in shared] for line in lines], float)
  return Series(label, shared, values.mean(0), values.std(0, ddof=1) if len(lines) > 1 else None)


def draw(series: Sequence[Series], looks: Mapping[str, Mapping[str, Any]], xlabel: str,
         ylabel: str, across: Mapping[str, float] | None = None, whole: bool = False,
         spread: bool = False) -> Figure:
  """Draws lines by their order at the end, which is that of the legend; bands are one sd.

  Args:
    series: at least one.
    looks: of the lines, by label.
    xlabel, ylabel: of the axes.
    across: values for lines across, by name.
    whole: whether x are whole numbers, as epochs are.
    spread: whether the axis is logarithmic where values are far apart.
  """
  figure = style.panel()
  axes = figure.subplots()
  for at, one in enumerate(sorted(series, key=lambda one: -one.mean[-1])):
    every = max(1, len(one.x) // _MARKS)
    axes.plot(one.x, one.mean, label=one.label, markevery=(at % every, every), **looks[one.label])
    if one.sd is not None:
      axes.fill_between(one.x, one.mean - one.sd, one.mean + one.sd, alpha=0.2, linewidth=0,
                        color=looks[one.label]['color'])
  for (name, value), dash in zip((across or {}).items(), style.DASHES[1:] * len(across or ())):
    axes.axhline(value, color='gray', linestyle=dash, linewidth=0.8,
                 label=f'{name} {statistics.number(value)}')
  values = np.concatenate([one.mean for one in series])
  if spread and is_spread(values):
    axes.set_yscale('log')
  axes.set(xlabel=xlabel, ylabel=ylabel)
  if whole:
    plots.count_epochs(axes, [x for one in series for x in one.x])
  style.legend_below(figure)
  return figure


def text(what: str, series: Sequence[Series], last: str = 'At the end') -> str:
  """Returns a figure's description."""
  return f'{what}. {last}: {"; ".join(one.end for one in series)}.'


def sentence(words: str) -> str:
  """Returns words with a capital at the front, and others as they are."""
  return words[:1].upper() + words[1:]


def is_spread(values: Sequence[float], ratio: float = _DECADES) -> bool:
  """Whether an axis of these values should be logarithmic."""
  values = np.asarray(values, float)
  return bool((values > 0).all() and values.max() >= ratio * values.min())


def lines(cells: Mapping[str, Any], line: Callable[[Any], Mapping[Any, float] | None],
          ) -> list[Series]:
  """Returns a line for each cell, from what `line` gives of each of its runs that finished.

  Where none has finished, those that have begun are drawn as far as they are.
  """
  found = [over_seeds(label, [line(run) or {} for run in cell.finished or cell.runs])
           for label, cell in cells.items()]
  return [one for one in found if one is not None]


def labelled(cells: Sequence[Any]) -> dict[str, Any]:
  """Returns cells by rule; what was not chosen between is named by its values too."""
  from_values = lambda cell: ', '.join(f'{key.rpartition(".")[2]}={value}'
                                       for key, value in cell.tuned.items())
  return {f'{cell.rule} {from_values(cell)}' if cell.undecided else cell.rule: cell
          for cell in cells}
