"""The directory of one run: made, recognised, locked, and never mixed with anything else.

    config.json       the resolved configuration
    environment.json  versions, hardware and costs (training/provenance.py)
    metrics.jsonl     one line per epoch, and one with the final result
    events.out.*      the same for TensorBoard
    checkpoints/      by epoch
    probes/           measurements, by probe and step (training/probing.py)
    curves.png        drawn by bioprop train, and pictures of what probes found
"""
import contextlib
import json
import os
import pathlib
import shlex
from collections.abc import Iterator

import ml_collections

from bioprop.errors import InUseError, WorkdirError
from bioprop.training import config as config_lib
from bioprop.training import files, metrics

_CONFIG, _CURVES, _LOCK = 'config.json', 'curves.png', '.lock'
_NEW = f'{_CONFIG}.new'
ENVIRONMENT = 'environment.json'
_FOLDERS = ('checkpoints', 'probes')


@contextlib.contextmanager
def opened(path: str | os.PathLike, config: ml_collections.ConfigDict) -> Iterator[pathlib.Path]:
  """Makes or re-enters a run's directory, and holds it against other processes meanwhile.

  Raises:
    WorkdirError: if it cannot be written, holds something else, holds a run of another
      configuration, or is in use.
  """
  path = pathlib.Path(path).expanduser()
  with contextlib.ExitStack() as stack:
    try:
      _enter(path, as_json(config), stack)
    except OSError as error:
      raise WorkdirError(f'cannot use {path} as the working directory: '
                         f'{error.strerror or error}. Choose one that you can write to: '
                         '--workdir=...') from error
    yield path


def fresh(root: str | os.PathLike, name: str, config: ml_collections.ConfigDict) -> pathlib.Path:
  """Returns root/name, or the first of root/name-2, root/name-3, ... that is free.

  Free is what does not exist, and an unfinished run of the very same configuration (on whatever
  devices), which the same command thus resumes. A finished run is never entered: training again
  means a new one.
  """
  number = 1
  while True:
    path = pathlib.Path(root) / (name if number == 1 else f'{name}-{number}')
    if not path.exists() or _resumable(path, config):
      return path
    number += 1


def is_held(path: str | os.PathLike) -> bool:
  """Whether another process is training in a directory."""
  try:
    with _locked(pathlib.Path(path)):
      return False
  except InUseError:
    return True
  except OSError:  # Nothing is there, or what `opened` tells.
    return False


def read_config(path: pathlib.Path) -> dict | None:
  """Returns the configuration of the run in a directory, None if there is no run.

  Raises:
    WorkdirError: if config.json is damaged.
  """
  file = path / _CONFIG
  try:
    found = json.loads(file.read_text('utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, RecursionError) as error:
    raise _damaged(file, error) from error
  if not isinstance(found, dict):
    raise _damaged(file, f'it holds {str(found)[:40]!r}, and not names with values')
  return found


def config_of(run: str | os.PathLike, *names: str) -> dict:
  """Returns the configuration of the run in a directory.

  Args:
    run: the directory.
    *names: what it must have, of the type that it has by default.

  Raises:
    WorkdirError: if there is no run, or config.json is damaged.
  """
  config = read_config(pathlib.Path(run))
  if config is None:
    below = sorted(found for pattern in (f'*/{_CONFIG}', f'*/*/{_CONFIG}')  # As sweeps have them.
                   for found in pathlib.Path(run).glob(pattern))
    raise WorkdirError(f'{run} holds no run: there is no config.json. ' + (
        f'Give one of the {len(below)} below it, such as {below[0].parent}.' if below else
        'Give the --workdir of bioprop train.'))
  usual = config_lib.base()
  for name in names:
    if not isinstance(value := config.get(name), type(usual[name])):
      raise _damaged(pathlib.Path(run, _CONFIG),
                     f'{name} is {value!r}, and should be such as {usual[name]!r}')
  return config


def as_json(config: ml_collections.ConfigDict) -> dict:
  """Returns the configuration as JSON gives it back: tuples as lists."""
  return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def differences(old: dict, new: dict, prefix: str = '') -> list[str]:
  """Returns 'key: old there, new here' for every key whose value differs."""
  lines = []
  for key in sorted({*old, *new}):
    before, after = old.get(key), new.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
      lines += differences(before, after, f'{prefix}{key}.')
    elif before != after:
      lines.append(f'{prefix}{key} is {before!r} there and {after!r} here')
  return lines


def others(old: dict, new: dict) -> list[str]:
  """Returns the `differences` that make it another run: where a run computes may change."""
  return differences(*({name: value for name, value in config.items()
                        if name not in config_lib.PLACEMENT} for config in (old, new)))


def _enter(path, wanted, stack):
  """Checks what is there before anything is written; the lock is let go with the stack."""
  present = read_config(path)
  if present is None:
    _refuse_foreign(path)
  elif other := others(present, wanted):
    longer = shlex.quote(f'{path}-{wanted["epochs"]}')
    raise WorkdirError(
        f'{path} holds a run of another configuration, which is left as it is: '
        f'{"; ".join(other)}. ' + (
            'A run cannot be made longer or shorter: its learning rates were those of a run of so '
            f'many epochs. Train it from its start in another directory: --workdir={longer}'
            if [line.split()[0] for line in other] == ['epochs'] else
            'Give the same values to go on with it, or train in another --workdir.'))
  _refuse_unwritable(path)
  path.mkdir(parents=True, exist_ok=True)
  stack.enter_context(_locked(path))
  if present is None:
    with files.replacing(path / _CONFIG) as file:
      file.write(f'{json.dumps(wanted, indent=2)}\n'.encode())


def _resumable(path, config):
  """Whether the same command, given again, should go on here."""
  try:
    present = read_config(path)
    if present is None or others(present, as_json(config)) or metrics.is_finished(path):
      return False
    with _locked(path):
      return True
  except (WorkdirError, OSError):
    return False


def _refuse_foreign(path):
  """Raises WorkdirError if there is anything here that a run did not leave."""
  foreign = sorted({item.name for item in path.iterdir()} - {_LOCK, _NEW}) if path.exists() else []
  if foreign:
    some = ', '.join(foreign[:3]) + (', ...' if len(foreign) > 3 else '')
    raise WorkdirError(f'{path} holds other files ({some}) and no run, and is left as it is. '
                       f'Choose another --workdir, for instance {path / "run"}.')


def _refuse_unwritable(path):
  """Raises WorkdirError where a run would find, perhaps hours later, that it cannot write."""
  faults = {name: 'no directory' for name in _FOLDERS if (path / name).is_file()}
  for name in (metrics.NAME, ENVIRONMENT, _CURVES, _LOCK):
    if (path / name).is_symlink():
      faults[name] = 'a symbolic link'
    elif (path / name).is_dir():
      faults[name] = 'a directory'
  for name, fault in faults.items():
    move = f'mv {shlex.quote(str(path / name))} {shlex.quote(str(path / name) + "-moved")}'
    raise WorkdirError(f'{path / name} is {fault}, so that training could not write there. Nothing '
                       f'was changed. Move it away, and start the same command again: {move}')


def _damaged(file, why):
  return WorkdirError(f'{file} is damaged ({why}), so the run there cannot be resumed or read. '
                      'Restore it, or train in another --workdir.')


@contextlib.contextmanager
def _locked(path):
  """Holds a directory for this process."""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(files.locked(path / _LOCK, wait=False))
    except BlockingIOError:
      raise InUseError(f'another process is training in {path}. Wait for it, or choose another '
                       '--workdir.') from None
    yield
