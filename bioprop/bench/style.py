"""How figures look: colours that all eyes tell apart, and marks that survive grey print."""
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH = 3.4  # Inches: one column of a paper, and about what a phone shows.
# Okabe and Ito's, black first and less their yellow, which white paper swallows.
COLOURS = ('#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MARKERS = 'osD^vP*X<>'
DASHES = ('-', '--', '-.', ':')
_SETTINGS = {
    'font.size': 8, 'axes.labelsize': 8, 'axes.titlesize': 8, 'legend.fontsize': 7,
    'xtick.labelsize': 7, 'ytick.labelsize': 7, 'lines.linewidth': 1.2, 'lines.markersize': 4,
    'axes.linewidth': 0.6, 'axes.spines.top': False, 'axes.spines.right': False,
    'legend.frameon': False, 'pdf.fonttype': 42, 'svg.hashsalt': 'bioprop',
}


@contextlib.contextmanager
def for_print() -> Iterator[None]:
  """Draws and writes figures as they stand in a report."""
  with mpl.rc_context(_SETTINGS):
    yield


@contextlib.contextmanager
def distinct() -> Iterator[None]:
  """Gives lines that are drawn without a word about it colours and dashes that differ."""
  with mpl.rc_context({'axes.prop_cycle': (
      mpl.cycler(color=COLOURS[1:]) * 2 + mpl.cycler(
          linestyle=[DASHES[at % len(DASHES)] for at in range(2 * len(COLOURS[1:]))]))}):
    yield


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Returns keyword arguments of `Axes.plot` for each name: no two alike, the first one black."""
  return {name: {'color': COLOURS[at % len(COLOURS)], 'marker': MARKERS[at % len(MARKERS)],
                 'linestyle': DASHES[at % len(DASHES)]} for at, name in enumerate(names)}


def panel(height: float = 2.3) -> Figure:
  """Returns a figure as wide as a column."""
  return Figure(figsize=(WIDTH, height), layout='constrained')


def legend_below(figure: Figure, columns: int = 3) -> None:
  """Adds a legend below the axes, and makes the figure higher by as much."""
  handles, labels = figure.axes[0].get_legend_handles_labels()
  if not labels:
    return
  # As many columns as the longest name leaves room for: some 50 characters a line.
  columns = max(1, min(columns, 50 // (max(map(len, labels)) + 6), len(labels)))
  rows = -(-len(labels) // columns)
  width, height = figure.get_size_inches()
  figure.set_size_inches(width, height + 0.15 * rows + 0.05)
  figure.legend(handles, labels, loc='outside lower center', ncols=columns, handlelength=3)
