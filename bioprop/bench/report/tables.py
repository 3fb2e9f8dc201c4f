"""The tables of a report."""
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bioprop.bench import statistics
from bioprop.bench.report import runs as runs_lib
from bioprop.bench.report.blocks import Table
from bioprop.bench.report.cells import BASELINE, Cell, named, short
from bioprop.bench.report.metric import Metric
from bioprop.bench.report.runs import Run
from bioprop.training import config as config_lib

NOTHING = '–'
_PREFIXES = ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k'))
_LOSSES = ('train_loss', 'validation_loss', 'test_loss', 'test_accuracy')
_FIT = 'test_r2'  # Of runs on targets, a column where there are such.


def results(title: str, found: Sequence[Cell], metric: Metric) -> Table:
  """Returns the rows of a column: the metric, and how it differs from bp's."""
  overs = list(dict.fromkeys(key for cell in found for key in cell.over))
  tuned = any(cell.tuned for cell in found)
  bases = {json.dumps(cell.over, sort_keys=True): cell.values(metric) for cell in found
           if cell.rule == BASELINE and not cell.undecided}
  rows = [[*map(short, overs), 'rule', metric.title, 'n', f'difference to {BASELINE} [95 %]',
           *(['chosen'] if tuned else [])]]
  few = False
  for cell in found:
    values = cell.values(metric)
    base = bases.get(json.dumps(cell.over, sort_keys=True))
    difference = (statistics.paired(values, base)
                  if base is not None and cell.rule != BASELINE else None)
    few |= difference is not None and difference.low is None
    rows.append([
        *(_value(cell.over.get(key)) for key in overs), cell.rule,
        str(statistics.summary(list(values.values()))) if values else NOTHING, _counts(cell),
        NOTHING if difference is None else str(difference),
        *([named(cell.tuned) or NOTHING] if tuned else [])])
  return Table(title, _without_empty(rows, len(overs) + 3), _notes(found, metric, few))


def costs(title: str, found: Sequence[Cell]) -> Table:
  """Returns what the runs of each row took."""
  overs = list(dict.fromkeys(key for cell in found for key in cell.over))
  rows = [[*map(short, overs), 'rule', 'epochs', 'time of a run', 'parameters',
           'FLOPs of a step: forward', 'backward', 'of training']]
  rows += [[*(_value(cell.over.get(key)) for key in overs), cell.rule, *_costs(cell)]
           for cell in found]
  return Table(title, _without_empty(rows, len(overs) + 1), (
      'Time: mean over the runs that finished, with all that was done in their epochs, probes '
      'included. FLOPs: by XLA\'s cost analysis of a step before it is optimised; backward is all '
      'of the gradients but the forward pass. Of training: of all steps, without the optimiser.',))


def _counts(cell: Cell) -> str:
  parts = [str(len(cell.finished))]
  for state in (runs_lib.DIVERGED, runs_lib.UNFINISHED):
    if count := cell.count(state):
      parts.append(f'{count} {state}')
  return ', '.join(parts)


def _costs(cell: Cell) -> list[str]:
  """Epochs, seconds, parameters and operations, of the runs that have them."""
  runs = cell.finished
  epochs = sorted({len(run.epochs) for run in runs})
  seconds = [sum(record['seconds'] for record in run.epochs) for run in runs]
  known = [run.environment for run in runs if run.environment]
  flops = [one.get('flops') or {} for one in known]
  first = lambda values: next((value for value in values if value is not None), None)
  return ['–'.join(map(str, epochs[:1] + epochs[1:][-1:])) or NOTHING,
          duration(float(np.mean(seconds))) if seconds else NOTHING,
          amount(first(one.get('parameters') for one in known)),
          amount(first(one.get('forward') for one in flops)),
          amount(first(one.get('backward') for one in flops)),
          amount(first(map(_training_flops, runs)))]


def _training_flops(run: Run) -> float | None:
  """Of all steps."""
  flops = run.environment.get('flops') or {}
  parts = [run.environment.get('steps_per_epoch'), flops.get('forward'), flops.get('backward')]
  return None if None in parts else len(run.epochs) * parts[0] * sum(parts[1:])


def _notes(found, metric, few):
  notes = [f'{metric.title} of the last epoch\'s weights: mean ± standard deviation of a sample '
           'over the n seeds that finished.']
  if any(cell.rule != BASELINE for cell in found) and any(
      cell.rule == BASELINE for cell in found):
    notes.append(f'Difference to {BASELINE}: paired by seed, with a 95 % interval by the bootstrap '
                 '(percentiles of 10 000 resamples). Of few seeds it is optimistic: it spans no '
                 'more than the differences that were seen.')
  if few:
    notes.append(f'No interval is given of fewer than {statistics.LEAST} seeds: one or two '
                 'differences, resampled, do not tell how they vary.')
  if any(cell.undecided for cell in found):
    notes.append('Where several values were tried and no run has a validation split, none is '
                 'chosen: the test result is not for choosing. Each is a row.')
  return notes


def candidates(title: str, found: Sequence[Cell], metric: Metric) -> Table | None:
  """Returns what each choice was among, None where there was none."""
  rows = [['setting', 'rule', 'tried', metric.validation_title, 'n', 'chosen']]
  for cell in found:
    if cell.undecided or len(cell.candidates) < 2:
      continue
    for one in cell.candidates:
      own = Cell(cell.rule, cell.over, one.tuned, one.runs, ())
      rows.append([named(cell.over) or NOTHING, cell.rule, named(one.tuned) or NOTHING,
                   NOTHING if one.score is None else statistics.number(one.score), _counts(own),
                   'yes' if one.chosen else ''])
  if len(rows) == 1:
    return None
  return Table(title, _without_empty(rows), (
      f'Chosen by the highest mean of the {metric.validation_title} after the last epoch, over '
      'the seeds that all candidates have finished, among those that diverged on the fewest.',
      *_at_the_edge(found)))


