"""Where TFDS keeps prepared files: `<data_dir>/<name>/[<config>/]<version>/dataset_info.json`.

We look ourselves, because TFDS, given a folder without the dataset, starts to download it.
"""
import hashlib
import os
import pathlib
import re

from bioprop import errors

_VERSION = re.compile(r'\d+\.\d+\.\d+')


def root(data_dir: str | None) -> pathlib.Path:
  """The given folder, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
  chosen = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(chosen).expanduser()


def find(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """Finds the newest prepared version of a dataset.

  Args:
    name: `<dataset>` or `<dataset>/<config>`. Without a config, the only one that is prepared.
    data_dir: as `root` returns it.

  Returns:
    The folder with `dataset_info.json`, or None where nothing is prepared.

  Raises:
    DataError: several configs are prepared and the name does not say which, or a folder may not be
      read.
  """
  dataset = data_dir / name
  try:
    if newest := _newest_version(dataset):
      return newest
    children = sorted(dataset.iterdir()) if dataset.is_dir() else []
    configs = {child.name: version for child in children if (version := _newest_version(child))}
  except PermissionError as err:
    raise errors.DataError(
        f'The dataset {name!r} cannot be looked for in {data_dir}: {err}. Ask for the right to '
        f'read it, or give another folder: --data_dir=<folder>') from err
  if len(configs) > 1:
    raise errors.DataError(
        f'{name!r} is prepared in {data_dir} in {len(configs)} configs ({", ".join(configs)}), '
        f'which are different data. Name one, for example: {name}/{next(iter(configs))}')
  return next(iter(configs.values()), None)


def fingerprint(folder: pathlib.Path) -> str:
  """sha256 of the names and contents of a prepared version's files, 64 hex digits.

  Contents rather than dates: a copy of the same data shares the cache, and data that were prepared
  anew do not.

  Raises:
    DataError: a file may not be read.
  """
  digest = hashlib.sha256()
  try:
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
      with open(path, 'rb') as file:
        digest.update(f'{path.name} {hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
  except OSError as err:
    raise errors.DataError(
        f'The prepared dataset in {folder} cannot be read: {err}. Ask for the right to read it, or '
        f'give another folder: --data_dir=<folder>') from err
  return digest.hexdigest()


def _newest_version(folder: pathlib.Path) -> pathlib.Path | None:
  """The subfolder of the highest version that TFDS finished, or None."""
  if not folder.is_dir():
    return None
  versions = [path for path in folder.iterdir()
              if _VERSION.fullmatch(path.name) and (path / 'dataset_info.json').is_file()]
  # Numbers, not text: 3.0.10 is newer than 3.0.9.
  return max(versions, key=lambda path: [int(part) for part in path.name.split('.')], default=None)
