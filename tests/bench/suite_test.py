"""The suite of one accelerator, and times of replicas: at a tiny scale, every part has its rows."""
import dataclasses

import pytest

from bioprop.bench import epochs, gpu, ntk_speed, replicas, speed, steps
from bioprop.models import MLP
from bioprop.training import metrics

SCALE = dataclasses.replace(gpu.SMALL, rounds=1, seconds=0., ntk_samples=(4,), peak=16)


@pytest.fixture
def tiny(monkeypatch):
  """Small networks and few examples; of rules bp and fa; an epoch that is said to take long."""
  monkeypatch.setitem(steps.CASES, 'mlp', steps.Case(MLP(hidden=(8,)), (4, 6, 6, 1)))
  monkeypatch.setitem(replicas.CASES, 'digits_mlp', replicas.Case(
      'mlp', 16, (4, 4, 1), 8, {'hidden': (4,), 'activation': 'relu'}))
  monkeypatch.setitem(ntk_speed._HIDDEN, 'mlp', (8,))
  monkeypatch.setattr(gpu, '_FIRST', ('bp', 'fa'))
  monkeypatch.setattr(gpu, 'RULES', {'bp': None, 'fa': None})
  monkeypatch.setattr(gpu, '_SHARES', dict.fromkeys(gpu._SHARES, .9))


class Shown:
  """What the suite prints of rows."""

  def __init__(self):
    self.rows = []

  def __call__(self, rows, columns):
    self.rows += [[row[column] for column in columns] for row in rows]


@pytest.mark.slow
def test_each_part_has_its_rows(tiny, monkeypatch, tmp_path):
  """Printed as they come; the rules' trainings are whole runs, of as many epochs as was said."""
  plain, told = gpu._epoch_seconds, []

  def slower(runs, data_dir):
    told.append((len(runs), *plain(runs, data_dir)))
    return 0., 120.  # An epoch of a rule; all have ten minutes.

  monkeypatch.setattr(gpu, '_epoch_seconds', slower)
  show = Shown()
  rows = gpu.run(speed.measure, show, 10., tmp_path, None, SCALE)
  of = lambda part: [row for row in rows if row['part'] == part]
  assert len(show.rows) == len(rows)
  assert [row['rule'] for row in of('steps')] == ['plain', 'bp', 'fa']
  assert all(row['step_ms'] > 0 and row['peak_mb'] > 0 for row in of('steps'))
  peak, *kernels = of('ntk')
  assert peak['what'] == 'peak' and peak['of_peak'].endswith('TFLOP/s')
  assert {(row['kernel'], row['what']) for row in kernels} >= {
      (kernel, what) for kernel in ('full', 'traced') for what in ('ntk', 'entk')}
  assert [(row['how'], row['replicas']) for row in of('replicas')] == [
      ('one by one', 8), ('together', 8)]
  (runs, compiling, epoch), = told
  assert runs == 4 and compiling >= 0 and epoch > 0
  assert [row['rule'] for row in of('training')] == ['bp', 'fa']
  for row in of('training'):
    assert row['epochs'] in (1, 2) and 'learning_rate' in row['test accuracy in %']
    paths = list(tmp_path.glob(f'*/*/{row["rule"]}-*-seed*'))
    assert len(paths) == 4
    assert all(len(metrics.read(path)) == row['epochs'] + 1 for path in paths)
  assert steps.CASES['mlp'].inputs == (4, 6, 6, 1)


def _quick(monkeypatch):
  """Parts before the training that cost nothing."""
  monkeypatch.setattr(gpu, '_ntk', lambda scale, end: iter(
      [dict.fromkeys(('network', 'n', 'kernel', 'what', 'ms', 'of_peak'), 1)]))
  monkeypatch.setattr(replicas, 'measure', lambda *args: [dict.fromkeys(
      ('model', 'replicas', 'how', 'epoch_s', 'ratio', 'together'), 1)])
  return lambda name, rules, rounds, seconds: [
      {'model': name, 'rule': rule, 'step_ms': 1, 'ratio': 1, 'peak_mb': 1}
      for rule in ('plain', *rules)]


def test_without_data_the_rest_stays(tiny, monkeypatch, tmp_path, capsys):
  """What lacks is told, and every other row is there."""
  scale = dataclasses.replace(SCALE, config='mnist_mlp')
  rows = gpu.run(_quick(monkeypatch), Shown(), 10., tmp_path, str(tmp_path / 'nothing'), scale)
  assert [row['part'] for row in rows] == ['steps'] * 3 + ['ntk', 'replicas']
  assert 'training was left out: ' in (said := capsys.readouterr().out)
  assert 'mnist' in said and ' minutes' in said.splitlines()[-1]


def test_runs_that_fail_are_told(tiny, monkeypatch, tmp_path, capsys):
  """Their rule has a row all the same, of what is there."""
  monkeypatch.setattr(gpu, '_epoch_seconds', lambda *args: (0., 100.))
  monkeypatch.setattr(gpu.work, 'train', lambda runs, data_dir: {runs[0].path: 'it cannot be made'})
  rows = gpu.run(_quick(monkeypatch), Shown(), 10., tmp_path, None, SCALE)
  last = [(row['rule'], row['test accuracy in %']) for row in rows if row['part'] == 'training']
  assert last == [('bp', 'not run'), ('fa', 'not run')]
  assert capsys.readouterr().out.count(' failed: it cannot be made') == 2


def test_no_time_is_told(tiny, monkeypatch, tmp_path, capsys):
  """The plain step and the first rules are timed all the same."""
  monkeypatch.setattr(gpu, 'RULES', dict.fromkeys(('bp', 'fa', 'dfa', 'usf')))
  monkeypatch.setattr(gpu, '_epoch_seconds', lambda *args: (0., 60.))
  rows = gpu.run(_quick(monkeypatch), Shown(), 0., tmp_path, None, SCALE)
  assert [row.get('rule') for row in rows if row['part'] == 'steps'] == ['plain', 'bp', 'fa']
  assert {row['part'] for row in rows} == {'steps', 'ntk'}
  said = capsys.readouterr().out
  assert 'mlp: no time for dfa, usf' in said
  assert 'no time for training: an epoch of all replicas of a rule takes' in said


def test_batches_fill_a_card_while_the_suite_runs(tiny, monkeypatch, tmp_path):
  """And are what they were when it is over."""
  seen, plain = [], _quick(monkeypatch)

  def measure(name, *rest):
    seen.append(steps.CASES[name].inputs)
    return plain(name, *rest)

  scale = dataclasses.replace(SCALE, models=('mlp',), peak=16)
  before = dict(steps.CASES)
  list(gpu._steps(measure, scale, 0.))
  assert seen == [(1024, 6, 6, 1)] and steps.CASES == before
  seen.clear()
  list(gpu._steps(measure, gpu.SMALL, 0.))
  assert seen == [(4, 6, 6, 1)]


@pytest.mark.slow
def test_replicas_beside_the_same_runs_alone(tiny):
  """Both train the same examples; what memory holds is said."""
  told = []
  one, both = replicas.measure('digits_mlp', 'fa', 3, 2, told.append)
  assert (one['how'], one['ratio'], one['together']) == ('one by one', 1., 1)
  assert (both['how'], both['together'], both['replicas']) == ('together', 3, 3)
  assert both['ratio'] > 0 and both['epoch_s'] >= 0 and not told


def test_cases_of_replicas_are_of_models_that_there_are():
  """And of whole batches."""
  for case in replicas.CASES.values():
    assert case.examples % case.batch == 0
    data = epochs.random_images(case.batch, case.shape)
    assert data.train.images.shape == (case.batch, *case.shape)
