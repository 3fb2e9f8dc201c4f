"""All runs as one table for programs: a line each."""
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

from bioprop.bench.report.runs import Run


def table(runs: Sequence[Run], chosen: Iterable[Run]) -> bytes:
  """Returns the table.

  Args:
    runs: of the report.
    chosen: those that its tables and figures show.
  """
  paths = {run.path for run in chosen}
  rows = [_row(run, run.path in paths) for run in runs]
  names = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, names, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue().encode()


def _row(run: Run, shown: bool) -> dict[str, object]:
  last = {name: value for name, value in (run.epochs[-1] if run.epochs else {}).items()
          if name.startswith(('train_', 'validation_'))}
  flops = run.environment.get('flops') or {}
  git = run.environment.get('git') or {}
  return {
      'column': run.column, 'rule': run.rule, 'seed': run.seed, **_values('over', run.over),
      **_values('tuned', run.tuned), 'state': run.state, 'shown': shown,
      'epochs': len(run.epochs), **last, **run.final,
      'seconds': sum(record['seconds'] for record in run.epochs),
      'parameters': run.environment.get('parameters'), 'flops_forward': flops.get('forward'),
      'flops_backward': flops.get('backward'),
      'device': (run.environment.get('device') or {}).get('kind'), 'git': git.get('revision'),
      'path': run.path, 'reason': run.reason}


def _values(kind: str, values: Mapping) -> dict[str, object]:
  return {f'{kind}.{name}': value if isinstance(value, int | float | str) else json.dumps(value)
          for name, value in values.items()}
