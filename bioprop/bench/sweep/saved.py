"""RUNS/sweep.json: which runs there are, and what sets them apart.

    {"version": 1, "metric": "test_accuracy", "runs": [
        {"path": "digits_mlp/fa-seed0", "column": "digits_mlp", "rule": "fa(rho=0.5)", "seed": 0,
         "over": {"model_options.width": 64}, "tuned": {"learning_rate": 0.1}}, ...]}

path is seen from the file; metric is a key of `table.UNITS`, or null.
"""
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bioprop.bench.sweep.plan import LOCK, Run
from bioprop.bench.sweep.table import TABLE, UNITS
from bioprop.errors import WorkdirError
from bioprop.training import files

SWEEP = 'sweep.json'
_VERSION = 1
_ENTRY = {'path': str, 'column': str, 'rule': str, 'seed': int, 'over': dict, 'tuned': dict}


def write(root: str | os.PathLike, runs: Sequence[Run], metric: str) -> None:
  """Adds the runs to RUNS/sweep.json, by which `bioprop report` knows them.

  What earlier sweeps have written there stays.

  Raises:
    WorkdirError: if it cannot be written, what is there is damaged, or a table.md is there that no
      sweep has written.
  """
  root = pathlib.Path(root).expanduser()
  try:
    # The table is written last, so that no sweep has it without sweep.json.
    if (root / TABLE).exists() and not (root / SWEEP).exists():
      raise WorkdirError(f'{root / TABLE} would be replaced by the table of the sweep, and no '
                         f'{SWEEP} beside it says that it is of one. Move it away, or choose '
                         f'another directory: bioprop sweep {root}/sweep CONFIG ...')
    root.mkdir(parents=True, exist_ok=True)
    with files.locked(root / LOCK):  # Several processes may start at once.
      before = read(root)
      known = {one['path']: one for one in before['runs']} if before else {}
      for one in runs:
        path = str(one.path.relative_to(root))
        known[path] = {'path': path, 'column': one.column, 'rule': one.rule,
                       'over': dict(one.over), 'tuned': dict(one.tuned), 'seed': one.config.seed}
      with files.replacing(root / SWEEP) as file:
        file.write(json.dumps({'version': _VERSION, 'metric': metric, 'runs': list(known.values())},
                              indent=1).encode())
  except OSError as error:
    raise WorkdirError(f'cannot write the sweep into {root}: {error.strerror or error}. Choose a '
                       'directory that you can write to: bioprop sweep RUNS CONFIG ...') from error


def read(root: str | os.PathLike) -> Mapping[str, Any] | None:
  """What RUNS/sweep.json holds, None without it.

  Raises:
    WorkdirError: if it is damaged, or something else.
  """
  file = pathlib.Path(root, SWEEP).expanduser()
  try:
    found = json.loads(file.read_text('utf-8'))
    if not isinstance(found, dict) or not isinstance(found.get('runs'), list):
      raise ValueError('it has no list of runs')
    if found.get('version') != _VERSION:
      raise ValueError(f'it is of version {found.get("version")!r}, and this bioprop reads version '
                       f'{_VERSION}')
    if found.get('metric') not in (None, *UNITS):
      raise ValueError(f'its metric is {found["metric"]!r}; valid: {", ".join(UNITS)}')
    for entry in found['runs']:
      for name, kind in _ENTRY.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
          raise ValueError(f'{name!r} is missing or no {kind.__name__} in {str(entry)[:80]}')
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise WorkdirError(f'{file} is damaged ({error}). Move it away: the command of the sweep, '
                       'given again, writes it anew, and without it reports name runs by their '
                       'configurations. The runs themselves are not touched.') from error
  return found
