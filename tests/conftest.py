"""Strict numerics for every test: no silent rank or dtype promotion, warnings are errors."""
import collections
import ctypes
import gc
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile

# What several tests and their processes compile is compiled once; workers and programs inherit it.
# The XLA of jax 0.8 prints errors when it loads its own programs again, which tests of stderr see.
if not (importlib.metadata.version('jax').startswith('0.8.')
        or 'JAX_COMPILATION_CACHE_DIR' in os.environ):
  _cache = tempfile.TemporaryDirectory(prefix='bioprop-tests-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Most of the suite's time is compiling programs that then run for milliseconds: without most
# optimisations, in one piece, and, up to jax 0.11, by the code generation that has less to do.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if 'XLA_FLAGS' not in os.environ:
  os.environ['XLA_FLAGS'] = '--xla_cpu_parallel_codegen_split_count=1'
  if importlib.metadata.version('jax').startswith(('0.8.', '0.9.', '0.10.', '0.11.')):
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
  parser.addoption('--all', action='store_true', help='run the tests marked slow as well')


def pytest_collection_modifyitems(config, items):
  """Leaves out what is marked slow, but where markers (-m) or tests (a::b) are asked for."""
  seen = collections.Counter()
  for item in items:
    if marker := item.get_closest_marker('some'):
      test = item.nodeid.partition('[')[0]
      if seen[test] % marker.args[0]:
        item.add_marker('slow')
      seen[test] += 1
  asked = config.getoption('--all') or config.getoption('markexpr')
  if asked or any('::' in arg for arg in config.args):
    return
  slow = [item for item in items if item.get_closest_marker('slow')]
  config.stash[LEFT_OUT] = len(slow)
  items[:] = [item for item in items if not item.get_closest_marker('slow')]
  config.hook.pytest_deselected(items=slow)


def pytest_sessionfinish(session):
  """A worker tells the process that writes the summary; all workers have collected all tests."""
  if hasattr(session.config, 'workeroutput'):
    session.config.workeroutput['left_out'] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  node.config.stash[LEFT_OUT] = getattr(node, 'workeroutput', {}).get('left_out', 0)


def pytest_terminal_summary(terminalreporter, config):
  left_out = config.stash.get(LEFT_OUT, 0)
  if left_out:
    terminalreporter.write_line(f'{left_out} slow tests were left out; type: pytest --all')


@pytest.fixture(scope='module', autouse=True)
def _memory():
  """What a module compiled is of no use to others, and would grow to gigabytes."""
  yield
  jax.clear_caches()
  gc.collect()
  if sys.platform == 'linux':
    ctypes.CDLL(None).malloc_trim(0)  # LLVM leaves many holes, which glibc keeps.


@pytest.fixture(scope='session')
def python(tmp_path_factory):
  """python(*argv, module=None, cwd=ROOT) runs a program of ours to its end, as the shell would."""
  output = tmp_path_factory.mktemp('output')
  server = subprocess.Popen([sys.executable, ROOT / 'tests' / 'programs.py'], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)

  def run(*argv, module=None, cwd=ROOT, seconds=200):
    out, err = output / 'out', output / 'err'
    for path in (out, err):
      path.unlink(missing_ok=True)
    asked = {'argv': argv, 'module': module, 'cwd': cwd, 'out': out, 'err': err, 'seconds': seconds}
    print(json.dumps(asked, default=str), file=server.stdin, flush=True)
    status = int(server.stdout.readline())
    return subprocess.CompletedProcess(argv, status, out.read_text(), err.read_text())

  yield run
  server.communicate()


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def tfds_dir() -> str:
  """Directory of prepared TFDS datasets, beside the repository; skips where there is none."""
  path = ROOT.parent / 'shared' / 'data' / 'tfds'
  if not path.is_dir():
    pytest.skip(f'no prepared datasets at {path.name}/ beside the repository')
  return str(path)


@pytest.fixture
def optimised():
  """XLA's optimisation, for programs that run for long."""
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)
