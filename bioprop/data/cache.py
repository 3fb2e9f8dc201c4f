"""Arrays in one file that is either whole and unaltered, or an error.

A file is a line `bioprop-arrays <bytes> <sha256>` about everything after it, a line of JSON with
each array's name, dtype and shape, and the arrays' bytes in this order.
"""
import hashlib
import json
import math
import os
import pathlib
import re
import shlex
import time
import uuid
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from absl import logging

from bioprop import errors

_FIRST_LINE = re.compile(rb'bioprop-arrays (\d{20}) ([0-9a-f]{64})\n')
_FIRST_LINE_BYTES = len('bioprop-arrays ') + 20 + 1 + 64 + 1
# Nobody writes one file for this long: a temporary file that is older was left by a killed run.
_STALE_SECONDS = 3600


def directory() -> pathlib.Path:
  """`$BIOPROP_CACHE`, else `$XDG_CACHE_HOME/bioprop`, else `~/.cache/bioprop`."""
  if own := os.environ.get('BIOPROP_CACHE'):
    return pathlib.Path(own).expanduser()
  shared = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(shared).expanduser() / 'bioprop'


def read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Reads what `write` wrote, after checking every byte of it.

  Args:
    path: the cache file.

  Returns:
    The arrays by name, or None where there is no such file or this user may not read it.

  Raises:
    CacheError: the file is there and is not what was written.
  """
  try:
    with open(path, 'rb') as file:
      _check(path, file)
      file.seek(_FIRST_LINE_BYTES)
      return {name: np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
              for name, dtype, shape in json.loads(file.readline())}
  except (FileNotFoundError, NotADirectoryError):
    return None
  except PermissionError as err:
    logging.warning('The cache of decoded images cannot be read (%s): decoding again. To use a '
                    'cache of your own, type: export BIOPROP_CACHE=<folder>', err)
    return None
  except OSError as err:
    raise _damaged(path, f'it cannot be read ({err})') from err


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays so that `path` is never half a file: not when killed, not when two write at once.

  A folder that cannot be written costs decoding time in the next run and nothing in this one,
  which has its arrays already: so it is a warning and no error.

  Args:
    path: the cache file; its folder is made if need be.
    arrays: what `read` shall return.
  """
  arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  table = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
  parts = [json.dumps(table).encode() + b'\n', *arrays.values()]
  digest = hashlib.sha256()
  for part in parts:
    digest.update(part)
  size = sum(memoryview(part).nbytes for part in parts)
  first = f'bioprop-arrays {size:020d} {digest.hexdigest()}\n'.encode()
  # A name of its own for each writer; os.replace then swaps whole files, and the last one wins.
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    try:
      with open(temporary, 'xb') as file:
        for part in [first, *parts]:
          file.write(part)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as err:
    logging.warning(
        'The decoded images cannot be kept in %s (%s): this run goes on, and the next one will '
        'decode them again. To keep them elsewhere, type: export BIOPROP_CACHE=<folder you can '
        'write>', path, err)


def _check(path: pathlib.Path, file: BinaryIO) -> None:
  """Raises CacheError unless the file is as long as it was and has the same bytes."""
  match = _FIRST_LINE.fullmatch(file.read(_FIRST_LINE_BYTES))
  if match is None:
    raise _damaged(path, 'it does not begin with the line that bioprop writes first')
  size, promised = os.fstat(file.fileno()).st_size - _FIRST_LINE_BYTES, int(match[1])
  if size != promised:
    raise _damaged(path, f'it is cut or extended, with {size} bytes after its first line where '
                         f'this line says {promised}')
  if hashlib.file_digest(file, 'sha256').hexdigest() != match[2].decode():
    raise _damaged(path, 'its contents do not have the checksum that its first line says')


def _remove_stale(path: pathlib.Path) -> None:
  """Deletes temporary files that killed runs left of this very cache file."""
  for old in path.parent.glob(f'{path.name}.*.tmp'):
    try:
      if time.time() - old.stat().st_mtime > _STALE_SECONDS:
        old.unlink()
    except FileNotFoundError:
      continue  # Another run was faster.


def _damaged(path: pathlib.Path, what: str) -> errors.CacheError:
  return errors.CacheError(
      f'The cache of decoded images {path} is damaged: {what}. It is not used, because training on '
      f'damaged images would go unnoticed, and not deleted, because it is yours; the dataset '
      f'itself is not touched by this. To have it decoded anew, type: rm {shlex.quote(str(path))}')
