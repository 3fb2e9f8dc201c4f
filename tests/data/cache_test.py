"""The cache file: whole and unaltered, or an error that says what to type."""
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bioprop import errors
from bioprop.data import cache

ARRAYS = {'images': np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
          'labels': np.array([7, -1], np.int32), 'none': np.zeros((0, 5), np.uint8)}


@pytest.fixture
def path(cache_dir):
  file = cache_dir / 'x y.arrays'
  cache.write(file, ARRAYS)
  return file


@pytest.fixture
def warnings(caplog):
  """The absl warnings of a test."""
  return lambda: [r.getMessage() for r in caplog.records
                  if (r.name, r.levelname) == ('absl', 'WARNING')]


def assert_equal(arrays):
  assert list(arrays) == list(ARRAYS)
  for name, array in ARRAYS.items():
    assert arrays[name].dtype == array.dtype
    np.testing.assert_array_equal(arrays[name], array)


def test_reads_what_was_written(path):
  assert_equal(cache.read(path))
  assert os.listdir(path.parent) == [path.name]


def test_array_that_is_not_contiguous(cache_dir):
  cache.write(cache_dir / 'a', {'t': ARRAYS['images'].T})
  np.testing.assert_array_equal(cache.read(cache_dir / 'a')['t'], ARRAYS['images'].T)


def test_no_file_is_no_error(cache_dir):
  assert cache.read(cache_dir / 'absent') is None


def test_any_flipped_byte_is_found(path):
  whole = path.read_bytes()
  for index in range(len(whole)):
    path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1:])
    with pytest.raises(errors.CacheError):
      cache.read(path)
  path.write_bytes(whole)
  assert_equal(cache.read(path))


def test_any_truncation_is_found(path):
  whole = path.read_bytes()
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    with pytest.raises(errors.CacheError):
      cache.read(path)
  path.write_bytes(whole + b'\0')
  with pytest.raises(errors.CacheError, match='extended'):
    cache.read(path)


def test_damage_is_one_paragraph_with_the_line_to_type_and_nothing_is_deleted(path):
  path.write_bytes(path.read_bytes()[:-1] + b'\0')
  with pytest.raises(errors.CacheError) as info:
    cache.read(path)
  message = str(info.value)
  assert 'checksum' in message and '\n' not in message
  command = message[message.index('rm '):]
  assert shlex.split(command) == ['rm', str(path)]  # Quoted: the name has a space.
  assert path.exists()
  subprocess.run(command, shell=True, check=True)
  assert cache.read(path) is None


def test_killed_while_writing_leaves_the_old_file_whole(path):
  # Killed when all bytes are written and none is promised to be on disk, before the renaming.
  code = '''
import os, pathlib, signal, sys
import numpy as np
from bioprop.data import cache
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
cache.write(pathlib.Path(sys.argv[1]), {'images': np.ones(10_000_000, np.uint8)})
'''
  done = subprocess.run([sys.executable, '-c', code, str(path)], check=False, timeout=60)
  assert done.returncode == -signal.SIGKILL
  assert_equal(cache.read(path))
  leftover, = set(path.parent.iterdir()) - {path}
  # The next writer removes it once it is too old to belong to a living one, and not before.
  cache.write(path, ARRAYS)
  assert leftover.exists()
  old = time.time() - 2 * 3600
  os.utime(leftover, (old, old))
  cache.write(path, ARRAYS)
  assert set(path.parent.iterdir()) == {path}


@pytest.mark.slow
def test_two_processes_write_at_once(cache_dir):
  code = '''
import pathlib, sys
import numpy as np
from bioprop.data import cache
path, value = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for _ in range(30):
  cache.write(path, {'a': np.full(100_000 + value, value, np.uint8)})
  array = cache.read(path)['a']  # Raises if it is a mixture.
  assert set(array.tolist()) == {len(array) - 100_000}
'''
  runs = [subprocess.Popen([sys.executable, '-c', code, str(cache_dir / 'a'), value])
          for value in '12']
  assert [run.wait(timeout=60) for run in runs] == [0, 0]
  assert os.listdir(cache_dir) == ['a']


def test_unwritable_folder_is_a_warning(tmp_path, warnings):
  # A file in the folder's place: root, too, cannot write there.
  (tmp_path / 'file').write_text('')
  cache.write(tmp_path / 'file' / 'a', ARRAYS)
  message, = warnings()
  assert 'decode them again' in message and 'export BIOPROP_CACHE=' in message
  assert cache.read(tmp_path / 'file' / 'a') is None


def test_full_disk_is_a_warning_and_leaves_nothing(cache_dir, monkeypatch, warnings):
  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(cache.os, 'fsync', full)
  cache.write(cache_dir / 'a', ARRAYS)
  assert 'No space left' in warnings()[0]
  assert os.listdir(cache_dir) == []


@pytest.mark.parametrize('own, shared, expected', [
    ('/a', '/b', '/a'), ('', '/b', '/b/bioprop'), (None, None, '/home/me/.cache/bioprop'),
    (None, '', '/home/me/.cache/bioprop'), ('~/c', None, '/home/me/c')])
def test_directory(own, shared, expected, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  for name, value in {'BIOPROP_CACHE': own, 'XDG_CACHE_HOME': shared}.items():
    if value is None:
      monkeypatch.delenv(name, raising=False)
    else:
      monkeypatch.setenv(name, value)
  assert cache.directory() == pathlib.Path(expected)
