"""The `examples/` folder of the installed flax release, from the source archive of that release.

It is on no machine that has only installed flax, and it is not ours to commit: so the tests fetch
the archive once, with the user's own pip and its configuration, into bioprop's cache.
"""
import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

from bioprop.data import cache

# pip builds an archive's metadata before it saves it, for which it would first install flax's build
# tools (most of a minute). This stands in for them, and no code of the archive runs either.
_BACKEND = '''
import pathlib

def prepare_metadata_for_build_wheel(directory, config_settings=None):
  info = pathlib.Path(directory, 'flax-{version}.dist-info')
  info.mkdir()
  (info / 'METADATA').write_text('Metadata-Version: 2.1\\nName: flax\\nVersion: {version}\\n')
  return info.name
'''


class Unavailable(Exception):
  """The archive cannot be had, and why."""


def examples() -> pathlib.Path:
  """The folder `examples/` of the installed version, downloaded if it is not in the cache.

  Raises:
    Unavailable: if there is no pip, no network, or no such folder in the archive.
  """
  version = importlib.metadata.version('flax')
  target = cache.directory() / f'flax-{version}-examples'
  target.parent.mkdir(parents=True, exist_ok=True)
  with _locked(target.with_name(f'{target.name}.lock')):
    if not target.is_dir():
      with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _extract(_download(version, pathlib.Path(folder)), pathlib.Path(folder))
        os.replace(pathlib.Path(folder) / f'flax-{version}' / 'examples', target)
  return target


@contextlib.contextmanager
def _locked(path: pathlib.Path):
  """One process at a time; the lock of a killed one is gone with it."""
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _download(version: str, folder: pathlib.Path) -> pathlib.Path:
  backend = folder / 'backend' / 'setuptools'
  backend.mkdir(parents=True)
  (backend / '__init__.py').touch()
  (backend / 'build_meta.py').write_text(_BACKEND.format(version=version))
  command = [
      sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check',
      '--retries=1', '--timeout=20', '--no-deps', '--no-build-isolation', '--no-binary=flax',
      f'--dest={folder}', f'flax=={version}']
  path = os.pathsep.join(filter(None, [str(backend.parent), os.environ.get('PYTHONPATH')]))
  try:
    done = subprocess.run(command, env={**os.environ, 'PYTHONPATH': path}, timeout=300,
                          capture_output=True, text=True, check=False)
  except subprocess.TimeoutExpired as error:
    raise Unavailable(f'pip took more than {error.timeout:.0f} s') from error
  archives = list(folder.glob('*.tar.gz'))
  if done.returncode or not archives:
    last = done.stderr.strip().splitlines()[-1:] or ['it saved nothing']
    raise Unavailable(f'pip cannot download the source archive of flax {version}: {last[0]}')
  return archives[0]


def _extract(archive: pathlib.Path, folder: pathlib.Path) -> None:
  with tarfile.open(archive) as tar:
    wanted = [m for m in tar.getmembers() if m.name.split('/')[1:2] == ['examples']]
    if not wanted:
      raise Unavailable(f'{archive.name} has no folder examples/')
    tar.extractall(folder, members=wanted, filter='data')