def _at_the_edge(found):
  """A note for each number chosen that is the largest, or smallest, that was tried for a rule."""
  rules: dict[tuple[str, str, Any], dict[str, None]] = {}
  for cell in found:
    for field, value in ({} if cell.undecided else cell.tuned).items():
      tried = {one.tuned.get(field) for one in cell.candidates if _is_number(one.tuned.get(field))}
      if _is_number(value) and len(tried) > 1 and value in (min(tried), max(tried)):
        end = 'largest' if value == max(tried) else 'smallest'
        rules.setdefault((field, end, value), {})[cell.rule] = None
  return [f'{named({field: value})} is the {end} that was tried for {", ".join(names)}: what is '
          'best may lie beyond.' for (field, end, value), names in rules.items()]


def _is_number(value):
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def runs(title: str, found: Sequence[Run]) -> Table:
  """Returns a line for each run: the last epoch's losses, and the test result of finished ones."""
  fits = any(_FIT in run.final for run in found)
  columns = (*_LOSSES, _FIT) if fits else _LOSSES
  rows = [['run', 'state', 'epochs', *(name.replace('_', ' ') for name in columns)]]
  for run in found:
    numbers: dict[str, float] = {}
    for record in (*run.epochs, run.final):
      numbers.update(record)
    rows.append(['/'.join(run.path.parts[-2:]), run.state, str(len(run.epochs)), *(
        f'{numbers[name]:.4f}' if name in numbers else NOTHING for name in columns)])
  return Table(title, rows)


def failures(title: str, found: Sequence[Run]) -> Table | None:
  """Returns the runs that diverged, and why; None if none did."""
  rows = [['/'.join(run.path.parts[-2:]), run.reason] for run in found
          if run.state == runs_lib.DIVERGED]
  return Table(title, [['run', 'reason'], *rows]) if rows else None


def environments(title: str, found: Sequence[Run]) -> Table | None:
  """Returns where the runs were trained, a column for each kind of environment; None if unknown."""
  kinds: dict[str, list[Run]] = {}
  for run in found:
    if run.environment:
      kinds.setdefault(json.dumps(_environment(run.environment)), []).append(run)
  if not kinds:
    return None
  described = [json.loads(kind) for kind in kinds]
  rows = [['', *(f'{len(runs)} runs' if len(runs) > 1 else '1 run' for runs in kinds.values())]]
  for name in dict.fromkeys(name for one in described for name in one):
    rows.append([name, *(str(one.get(name, NOTHING)) for one in described)])
  starts = [sorted(run.environment.get('started', '') for run in runs) for runs in kinds.values()]
  rows.append(['started (UTC)', *(f'{times[0]} – {times[-1]}' if times[0] != times[-1] else times[0]
                                  for times in starts)])
  unknown = sum(not run.environment for run in found)
  return Table(title, rows, [f'Of {unknown} runs it is not recorded.'] if unknown else [])


def _environment(found: Mapping[str, Any]) -> dict[str, str]:
  device, host, git = (found.get(name) or {} for name in ('device', 'host', 'git'))
  changed = ', changed' if git.get('dirty') else ''
  return {**{name: value or NOTHING for name, value in (found.get('versions') or {}).items()},
          'device': f'{device.get("count")} × {device.get("kind")} ({device.get("platform")})',
          'processor': f'{host.get("cpu")}, {host.get("cores")} cores',
          'system': host.get('system') or NOTHING,
          'git revision': f'{git["revision"][:12]}{changed}' if git.get('revision') else NOTHING}


def configuration(title: str, found: Sequence[Run]) -> Table:
  """Returns what all runs of a column have that is not as `bioprop.training.base` has it."""
  usual = runs_lib.flat(config_lib.base().to_dict())
  flat = [runs_lib.flat(run.config) for run in found if run.config]
  rows = [['setting', 'value']]
  for key, value in (flat[0] if flat else {}).items():
    if value != _plain(usual.get(key)) and all(one.get(key) == value for one in flat):
      rows.append([key, _value(value)])
  return Table(title, rows, ('All that is the same in all runs and differs from the defaults; '
                             'config.json of each run has everything.',))


def _plain(value):
  """As JSON gives it back."""
  return json.loads(json.dumps(value))


def _value(value: Any) -> str:
  return value if isinstance(value, str) else NOTHING if value is None else json.dumps(value)


def _without_empty(rows: Sequence[Sequence[str]], keep: int = 0) -> list[list[str]]:
  """Leaves out columns, after the first `keep`, in which nothing is known."""
  there = [at for at, column in enumerate(zip(*rows[1:])) if at < keep or set(column) != {NOTHING}]
  return [[row[at] for at in there] for row in rows]


def duration(seconds: float) -> str:
  """Returns '12.3 s', '4 min 10 s' or '2 h 5 min'."""
  if seconds < 99.5:
    return f'{seconds:.3g} s'
  minutes = round(seconds / 60)
  return f'{minutes // 60} h {minutes % 60} min' if minutes >= 100 else (
      f'{int(seconds) // 60} min {int(seconds) % 60} s')


def amount(value: float | None) -> str:
  """Returns '8.16 M'."""
  if value is None:
    return NOTHING
  size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if value >= size), (1, ''))
  return f'{value / size:.3g} {prefix}'.strip()
