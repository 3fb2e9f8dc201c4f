"""What a report says, in which order: from runs to headings, tables and figures."""
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bioprop.bench import pictures, plots, style
from bioprop.bench.report import cells as cells_lib
from bioprop.bench.report import curves, kernels, measured, representation, series, tables, texts
from bioprop.bench.report import runs as runs_lib
from bioprop.bench.report.blocks import Block, Heading, Picture, Table, Text
from bioprop.bench.report.cells import Cell
from bioprop.bench.report.metric import Metric, metric_of
from bioprop.bench.report.runs import Found, Run

_PICTURES = {  # Of a single run, by the names of `bioprop.bench.pictures`.
    'kernels': 'The eNTK and each layer\'s Φ over training, examples ordered by class',
    'angles': 'Pseudogradient and gradient, and weights and feedback, by layer over training',
    'alignment': 'Alignment with the targets, and shares of the eNTK, by layer over training',
    'spectrum': 'Singular values of the eNTK over training',
    'theory': 'The network beside its limit of infinite width',
}


class Column(NamedTuple):
  """What is compared: runs, by what, and the rows of their table."""
  name: str
  runs: Sequence[Run]
  metric: Metric
  cells: Sequence[Cell]


def columns(found: Found, asked: str | None) -> list[Column]:
  """Returns what is compared within what.

  Args:
    found: the runs.
    asked: metric that all columns are compared by; None: that of each.
  """
  made = []
  for name, runs in cells_lib.columns(found.runs).items():
    runs = cells_lib.varying(runs)
    metric = metric_of(runs, asked, found.metric)
    made.append(Column(name, runs, metric, cells_lib.cells(runs, metric)))
  return made


def report(found: Found, compared: Sequence[Column], title: str) -> Iterator[Block]:
  """Yields the parts of a report.

  Args:
    found: the runs.
    compared: them by column.
    title: of the report.

  Raises:
    WorkdirError: if a run has no such metric, or a file of its probes is damaged.
  """
  yield Heading(1, title)
  yield Text(_summary(found))
  looks = _looks([cell for column in compared for cell in column.cells])
  names: set[str] = set()  # Files of all columns lie in one folder.
  for column in compared:
    yield Heading(2, column.name)
    for block in _column(column, looks):
      yield (block._replace(name=_slug(f'{column.name}-{block.name}', names))
             if isinstance(block, Picture) else block)
  yield Heading(2, 'Runs')
  yield tables.runs('Every run, after its last epoch', found.runs)
  for table in (tables.failures('Runs that diverged', found.runs),
                tables.environments('Where the runs were trained', found.runs)):
    if table:
      yield table


def _summary(found: Found) -> str:
  counts = {state: sum(run.state == state for run in found.runs)
            for state in (runs_lib.FINISHED, runs_lib.DIVERGED, runs_lib.UNFINISHED)}
  parts = ', '.join(f'{count} {state}' for state, count in counts.items() if count)
  many = len(found.runs) > 1
  left = (f' {len(found.unlisted)} more that are no part of the sweep are left out.'
          if found.unlisted else '')
  return f'{len(found.runs)} {"runs" if many else "run"}: {parts}.{left}'


def _looks(cells: Sequence[Cell]) -> Mapping:
  """Of all rules in the report, so that a rule looks the same everywhere; bp first, in black."""
  labels = dict.fromkeys(label for cell in cells for label in series.labelled([cell]))
  return style.looks(sorted(labels, key=lambda label: label != cells_lib.BASELINE))


def _column(column: Column, looks: Mapping) -> Iterator[Block]:
  name, runs, metric, cells = column
  yield tables.results(f'{name}: {metric.title}', cells, metric)
  yield tables.costs(f'{name}: costs', cells)
  table = tables.candidates(f'{name}: what was tried for each rule', cells, metric)
  if table:
    yield table
  begun = [run for run in runs if run.config]
  entropies = texts.entropies([run.config for run in begun]) if begun else {}
  for words, value in entropies.items():
    yield Text(f'{words} of the training text: {value:.4f} nats per character')
  if len(begun) == 1 and len(runs) == 1:
    yield from _single(begun[0])
  else:
    yield from curves.over(cells, looks, metric)
    yield from curves.by_value(cells, name, entropies)
    settings = cells_lib.settings(cells)
    for members in settings:
      where = ', '.join(filter(None, (name, cells_lib.named(members[0].over))))
      if len(settings) > 1:
        yield Heading(3, where)
      for block in _setting(members, looks, where, metric, entropies):
        prefix = f'{cells_lib.named(members[0].over)}-' if len(settings) > 1 else ''
        yield block._replace(name=f'{prefix}{block.name}')
  table = _representation(f'{name}: representations', begun)
  if table:
    yield table
  yield tables.configuration(f'{name}: configuration', runs)


def _setting(cells, looks, where, metric, entropies) -> Iterator[Picture]:
  picture = curves.finals(cells, looks, where, metric)
  if picture:
    yield picture
  yield from curves.learning(series.labelled(cells), looks, where, entropies)
  found = measured.measure(cells)
  yield from measured.pictures(found, looks, where)
  yield from kernels.pictures(found, where)


def _single(run: Run) -> Iterator[Picture]:
  """Its curves, and all that its probes found."""
  if run.epochs:
    yield Picture('curves', f'{run.path.name}: loss and score by epoch.',
                  'Loss and score by epoch, of the training and the validation split, with the '
                  'test result across.', plots.curves_of(run.path))
  for name, figure in pictures.figures(measured.read(run)).items():
    yield Picture(name, f'{_PICTURES[name]}.', _PICTURES[name], figure)


def _representation(title: str, runs: Sequence[Run]) -> Table | None:
  """None where there are no probes."""
  rows = [representation.row(run.path, probes, run.final) for run in runs
          if (probes := measured.read(run))]
  if not rows:
    return None
  return Table(title, [list(rows[0]), *(list(row.values()) for row in rows)],
               representation.NOTES)


def _slug(text: str, taken: set[str]) -> str:
  """A file's name, unlike all that are taken."""
  plain = re.sub(r'[^A-Za-z0-9]+', '-', text).strip('-')
  name = next(name for at in itertools.count(1)
              if (name := plain if at == 1 else f'{plain}-{at}') not in taken)
  taken.add(name)
  return name
