"""The runs of a report: found on the disk, read, and named by what sets them apart.

What sets them apart is in their configurations, or in the sweep.json of the sweep that they are of
(bioprop/bench/sweep/saved.py).
"""
import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bioprop.bench.sweep import saved
from bioprop.bench.sweep.table import DIVERGED as REASON
from bioprop.errors import WorkdirError
from bioprop.training import config as config_lib
from bioprop.training import metrics, provenance, workdir

FINISHED, DIVERGED, UNFINISHED = 'finished', 'diverged', 'unfinished'
# What makes no difference to what is compared, or has a name of its own.
_APART = ('seed', 'rule', *config_lib.PLACEMENT)


class Run(NamedTuple):
  """One run.

  Attributes:
    path: its directory.
    column: what it is compared within: a configuration, or a model on a dataset.
    rule: with its options.
    seed: of the run.
    over: what the sweep is over, by name.
    tuned: what was, or is to be, chosen for its rule, by name.
    state: FINISHED, DIVERGED or UNFINISHED.
    reason: why it diverged, '' if it did not.
    config: its configuration, {} if it has not begun.
    epochs: a record of each epoch.
    final: the test result, {} if it is not finished.
    environment: where it ran and what it costs; {} if that was not recorded.
  """
  path: pathlib.Path
  column: str
  rule: str
  seed: int
  over: Mapping[str, Any]
  tuned: Mapping[str, Any]
  state: str
  reason: str
  config: Mapping[str, Any]
  epochs: Sequence[Mapping[str, float]]
  final: Mapping[str, float]
  environment: Mapping[str, Any]


class Found(NamedTuple):
  """What lies in some directories.

  Attributes:
    runs: in the order of the sweep's plan, or of their names.
    metric: what a sweep was to show, None if none says.
    unlisted: directories of runs beside a plan that does not have them.
  """
  runs: list[Run]
  metric: str | None
  unlisted: list[pathlib.Path]


def find(roots: Iterable[str | os.PathLike]) -> Found:
  """Reads all runs in some directories: each is one, or has some at any depth.

  A directory with a sweep.json holds the runs that are listed there. Columns of several sweeps are
  never one, be they named alike: their configurations may differ.

  Raises:
    WorkdirError: if a directory does not exist or has no runs, or a file of a run is damaged.
  """
  sweeps: dict[pathlib.Path, list[Run]] = {}
  plain, metric, unlisted, seen = [], None, [], set()
  for root in dict.fromkeys(map(pathlib.Path, roots)):
    there = 0
    for path in _directories(root):
      if (plan := saved.read(path)) is not None:
        metric = metric or plan.get('metric')
        there += len(plan['runs'])
        if path.resolve() not in sweeps:
          own = [_listed(path, entry) for entry in plan['runs']]
          unlisted += sorted({*_runs_below(path)} - {one.path for one in own})
          sweeps[path.resolve()] = _unseen(own, seen)
      else:
        there += 1
        plain.append((root, path))
    if not there:
      raise WorkdirError(f'{root} holds no run: there is no config.json, there or in any directory '
                         'below. Give the --workdir of bioprop train, or the directory of a sweep.')
  single = [(root, path) for root, path in plain if path.resolve() not in seen]
  return Found([*_by_sweep(sweeps), *_named(single)], metric, unlisted)


def _unseen(runs, seen):
  """Those runs that were not seen, which from now on are: one that is found twice counts once."""
  found = []
  for one in runs:
    if (place := one.path.resolve()) not in seen:
      seen.add(place)
      found.append(one)
  return found


def _by_sweep(sweeps: Mapping[pathlib.Path, Sequence[Run]]) -> list[Run]:
  """The runs of all; where sweeps share a column's name, its sweep goes before it."""
  held = collections.Counter(
      name for own in sweeps.values() for name in {one.column for one in own})
  count: dict[str, int] = collections.Counter()
  found = []
  for path, own in sweeps.items():
    count[path.name] += 1
    alike = sum(other.name == path.name for other in sweeps) > 1
    label = f'{path.name} ({count[path.name]})' if alike else path.name
    found += [one._replace(column=f'{label}/{one.column}') if held[one.column] > 1 else one
              for one in own]
  return found


