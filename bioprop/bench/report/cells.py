"""Runs that differ by their seed alone, together; and the choice among those that were tuned."""
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bioprop.bench.report import runs as runs_lib
from bioprop.bench.report.metric import Metric
from bioprop.bench.report.runs import Run
from bioprop.bench.sweep import choice

BASELINE = 'bp'


class Candidate(NamedTuple):
  """A value that was tried.

  Attributes:
    tuned: by name.
    score: mean of the validation results on the seeds that all candidates have finished (if they
      share none: on its own); None without a validation split, or if no run is finished.
    runs: all of them.
    chosen: whether it is what the report shows.
  """
  tuned: Mapping[str, Any]
  score: float | None
  runs: Sequence[Run]
  chosen: bool


class Cell(NamedTuple):
  """A row of a table.

  Attributes:
    rule: with its options.
    over: what the sweep is over, by name.
    tuned: what was chosen, by name.
    runs: all seeds.
    candidates: among which that was chosen; one if there was no choice.
    undecided: there are candidates, and nothing to choose by: each is a row of its own.
  """
  rule: str
  over: Mapping[str, Any]
  tuned: Mapping[str, Any]
  runs: Sequence[Run]
  candidates: Sequence[Candidate]
  undecided: bool = False

  @property
  def finished(self) -> list[Run]:
    """The runs that have a test result, by seed; the last of those that are the same run again."""
    by_seed = {run.seed: run for run in self.runs if run.final}
    return [by_seed[seed] for seed in sorted(by_seed)]

  def count(self, state: str) -> int:
    """How many runs are in a state."""
    return sum(run.state == state for run in self.runs)

  def values(self, metric: Metric) -> dict[int, float]:
    """The metric of finished runs, by seed."""
    return {run.seed: metric.of(run) for run in self.finished}


def columns(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Returns the runs by column, in their order."""
  found: dict[str, list[Run]] = {}
  for run in runs:
    found.setdefault(run.column, []).append(run)
  return found


def varying(runs: Sequence[Run]) -> list[Run]:
  """Returns the runs of a column, with those values of a sweep alone that are not all the same."""
  keys = dict.fromkeys(key for run in runs for key in run.over)
  apart = [key for key in keys if len({json.dumps(run.over.get(key)) for run in runs}) > 1]
  return [run._replace(over={key: run.over[key] for key in apart if key in run.over})
          for run in runs]


def cells(runs: Sequence[Run], metric: Metric) -> list[Cell]:
  """Returns the rows of a column: by what the sweep is over, and below it by rule, bp first."""
  groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
  for run in runs:
    candidates = groups.setdefault((_key(run.over), run.rule), {})
    candidates.setdefault(_key(run.tuned), []).append(run)
  overs = list(dict.fromkeys(over for over, _ in groups))
  rules = sorted(dict.fromkeys(rule for _, rule in groups), key=lambda rule: rule != BASELINE)
  return [cell for over in overs for rule in rules if (over, rule) in groups
          for cell in _chosen(rule, list(groups[over, rule].values()), metric)]


def settings(found: Sequence[Cell]) -> list[list[Cell]]:
  """Returns the rows that differ in their rule alone, together."""
  by_over: dict[str, list[Cell]] = {}
  for cell in found:
    by_over.setdefault(_key(cell.over), []).append(cell)
  return list(by_over.values())


def named(values: Mapping[str, Any]) -> str:
  """Returns 'width = 64, epochs = 3': names without what they have in common with others."""
  return ', '.join(f'{short(key)} = {_shown(value)}' for key, value in values.items())


def short(key: str) -> str:
  """Returns the last part of a dotted name."""
  return key.rpartition('.')[2]


def _shown(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _key(values: Mapping[str, Any]) -> str:
  return json.dumps(values, sort_keys=True)


def _chosen(rule: str, groups: list[list[Run]], metric: Metric) -> list[Cell]:
  """The cell of the best candidate; of all where nothing says which that is."""
  best, scores = choice.best(
      [{run.seed: value for run in group
        if run.final and (value := metric.validated(run)) is not None} for group in groups],
      [sum(run.state == runs_lib.DIVERGED for run in group) for group in groups])
  if len(groups) == 1:
    best = 0
  candidates = [Candidate(group[0].tuned, score, group, at == best)
                for at, (group, score) in enumerate(zip(groups, scores))]
  return [Cell(rule, one.runs[0].over, one.tuned, one.runs, candidates, best is None)
          for one in candidates if one.chosen or best is None]
