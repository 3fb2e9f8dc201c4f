"""The benchmark of kernels: what it prints, on networks and counts of a test's size."""
import json
import sys

import pytest

from bioprop.bench import ntk_speed


@pytest.fixture
def small(monkeypatch):
  """Networks of a few units."""
  monkeypatch.setattr(ntk_speed, '_HIDDEN', {'mlp': (4, 4, 4)})


@pytest.mark.slow
@pytest.mark.usefixtures('small')
def test_each_is_timed():
  """The MLP has a floor; ratios are to `ntk`, whose own is 1."""
  rows = {row['what']: row for row in ntk_speed.measured('mlp', 3, True, 2, None)}
  assert list(rows) == ['ntk', 'entk', 'floor'] and rows['ntk']['over_ntk'] == 1
  assert all(row['ms'] >= 0 and row['kernel'] == 'traced' and row['n'] == 3
             for row in rows.values())


@pytest.mark.slow
@pytest.mark.usefixtures('small')
def test_a_peer_is_asked_in_turns(tmp_path):
  """Any program that answers a line with a line; here one that says two seconds."""
  program = tmp_path / 'peer.py'
  program.write_text('import sys\nfor line in sys.stdin:\n'
                     '  with open(sys.argv[0] + ".log", "a") as log:\n'
                     '    log.write(line)\n'
                     '  print(\'{"seconds": 2.0}\', flush=True)\n')
  peer = ntk_speed.Peer(sys.executable, 2, program)
  rows = ntk_speed.measured('mlp', 3, False, 2, peer)
  peer.close()
  assert next(row['ms'] for row in rows if row['what'] == 'peer') == 2000
  asked = [json.loads(line) for line in (tmp_path / 'peer.py.log').read_text().splitlines()]
  case = {'network': 'mlp', 'n': 3, 'trace': False, 'implementation': 2}
  assert asked == [case] * 3  # Two rounds, and one that compiles.


def test_a_python_without_the_peer():
  """It says what is missing, and where it is told how to get it."""
  peer = ntk_speed.Peer(sys.executable)
  with pytest.raises(ntk_speed.app.UsageError, match='neural-tangents 0.6.5'):
    peer.seconds(network='mlp', n=3, trace=False)
  peer.close()
