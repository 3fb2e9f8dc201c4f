"""What `import bioprop` costs: nothing of training or drawing is imported before it is used."""
import json
import subprocess
import sys

import pytest

from bioprop.__main__ import NEEDED
from bioprop.bench import imports

# Of these Flax itself imports some.
HEAVY = {*NEEDED.values(), 'scipy.stats', 'scipy.integrate', 'bioprop.training', 'bioprop.bench',
         'bioprop.data'}


def loaded(code: str) -> set[str]:
  """The modules that a process has imported after this."""
  done = subprocess.run(
      [sys.executable, '-c', f'{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))'],
      capture_output=True, text=True, timeout=200, check=True)
  return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope='module')
def of_flax():
  return loaded(imports.FLAX)


def test_nothing_heavy_before_it_is_used(of_flax):
  """All that is public is looked up, and a model plugged."""
  ours = loaded(imports.OURS)
  assert {'bioprop.measure.kernels', 'bioprop.theory.dmft'} <= ours  # It was looked up.
  assert not HEAVY & (ours - of_flax)


@pytest.mark.slow
def test_it_would_be_seen(of_flax):
  """A heavy module is not there for Flax's sake."""
  assert {'matplotlib', 'bioprop.bench'} <= HEAVY & (loaded('import bioprop.bench.plots') - of_flax)


def test_rows(monkeypatch):
  """Medians over rounds; what was timed first is left out."""
  seconds = {imports.FLAX: [9.0, 1.0, 1.0, 2.0], imports.OURS: [9.0, 1.5, 1.2, 2.0]}
  monkeypatch.setattr(imports, '_seconds', lambda code: seconds[code].pop(0))
  assert imports.measure(3) == [{'what': 'flax', 'seconds': 1.0, 'ratio': 1.0},
                                {'what': 'bioprop', 'seconds': 1.5, 'ratio': 1.2}]
  assert not any(seconds.values())


def test_a_process_is_timed():
  slept = imports._seconds('time.sleep(0.2)')
  assert 0.2 <= slept < 5
