"""A claim of a paper, what theory and networks say of it, and its figure."""
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure


class Series(NamedTuple):
  """One quantity over another, predicted (a line) and measured (points).

  Attributes:
    label: what the legend says.
    x: [n], of both unless `measured_x` is given.
    predicted: [n], or None.
    measured: [m], or None.
    spread: [m], standard deviation of the measured over networks, or None.
    measured_x: [m], or None: x.
  """
  label: str
  x: np.ndarray
  predicted: np.ndarray | None
  measured: np.ndarray | None
  spread: np.ndarray | None = None
  measured_x: np.ndarray | None = None


class Field(NamedTuple):
  """A panel: a flow in the plane, and what is drawn upon it.

  Attributes:
    title: of the panel.
    x: [n].
    y: [m].
    flow: components along x and y, [2, m, n].
    series: as those of a claim.
  """
  title: str
  x: np.ndarray
  y: np.ndarray
  flow: np.ndarray
  series: Sequence[Series]


class Claim(NamedTuple):
  """A claim and the evidence.

  Attributes:
    name: of its figure's file.
    text: the claim, as a sentence.
    measured: what networks say, in numbers.
    predicted: what theory says.
    agrees: whether both say what the claim says, and the same.
    series: what the figure shows.
    axes: labels of x and y.
    scales: of the axes, 'linear' or 'log'.
    fields: panels of their own, in place of the series.
  """
  name: str
  text: str
  measured: str
  predicted: str
  agrees: bool
  series: Sequence[Series]
  axes: tuple[str, str]
  scales: tuple[str, str] = ('linear', 'linear')
  fields: Sequence[Field] = ()


def draw(claim: Claim, path: pathlib.Path) -> None:
  """Writes the figure: lines are predictions, points are measurements."""
  panels = claim.fields or (None,)
  figure = Figure(figsize=(6.4, 4) if len(panels) == 1 else (3.2 * len(panels), 3.8),
                  layout='constrained')
  for axes, field in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
    if field is not None:
      axes.streamplot(field.x, field.y, *field.flow, color='lightgray', linewidth=0.6,
                      arrowsize=0.6, density=0.9, zorder=0)
      axes.set(title=field.title, xlim=field.x[[0, -1]], ylim=field.y[[0, -1]])
    _draw_series(axes, claim.series if field is None else field.series)
    axes.set(xlabel=claim.axes[0], ylabel=claim.axes[1], xscale=claim.scales[0],
             yscale=claim.scales[1])
  if claim.fields:
    figure.suptitle(claim.text, fontsize=9, wrap=True)
    figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', ncols=6,
                  fontsize=8)  # Series of one index have one colour in all panels.
  else:
    axes.legend(fontsize=8)
    axes.set_title(claim.text, fontsize=9, wrap=True)
  figure.savefig(path, dpi=110)


def _draw_series(axes, series: Sequence[Series]) -> None:
  for number, one in enumerate(series):
    color, label = f'C{number % 10}', one.label
    if one.predicted is not None:
      axes.plot(one.x, one.predicted, color=color, label=label)
      label = None
    if one.measured is not None:
      points = one.x if one.measured_x is None else one.measured_x
      every = max(1, len(points) // 20)
      spread = None if one.spread is None else one.spread[::every]
      axes.errorbar(points[::every], one.measured[::every], spread, color=color, label=label,
                    fmt='o', markersize=4, capsize=2)


def table(claims: Sequence[Claim]) -> str:
  """The claims as a table in Markdown."""
  rows = [('claim', 'measured', 'predicted', 'agrees'), ('---',) * 4]
  rows += [(one.text, one.measured, one.predicted, 'yes' if one.agrees else '**no**')
           for one in claims]
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def listed(values: Sequence[float], form: str = '.3f') -> str:
  """'0.100, 0.200'."""
  return ', '.join(format(float(value), form) for value in values)
