"""Strict numerics for every test: no silent rank or dtype promotion, warnings are errors."""
import os
import pathlib
import tempfile

# What several tests and their processes compile is compiled once; workers and programs inherit it.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix='bioprop-tests-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
def quick():
  """Programs that run once: XLA does not optimise them."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