def _directories(root: pathlib.Path) -> list[pathlib.Path]:
  """Those of sweeps and of single runs; what lies in them is theirs."""
  if not root.is_dir():
    raise WorkdirError(f'there is no directory {root}. Give the directories of runs, or one that '
                       'has them, such as bioprop report runs/sweep')
  if (root / saved.SWEEP).is_file() or workdir.read_config(root) is not None:
    return [root]
  below = sorted(item for item in root.iterdir() if item.is_dir() and not item.is_symlink())
  return [found for item in below for found in _directories(item)]


def _runs_below(root):
  return {file.parent for file in root.rglob('config.json')}


def _listed(root, entry) -> Run:
  path = root / entry['path']
  return Run(path, entry['column'], entry['rule'], entry['seed'], entry['over'], entry['tuned'],
             *_read(path))


def _read(path: pathlib.Path) -> tuple:
  """Run's attributes from `state` on."""
  config = workdir.read_config(path) or {}
  try:
    reason = ' '.join((path / REASON).read_text('utf-8').split())
  except FileNotFoundError:
    reason = ''
  records = metrics.read(path, config.get('epochs'))
  epochs = [record for record in records if 'epoch' in record]
  final = next((record for record in records if 'epoch' not in record), {})
  state = FINISHED if final else DIVERGED if reason else UNFINISHED
  return state, reason, config, epochs, final, provenance.read(path) or {}


def _named(found: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> list[Run]:
  """Runs of which no plan says what sets them apart: their configurations do."""
  columns: dict[str, list[tuple[pathlib.Path, Mapping[str, Any]]]] = {}
  once = {path.resolve(): (root, path) for root, path in reversed(found)}
  for root, path in reversed(once.values()):
    config = workdir.config_of(path, 'model', 'dataset', 'rule', 'seed')
    name = (f'{config["model"]} on {config["dataset"]}' if path in (root, root / path.name) else
            path.parent.name)
    columns.setdefault(name, []).append((path, config))
  runs = []
  for column, members in columns.items():
    settings = [flat(config) for _, config in members]
    labels = [rule_label(config) for _, config in members]
    for (path, config), label, over, tuned in zip(members, labels, *_apart(settings, labels)):
      runs.append(Run(path, column, label, config['seed'], over, tuned, *_read(path)))
  return runs


def rule_label(config: Mapping[str, Any]) -> str:
  """Returns a configuration's rule, with the options that were set: 'fa(rho=0.5)'."""
  options = {name: value for name, value in config.get('rule_options', {}).items()
             if value is not None}
  inner = ','.join(f'{name}={value}' for name, value in options.items())
  return f'{config["rule"]}({inner})' if inner else config['rule']


def _apart(settings, labels):
  """What differs within a rule, and what only between rules: a sweep, and settings of each rule."""
  over, tuned = [{} for _ in settings], [{} for _ in settings]
  for key in dict.fromkeys(key for one in settings for key in one):
    values = [json.dumps(one.get(key)) for one in settings]
    if len(set(values)) > 1:
      by_rule = {label: {value for value, own in zip(values, labels) if own == label}
                 for label in labels}
      varied = max(map(len, by_rule.values())) > 1
      for one, to in zip(settings, over if varied else tuned):
        to[key] = one.get(key)
  return over, tuned


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns settings by dotted names, less the rule with its options, the seed and the place."""
  found = {}
  for name, value in config.items():
    key = f'{prefix}{name}'
    if key in _APART or key == 'rule_options':
      continue
    found |= flat(value, f'{key}.') if isinstance(value, dict) else {key: value}
  return found
