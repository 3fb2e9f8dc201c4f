"""How theory's errors fall: the table, and what is no number."""
import pytest

pytestmark = pytest.mark.slow


def test_a_table(python):
  """A row for each rule; errors fall, and networks are near. Two keys would not do at depth 2."""
  done = python('--rules=bp,gln', '--depths=1', '--copies=200,3200', '--width=300',
                '--networks=4', '--keys=2', module='bioprop.bench.accuracy')
  assert done.returncode == 0, done.stderr
  rows = [line.strip('| ').split(' | ') for line in done.stdout.splitlines()[2:]]
  assert [row[:2] for row in rows] == [['bp', '1'], ['gln', '1']]
  for few, many, slope, networks, noise in (map(float, row[2:]) for row in rows):
    assert many < few and -0.9 < slope < -0.2 and 0 < networks < 0.3 and 0 < noise < 0.3


def test_what_is_no_number(python):
  """One paragraph."""
  done = python('--copies=many', module='bioprop.bench.accuracy')
  assert done.returncode == 1 and '--copies=many is no list of whole numbers' in done.stderr
