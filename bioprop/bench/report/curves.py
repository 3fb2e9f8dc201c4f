"""Figures of training and its results: curves, the final number by rule, and over a value."""
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bioprop.bench import statistics, style
from bioprop.bench.report import series
from bioprop.bench.report.blocks import Picture
from bioprop.bench.report.cells import Cell, named, short
from bioprop.bench.report.metric import Metric
from bioprop.bench.report.series import Series

_SPLITS = ('validation', 'validation'), ('train', 'training')
_SPREAD = 8  # Ratio of the largest value of a sweep to the smallest from which its axis is log.


def learning(cells: Mapping[str, Cell], looks: Mapping, where: str,
             across: Mapping[str, float]) -> Iterator[Picture]:
  """Yields loss and score by epoch: of the validation split, where all runs have one, and training.

  Args:
    cells: rows of one setting, by rule.
    looks: of rules.
    where: the setting, for the titles.
    across: losses to draw across, by name.
  """
  records = _records(cells)
  score = 'r2' if any('train_r2' in record for record in records) else 'accuracy'
  for name, words in (('loss', 'loss'), (score, 'R²' if score == 'r2' else 'accuracy')):
    for split, what in _SPLITS:
      if records and all(f'{split}_{name}' in record for record in records):
        yield _curve(f'{split}_{name}', f'{what} {words}', cells, looks, where,
                     across if name == 'loss' else {})


def by_value(cells: Sequence[Cell], where: str, across: Mapping[str, float]) -> Iterator[Picture]:
  """Yields for each rule the loss by epoch, a line for each of the values that a sweep is over."""
  rules: dict[str, dict[str, Cell]] = {}
  for cell in cells:
    for rule in series.labelled([cell]):
      rules.setdefault(rule, {})[named(cell.over)] = cell
  for rule, lines in rules.items():
    records = _records(lines)
    if len(lines) < 2 or not records:
      continue
    split, what = next(pair for pair in _SPLITS
                       if all(f'{pair[0]}_loss' in record for record in records))
    picture = _curve(f'{split}_loss', f'{what} loss', lines, style.looks(lines),
                     f'{where}, {rule}', across)
    yield picture._replace(name=f'{rule}-by-value')


def _records(cells: Mapping[str, Cell]) -> list[Mapping[str, float]]:
  return [record for cell in cells.values() for run in cell.runs for record in run.epochs]


def _curve(key, what, cells, looks, where, across) -> Picture:
  lines = series.lines(cells, lambda run: {record['epoch']: record[key] for record in run.epochs})
  figure = series.draw(lines, looks, 'epoch', what, across, True, spread=key.endswith('loss'))
  title = f'{series.sentence(what)} by epoch, {where}; bands: one sd over seeds.'
  return Picture(key, title, series.text(f'Lines of {what} by epoch', lines), figure)


def finals(cells: Sequence[Cell], looks: Mapping, where: str, metric: Metric) -> Picture | None:
  """Returns the final number by rule: every seed, and the mean with its interval."""
  rows = [(label, list(cell.values(metric).values()))
          for label, cell in series.labelled(cells).items()]
  rows = sorted(((label, values) for label, values in rows if values),
                key=lambda row: np.mean(row[1]), reverse=not metric.more_is_better)
  if not rows:
    return None
  figure = style.panel(0.7 + 0.24 * len(rows))
  axes = figure.subplots()
  for at, (label, values) in enumerate(rows):
    look = {**looks[label], 'linestyle': ''}
    axes.plot(values, [at] * len(values), color='gray', marker='|', linestyle='', markersize=7)
    low, high = statistics.interval(values)
    if low is not None:
      axes.plot([low, high], [at, at], color=look['color'], linewidth=1.5)
    axes.plot([np.mean(values)], [at], **{**look, 'markersize': 6})
  axes.set_yticks(range(len(rows)), [label for label, _ in rows])
  axes.set(xlabel=metric.title, ylim=(-0.6, len(rows) - 0.4))
  axes.grid(axis='x', linewidth=0.3)
  ends = '; '.join(f'{label} {statistics.summary(values)}' for label, values in reversed(rows))
  return Picture('final', f'{metric.title} by rule, {where}: mean, its bootstrap 95 % interval '
                 f'(from {statistics.LEAST} seeds on), and each seed as a stroke.',
                 f'{metric.title}, a row for each rule: {ends}.', figure)


def over(cells: Sequence[Cell], looks: Mapping, metric: Metric) -> Iterator[Picture]:
  """Yields the final number over each numeric value of a sweep, all others being the same."""
  keys = list(dict.fromkeys(key for cell in cells for key in cell.over))
  for key in keys:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
      if _number(cell.over.get(key)) is not None:
        others = {name: value for name, value in cell.over.items() if name != key}
        groups.setdefault(json.dumps(others, sort_keys=True), []).append(cell)
    for others, members in groups.items():
      yield from _over(members, looks, metric, key, json.loads(others))


def _over(cells, looks, metric, key, others) -> Iterator[Picture]:
  if len({len(value) for cell in cells if isinstance(value := cell.over[key], list)}) > 1:
    return  # Of networks of other depths, a width says too little.
  lines = [line for label in dict.fromkeys(label for cell in cells
                                           for label in series.labelled([cell]))
           if (line := _line(cells, label, lambda cell: _number(cell.over[key]), metric))]
  values = sorted({x for line in lines for x in line.x})
  if len(values) < 2:
    return
  figure = style.panel()
  axes = figure.subplots()
  for one in sorted(lines, key=lambda one: -one.mean[-1]):
    axes.errorbar(one.x, one.mean, one.sd, label=one.label, capsize=2, **looks[one.label])
  if series.is_spread(values, _SPREAD):
    axes.set_xscale('log')
    axes.minorticks_off()
  axes.set_xticks(values, [f'{value:g}' for value in values])
  axes.set(xlabel=short(key).replace('_', ' '), ylabel=metric.title)
  style.legend_below(figure)
  where = ''.join(f', {short(name)} = {value}' for name, value in others.items())
  yield Picture(f'over-{short(key)}{where}', f'{metric.title} over {short(key)}{where}: mean, and '
                'one standard deviation over seeds.', series.text(
                    f'{metric.title} over {short(key)}, one line a rule', lines,
                    f'At {values[-1]:g}'), figure)


def _number(value: Any) -> float | None:
  """A number, also of layers that are all as wide; None of anything else."""
  if isinstance(value, list) and value and all(one == value[0] for one in value):
    value = value[0]
  return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _line(cells: Sequence[Cell], label: str, at: Callable[[Cell], Any], metric) -> Series | None:
  """A point for each cell that has results, by value; without deviations if one has none."""
  found = {at(cell): statistics.summary(list(cell.values(metric).values()))
           for cell in cells if label in series.labelled([cell]) and cell.finished}
  if not found:
    return None
  x = sorted(found)
  sds = [found[value].sd for value in x]
  sd = None if all(one is None for one in sds) else np.array([one or 0.0 for one in sds])
  return Series(label, x, np.array([found[value].mean for value in x]), sd)
