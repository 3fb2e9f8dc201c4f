"""How theory's errors fall: the table, and what is no number."""
import pytest

pytestmark = pytest.mark.slow


# Of bp at depth 2, two keys leave a slope that hangs on rounding.
@pytest.mark.parametrize('rule, depths', [('bp', '1'), ('gln', '1,2')])
def test_a_table(python, rule, depths):
  """A row for each depth; errors fall, and networks are near."""
  done = python(f'--rules={rule}', f'--depths={depths}', '--copies=200,3200', '--width=300',
                '--networks=4', '--keys=2', module='bioprop.bench.accuracy')
  assert done.returncode == 0, done.stderr
  rows = [line.strip('| ').split(' | ') for line in done.stdout.splitlines()[2:]]
  assert [row[:2] for row in rows] == [[rule, depth] for depth in depths.split(',')]
  for few, many, slope, networks, noise in (map(float, row[2:]) for row in rows):
    assert many < few and -0.9 < slope < -0.2 and 0 < networks < 0.3 and 0 < noise < 0.3


def test_what_is_no_number(python):
  """One paragraph."""
  done = python('--copies=many', module='bioprop.bench.accuracy')
  assert done.returncode == 1 and '--copies=many is no list of whole numbers' in done.stderr
