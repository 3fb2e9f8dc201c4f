"""What a report compares: its name, its unit, and what is better."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bioprop.bench.report.runs import Run
from bioprop.errors import WorkdirError


class Metric(NamedTuple):
  """A number that a finished run has.

  Attributes:
    key: of the final record.
    label: in words.
    unit: '' if it has none.
    validation: of an epoch's record: what choices are made by, the higher the better, as
      `bioprop sweep` makes them; never the test result.
    more_is_better: whether the number is better when it is larger.
    percent, error: whether a share is shown in %, and whether it is what is missing from 1.
  """
  key: str
  label: str
  unit: str
  validation: str
  more_is_better: bool = True
  percent: bool = False
  error: bool = False

  @property
  def title(self) -> str:
    """Label and unit."""
    return f'{self.label} ({self.unit})' if self.unit else self.label

  @property
  def validation_title(self) -> str:
    """The same of what choices are made by."""
    return 'validation accuracy (%)' if self._in_percent else 'validation R²'

  @property
  def _in_percent(self):
    return self.validation == 'validation_accuracy'

  def of(self, run: Run) -> float:
    """The value of a finished run.

    Raises:
      WorkdirError: if it has none.
    """
    if self.key not in run.final:
      other, labels = (('test_r2', 'numbers') if 'test_r2' in run.final else
                       ('test_accuracy', 'classes'))
      raise WorkdirError(f'{run.path} has no {self.key}: what it was to predict are {labels}. Type '
                         f'the same command with --metric={other}, or without --metric.')
    value = 1 - run.final[self.key] if self.error else run.final[self.key]
    return 100 * value if self.percent else value

  def validated(self, run: Run) -> float | None:
    """What the last epoch gave on the validation split, None without one."""
    value = run.epochs[-1].get(self.validation) if run.epochs else None
    return 100 * value if value is not None and self._in_percent else value


def metric_of(runs: Sequence[Run], asked: str | None, usual: str | None = None) -> Metric:
  """Returns what the runs of a column are compared by.

  Args:
    runs: of one column.
    asked: a key of `bioprop.bench.sweep.table.UNITS`; None: what they have.
    usual: of the sweep that they are from, which holds where they have it.
  """
  config: Mapping = next((run.config for run in runs if run.config), {})
  finals = [run.final for run in runs if run.final]
  fits = any('test_r2' in final for final in finals)
  name = asked or usual or 'test_accuracy'
  if not asked and fits and name in ('test_accuracy', 'test_error'):
    name = 'test_r2'
  if not asked and finals and not fits and name in ('test_r2', 'test_mse'):
    name = 'test_accuracy'
  validation = 'validation_r2' if fits else 'validation_accuracy'
  if name == 'test_loss':
    cross = config.get('loss') == 'cross_entropy' and not fits
    unit = 'cross-entropy, nats' if cross else 'half the squared distance'
    return Metric(name, 'test loss', unit, validation, more_is_better=False)
  return {
      'test_accuracy': Metric(name, 'test accuracy', '%', validation, percent=True),
      'test_error': Metric('test_accuracy', 'test error', '%', validation, more_is_better=False,
                           percent=True, error=True),
      'test_r2': Metric(name, 'test R²', '', validation),
      'test_mse': Metric(name, 'test MSE', '', validation, more_is_better=False),
  }[name]
