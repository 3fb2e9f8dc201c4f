"""Which runs a report finds, and what it calls them."""
import json

import pytest

from bioprop.bench.report import runs
from bioprop.errors import WorkdirError


def _named(found):
  return [(run.column, run.rule, run.seed, dict(run.over), dict(run.tuned), run.state)
          for run in found.runs]


def test_runs_at_any_depth_are_named_by_their_configurations(tmp_path, leave):
  """By the directory above, if that is not what was asked for; by what differs within a rule."""
  leave(tmp_path / 'all' / 'deep' / 'wide' / 'a', 'bp', 0, batch_size=32)
  leave(tmp_path / 'all' / 'deep' / 'wide' / 'b', 'bp', 1, batch_size=64)
  leave(tmp_path / 'all' / 'deep' / 'wide' / 'c', 'fa', 1, None, batch_size=32, learning_rate=0.5,
        rule_options={'rho': 0.5})
  leave(tmp_path / 'all' / 'single', 'dfa', 3, diverged='it went\nwrong')
  (tmp_path / 'all' / 'notes').mkdir()
  found = runs.find([tmp_path / 'all'])
  assert _named(found) == [
      ('wide', 'bp', 0, {'batch_size': 32}, {'learning_rate': 0.1}, 'finished'),
      ('wide', 'bp', 1, {'batch_size': 64}, {'learning_rate': 0.1}, 'finished'),
      ('wide', 'fa(rho=0.5)', 1, {'batch_size': 32}, {'learning_rate': 0.5}, 'unfinished'),
      ('mlp on digits', 'dfa', 3, {}, {}, 'diverged')]
  assert found.metric is None and found.unlisted == []
  assert [run.reason for run in found.runs] == ['', '', '', 'it went wrong']
  assert [len(run.epochs) for run in found.runs] == [2, 2, 1, 0]
  one = runs.find([tmp_path / 'all' / 'deep' / 'wide' / 'a'])
  assert _named(one) == [('mlp on digits', 'bp', 0, {}, {}, 'finished')]


def test_a_directory_that_is_given_twice_counts_once(tmp_path, leave):
  path = leave(tmp_path / 'all' / 'one')
  assert len(runs.find([tmp_path / 'all', path, tmp_path / 'all']).runs) == 1


def test_sweeps_that_name_a_column_alike_are_told_apart(tmp_path, leave, sweep_of):
  """By their folders; what one of them alone has keeps its name."""
  roots = [tmp_path / 'a' / 'runs', tmp_path / 'b' / 'runs', tmp_path / 'c']
  for root in roots:
    for column in ('small', f'own {root.parent.name}'):
      leave(root / column / 'fa-seed0')
    sweep_of(root, [{'path': f'{column}/fa-seed0', 'rule': 'fa', 'seed': 0, 'column': column}
                    for column in ('small', f'own {root.parent.name}')])
  names = lambda *asked: [run.column for run in runs.find(asked).runs]
  assert names(roots[0], roots[2]) == ['runs/small', 'own a', 'c/small', f'own {tmp_path.name}']
  assert names(*roots[:2]) == ['runs (1)/small', 'own a', 'runs (2)/small', 'own b']


def test_a_run_that_a_sweep_lists_counts_once(tmp_path, leave, sweep_of, monkeypatch):
  """However the sweep is typed, and beside the run itself."""
  path = leave(tmp_path / 'sweep' / 'one')
  leave(tmp_path / 'sweep' / 'old')
  sweep_of(tmp_path / 'sweep', [{'path': 'one', 'rule': 'fa', 'seed': 0}])
  monkeypatch.chdir(tmp_path)
  found = runs.find([tmp_path / 'sweep', 'sweep', path])
  assert [run.column for run in found.runs] == ['small'] and len(found.unlisted) == 1


def test_where_a_run_computed_sets_nothing_apart(tmp_path, leave):
  for seed, mesh in ((0, None), (1, 'data=2')):
    leave(tmp_path / f'{seed}', seed=seed, mesh=mesh)
  assert all(not run.over and not run.tuned for run in runs.find([tmp_path]).runs)


def test_a_plan_names_its_runs(tmp_path, leave, sweep_of):
  """Those that have not begun too; what it does not have is told apart."""
  entries = [
      {'path': 'x/one', 'rule': 'fa(rho=0.5)', 'over': {'a.b': 2}, 'tuned': {'c': 0.1}, 'seed': 4},
      {'path': 'x/two', 'rule': 'bp', 'seed': 5}]
  leave(tmp_path / 'x' / 'one', seed=9, environment={'parameters': 7})
  leave(tmp_path / 'x' / 'old')
  sweep_of(tmp_path, entries, 'test_error')
  found = runs.find([tmp_path])
  assert _named(found) == [('small', 'fa(rho=0.5)', 4, {'a.b': 2}, {'c': 0.1}, 'finished'),
                           ('small', 'bp', 5, {}, {}, 'unfinished')]
  assert found.metric == 'test_error' and found.unlisted == [tmp_path / 'x' / 'old']
  assert found.runs[0].environment == {'parameters': 7} and found.runs[1].config == {}


@pytest.mark.parametrize('change, words', [
    ({'version': 2}, r'version 2, and this bioprop reads version 1'), ({'runs': {}}, 'no list'),
    ({'runs': [{'path': 'x'}]}, "'column' is missing"), ({'runs': ['x']}, "'path' is missing"),
    ({'metric': 'speed'}, "metric is 'speed'; valid: test_accuracy"), (None, 'Expecting')])
def test_a_damaged_plan(tmp_path, change, words):
  text = '{"version"' if change is None else json.dumps({'version': 1, 'runs': [], **change})
  (tmp_path / 'sweep.json').write_text(text)
  with pytest.raises(WorkdirError, match=f'sweep.json is damaged.*{words}'):
    runs.find([tmp_path])


def test_nothing_to_report_on(tmp_path, leave):
  """Nothing there, no runs there, and a run whose files are no longer what they were."""
  for path, words in ((tmp_path / 'no', 'there is no directory'), (tmp_path, 'holds no run')):
    with pytest.raises(WorkdirError, match=words):
      runs.find([path])
  path = leave(tmp_path / 'run')
  (path / 'metrics.jsonl').write_text('{"epoch": 2}\n')
  with pytest.raises(WorkdirError, match='not as training wrote it'):
    runs.find([tmp_path])
  (path / 'config.json').write_text('{')
  with pytest.raises(WorkdirError, match='config.json is damaged'):
    runs.find([tmp_path])
