"""The table of a sweep: what the runs' own records say."""
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bioprop.bench import statistics
from bioprop.bench.sweep import choice
from bioprop.bench.sweep.plan import LOCK, Run
from bioprop.errors import WorkdirError
from bioprop.training import files, metrics, workdir

UNITS = {
    'test_accuracy': 'test accuracy in %',
    'test_error': 'test error in %',
    'test_loss': 'test loss, as config.loss has it (cross-entropy in nats)',
    'test_r2': 'share of the test targets\' variance that is explained, R^2',
    'test_mse': 'mean square error of a test output, in the targets\' unit squared',
}
DIVERGED = 'diverged.txt'  # In the directory of a run that diverged: what it said.
TABLE = 'table.md'


def table(runs: Sequence[Run], metric: str = 'test_accuracy') -> str:
  """Returns a Markdown table, a row for each rule and a column for each configuration.

  Of runs that were tuned it has the chosen ones, and what was chosen.

  Args:
    runs: those of a sweep, trained or not.
    metric: a key of `UNITS`.

  Raises:
    WorkdirError: if the record of a finished run is damaged, or has no such number.
  """
  _refuse_unfit(runs, metric)
  places = list(dict.fromkeys(one.place for one in runs))
  rows = [['rule', *places]]
  for rule in dict.fromkeys(one.rule for one in runs):
    rows.append([rule, *(_cell([one for one in runs if (one.place, one.rule) == (place, rule)],
                               metric) for place in places)])
  return markdown(rows)


def write(root: str | os.PathLike, runs: Sequence[Run], metric: str) -> pathlib.Path:
  """Writes the table, with what it shows, to RUNS/table.md."""
  path = pathlib.Path(root, TABLE).expanduser()
  text = f'{caption(runs, metric)}\n\n{table(runs, metric)}\n'
  # Processes that share a sweep end together.
  with files.locked(path.with_name(LOCK)), files.replacing(path) as file:
    file.write(text.encode())
  return path


def caption(runs: Sequence[Run], metric: str) -> str:
  """What the numbers of a table are."""
  seeds = len({one.config.seed for one in runs})
  words = f'Mean ± standard deviation over {seeds} seeds' if seeds > 1 else 'One seed'
  tuned = ', '.join(dict.fromkeys(field for one in runs for field in one.tuned))
  chosen = f' {tuned}: chosen by the validation split, for each rule.' if tuned else ''
  return f'{UNITS[metric].capitalize()}. {words}.{chosen}'


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table; the first row is its head."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def is_done(one: Run) -> bool:
  """Whether there is nothing to train: finished or diverged, by this very configuration."""
  done = metrics.is_finished(one.path) or (one.path / DIVERGED).exists()
  present = workdir.read_config(one.path) if done else None
  return present is not None and not workdir.others(present, workdir.as_json(one.config))


def chosen(runs: Sequence[Run]) -> dict[str, Any] | None:
  """What of the tuned values is best by the validation split, as `choice.best` has it.

  Args:
    runs: of one rule and one place.

  Returns:
    The values by field, {} where nothing was tuned; None if a run is not done.
  """
  if not all(map(is_done, runs)):
    return None
  groups: dict[str, list[Run]] = {}
  for one in runs:
    groups.setdefault(repr(one.tuned), []).append(one)
  candidates = list(groups.values())
  failed = [[(one.path / DIVERGED).exists() for one in group] for group in candidates]
  at, _ = choice.best([
      {one.config.seed: _validation(one) for one, gone in zip(group, own) if not gone}
      for group, own in zip(candidates, failed)], list(map(sum, failed)))
  return dict(candidates[at or 0][0].tuned)  # Where all of them diverged, the first.


def _validation(one):
  """A number of the validation split that is better when larger."""
  last = metrics.read(one.path, one.config.epochs)[-2]
  for name, sign in (('validation_accuracy', 1), ('validation_r2', 1), ('validation_loss', -1)):
    if name in last:
      return sign * last[name]
  return 0.0  # Without a validation split there is nothing to choose between.


def _cell(runs, metric):
  best = chosen(runs) if any(one.tuned for one in runs) else {}
  if best is None:
    done = sum(map(is_done, runs))
    return f'{done} of {len(runs)} runs' if done else 'not run'
  runs = [one for one in runs if dict(one.tuned) == best]
  values = [_number(_final(one), metric) for one in runs if metrics.is_finished(one.path)]
  diverged = sum((one.path / DIVERGED).exists() for one in runs)
  parts = [str(statistics.summary(values))] if values else []
  parts += [f'{diverged} diverged'] if diverged else []
  missing = len(runs) - len(values) - diverged
  parts += [f'{missing} missing'] if parts and missing > 0 else []
  found = ', '.join(parts) or 'not run'
  with_what = ', '.join(f'{field.rpartition(".")[2]} {value:g}' if isinstance(value, float) else
                        f'{field.rpartition(".")[2]} {value}' for field, value in best.items())
  return f'{found} ({with_what})' if with_what else found


def _final(one) -> Mapping[str, float]:
  return metrics.read(one.path, one.config.epochs)[-1]


def _key(metric):
  return 'test_accuracy' if metric == 'test_error' else metric


def _refuse_unfit(runs, metric):
  """Raises WorkdirError if a finished run has no such number, with a metric that all have."""
  finals = [(one.path, _final(one)) for one in runs if metrics.is_finished(one.path)]
  kinds = {'test_r2' in record for _, record in finals}
  for path, record in finals:
    if _key(metric) not in record:
      numbers = 'test_r2' in record
      other = 'test_loss' if len(kinds) > 1 else 'test_r2' if numbers else 'test_accuracy'
      raise WorkdirError(f'{path} has no {metric}: what it was to predict are '
                         f'{"numbers" if numbers else "classes"}. The runs are trained; to see '
                         f'them, type the same command with --metric={other}.')


def _number(record, metric):
  name = _key(metric)
  if metric == 'test_error':
    return 100 - 100 * record[name]
  return 100 * record[name] if metric == 'test_accuracy' else record[name]
