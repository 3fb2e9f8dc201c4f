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
  """
  name: str
  text: str
  measured: str
  predicted: str
  agrees: bool
  series: Sequence[Series]
  axes: tuple[str, str]
  scales: tuple[str, str] = ('linear', 'linear')


def draw(claim: Claim, path: pathlib.Path) -> None:
  """Writes the figure: lines are predictions, points are measurements."""
  figure = Figure(figsize=(6.4, 4), layout='constrained')
  axes = figure.subplots()
  for number, one in enumerate(claim.series):
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
  axes.set(xlabel=claim.axes[0], ylabel=claim.axes[1], xscale=claim.scales[0],
           yscale=claim.scales[1])
  axes.set_title(claim.text, fontsize=9, wrap=True)
  axes.legend(fontsize=8)
  figure.savefig(path, dpi=110)


def table(claims: Sequence[Claim]) -> str:
  """The claims as a table in Markdown."""
  rows = [('claim', 'measured', 'predicted', 'agrees'), ('---',) * 4]
  rows += [(one.text, one.measured, one.predicted, 'yes' if one.agrees else '**no**')
           for one in claims]
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def listed(values: Sequence[float], form: str = '.3f') -> str:
  """'0.100, 0.200'."""
  return ', '.join(format(float(value), form) for value in values)
