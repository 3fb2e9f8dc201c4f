"""The folder of a report: written over what a report wrote, and never over anything else."""
import hashlib
import json
import pathlib
from collections.abc import Mapping

from bioprop.errors import WorkdirError
from bioprop.training import files

_MANIFEST = '.report.json'  # The files of the report by name, with the hashes of what they hold.


def write(folder: pathlib.Path, contents: Mapping[str, bytes]) -> None:
  """Writes files into a folder, each whole or not at all; removes what an older report had more.

  Args:
    folder: made if it is not there.
    contents: by name; slashes lead into folders below.

  Raises:
    WorkdirError: if a file of such a name is there that no report wrote, or that was changed since;
      nothing is written then. Or if the folder cannot be written.
  """
  try:
    known = _known(folder)
    for name in {**contents, **known}:
      _refuse(folder, name, known.get(name, []))
    hashes = {name: _hash(content) for name, content in contents.items()}
    for name in {*contents, _MANIFEST}:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
    # Whatever of it is there if this is cut short is the report's.
    _note(folder, {name: [*known.get(name, []), *([hashes[name]] if name in hashes else [])]
                   for name in {**known, **hashes}})
    for name, content in contents.items():
      with files.replacing(folder / name) as file:
        file.write(content)
    for name in known.keys() - contents.keys():
      (folder / name).unlink(missing_ok=True)
    _note(folder, {name: [value] for name, value in hashes.items()})
  except OSError as error:
    raise WorkdirError(f'cannot write the report into {folder}: {error.strerror or error}. Choose '
                       'a folder that you can write to: --out=report') from error


def _known(folder):
  path = folder / _MANIFEST
  try:
    found = json.loads(path.read_text('utf-8'))
    return {str(name): list(hashes) for name, hashes in found['files'].items()}
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise WorkdirError(f'{path} is damaged ({error}), so which files the report may replace is not '
                       'known. Choose another folder: --out=report') from error


def _refuse(folder, name, hashes):
  """Raises where a file would be lost."""
  path = folder / name
  if not (path.exists() or path.is_symlink()):
    return
  if path.is_symlink() or not path.is_file() or _hash(path.read_bytes()) not in hashes:
    what = 'was changed since a report wrote it' if hashes else 'is no file of a report'
    raise WorkdirError(f'{path} {what}, and would be lost. Nothing was written. Move it away, or '
                       'choose another folder: --out=report')


def _note(folder, known):
  with files.replacing(folder / _MANIFEST) as file:
    file.write(json.dumps({'files': known}, indent=1, sort_keys=True).encode() + b'\n')


def _hash(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
