"""Benchmarks of the mean-field solver: of widths, of classes, and of its start."""
import re

import pytest

pytestmark = pytest.mark.slow


def test_networks_come_to_their_limit(python):
  """As they widen, under each rule."""
  done = python('--rules=dfa,fa:0.5', '--depths=1', '--widths=50,400', '--networks=3',
                '--copies=1000', module='bioprop.bench.widths')
  assert done.returncode == 0, done.stderr
  slopes = [float(one) for one in re.findall(r'slope ([-+.0-9]+)', done.stdout)]
  assert len(slopes) == 2 and all(-0.9 < one < -0.2 for one in slopes), done.stdout


def test_classes_beside_a_network(python):
  """In the memory that was told, near a network."""
  done = python('--dataset=digits', '--samples=20', '--steps=10', '--copies=400', '--rules=dfa',
                '--width=400', '--networks=2', '--rate=1', module='bioprop.bench.classes')
  assert done.returncode == 0, done.stderr
  first, last = map(float, re.search(r'loss ([.0-9]+) to ([.0-9]+)', done.stdout).groups())
  assert first == 2.303 and last < 2.25, done.stdout
  assert float(re.search(r'their mean ([.0-9]+)', done.stdout).group(1)) < 0.4, done.stdout


def test_what_is_known_of_the_start(python, tmp_path):
  """Less noise at small gamma_0, and a figure."""
  done = python('--rules=bp', '--depths=1', '--gamma0=0.05', '--copies=200', '--replicas=6',
                f'--out={tmp_path / "start.png"}', module='bioprop.bench.start')
  assert done.returncode == 0, done.stderr
  without, known = map(float, re.search(r'f ([.0-9]+), known ([.0-9]+)', done.stdout).groups())
  assert known < without / 3 and (tmp_path / 'start.png').stat().st_size > 1000


@pytest.mark.parametrize('module, argument, words', [
    ('widths', '--widths=100', 'has no slope'), ('widths', '--depths=deep', 'whole numbers'),
    ('widths', '--rules=fb', "rule='fb' is none of"), ('start', '--copies=9', '--copies=64'),
    ('start', '--gamma0=none', 'numbers above 0'), ('classes', '--copies=100', '--copies=2000'),
    ('start', '--rules=fb', "rule='fb' is none of")])
def test_refused(python, module, argument, words):
  """One paragraph."""
  done = python(argument, module=f'bioprop.bench.{module}')
  assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr
