"""Rows, and the choice among what was tried: by the validation split, and by nothing else."""
import ml_collections
import pytest

from bioprop.bench.report import cells, runs, tables
from bioprop.bench.report.metric import metric_of
from bioprop.bench.sweep import plan, table


def _found(tmp_path, leave, sweep_of, entries):
  """Runs by entries, each with what `leave` takes besides."""
  listed = []
  for at, (entry, left) in enumerate(entries):
    path = f'{at}'
    listed.append({'path': path, 'rule': 'fa', **entry})
    if left is not None:
      leave(tmp_path / path, seed=entry['seed'], **left)
  sweep_of(tmp_path, listed)
  return runs.find([tmp_path]).runs


def _tried(rate, seed, validation, test):
  return {'seed': seed, 'tuned': {'learning_rate': rate}}, {'validation': validation, 'test': test}


def test_what_validates_best_is_chosen_whatever_the_test_says(tmp_path, leave, sweep_of):
  found = _found(tmp_path, leave, sweep_of, [
      _tried(0.1, 0, 0.5, 0.9), _tried(0.1, 1, 0.6, 0.9),
      _tried(0.3, 0, 0.7, 0.1), _tried(0.3, 1, 0.5, 0.1)])
  (cell,) = cells.cells(found, metric_of(found, None))
  assert cell.tuned == {'learning_rate': 0.3} and not cell.undecided
  assert [(one.tuned['learning_rate'], round(one.score, 6), one.chosen)
          for one in cell.candidates] == [(0.1, 55.0, False), (0.3, 60.0, True)]
  for name in ('test_error', 'test_loss'):
    assert cells.cells(found, metric_of(found, name))[0].tuned == cell.tuned


def test_the_choice_is_that_of_the_sweep(tmp_path, leave, sweep_of):
  """What its table has in RUNS/table.md; of classes and of targets."""
  for fit in (False, True):
    root = tmp_path / str(fit)
    root.mkdir()
    entries = [_tried(rate, seed, validation, 0.5) for rate, validation in (
        (0.1, 0.5), (0.3, 0.7), (3.0, 0.9)) for seed in (0, 1)]
    entries[-1][1]['diverged'] = 'nan'
    found = _found(root, leave, sweep_of, [
        (entry, {**left, 'fit': fit}) for entry, left in entries])
    planned = [plan.Run('small', run.rule, run.path, ml_collections.ConfigDict(run.config), {},
                        run.tuned) for run in found]
    (cell,) = cells.cells(found, metric_of(found, None))
    assert cell.tuned == table.chosen(planned) == {'learning_rate': 0.3}


def test_the_choice_is_that_of_the_sweep_where_every_value_diverged(tmp_path, leave, sweep_of):
  """On some seed: the fewest go first, then the seeds that both have finished decide."""
  for failed, want in (({(0.1, 0), (0.1, 1), (0.3, 2)}, 0.3), ({(0.1, 0), (0.3, 2)}, 0.3)):
    root = tmp_path / str(len(failed))
    root.mkdir()
    tried = [(rate, seed, *_tried(rate, seed, 0.9 if seed == 2 else rate, 0.5))
             for rate in (0.1, 0.3) for seed in range(3)]
    found = _found(root, leave, sweep_of, [
        (entry, {**left, 'diverged': 'nan' if (rate, seed) in failed else None})
        for rate, seed, entry, left in tried])
    planned = [plan.Run('small', run.rule, run.path, ml_collections.ConfigDict(run.config), {},
                        run.tuned) for run in found]
    (cell,) = cells.cells(found, metric_of(found, None))
    assert cell.tuned == table.chosen(planned) == {'learning_rate': want}


def test_only_shared_seeds_are_compared(tmp_path, leave, sweep_of):
  """What was tried with one seed is beside what another reached with that seed."""
  found = _found(tmp_path, leave, sweep_of, [
      _tried(0.1, 0, 0.6, 0.5), _tried(0.1, 1, 0.2, 0.5), _tried(0.3, 0, 0.5, 0.5)])
  (cell,) = cells.cells(found, metric_of(found, None))
  assert cell.tuned == {'learning_rate': 0.1} and cell.candidates[0].score == 60.0


def test_what_diverges_least_goes_first(tmp_path, leave, sweep_of):
  entry, left = _tried(3.0, 1, 0.9, 0.9)
  found = _found(tmp_path, leave, sweep_of, [
      _tried(3.0, 0, 0.9, 0.9), (entry, {**left, 'diverged': 'nan'}),
      _tried(0.1, 0, 0.3, 0.3), _tried(0.1, 1, 0.3, 0.3),
      (_tried(9.0, 0, 0, 0)[0], {'diverged': 'nan'})])
  (cell,) = cells.cells(found, metric_of(found, None))
  assert cell.tuned == {'learning_rate': 0.1}
  assert [one.score for one in cell.candidates] == [90.0, 30.0, None]


def test_without_validation_nothing_is_chosen(tmp_path, leave, sweep_of):
  found = _found(tmp_path, leave, sweep_of, [
      _tried(0.1, 0, None, 0.9), _tried(0.3, 0, None, 0.1)])
  pair = cells.cells(found, metric_of(found, None))
  assert [(cell.undecided, cell.tuned['learning_rate']) for cell in pair] == [
      (True, 0.1), (True, 0.3)]


def test_a_choice_at_the_edge_of_what_was_tried_is_said(tmp_path, leave, sweep_of):
  """For each rule, and not where one that was tried is on each side."""
  best = {'bp': 0.3, 'fa': 1.0, 'dfa': 0.1, 'usf': 1.0}
  found = _found(tmp_path, leave, sweep_of, [
      ({'rule': rule, 'seed': 0, 'tuned': {'learning_rate': rate}},
       {'validation': 0.9 if rate == best[rule] else 0.5, 'test': 0.5})
      for rule in best for rate in (0.1, 0.3, 1.0)])
  metric = metric_of(found, None)
  notes = tables.candidates('tried', cells.cells(found, metric), metric).notes
  assert list(notes[1:]) == [
      'learning_rate = 1.0 is the largest that was tried for fa, usf: what is best may lie beyond.',
      'learning_rate = 0.1 is the smallest that was tried for dfa: what is best may lie beyond.']


def test_rows_and_their_order(tmp_path, leave, sweep_of):
  """By value, and bp first; states are counted; seeds are in order."""
  found = _found(tmp_path, leave, sweep_of, [
      ({'seed': 1, 'over': {'width': 8}}, {'test': 0.25}), ({'seed': 0, 'over': {'width': 8}}, {}),
      ({'seed': 0, 'over': {'width': 4}}, {'test': None}),
      ({'seed': 1, 'over': {'width': 4}}, {'diverged': 'nan'}),
      ({'seed': 2, 'over': {'width': 4}}, None),
      ({'seed': 0, 'over': {'width': 8}, 'rule': 'bp'}, {})])
  rows = cells.cells(found, metric_of(found, None))
  assert [(row.rule, row.over['width']) for row in rows] == [('bp', 8), ('fa', 8), ('fa', 4)]
  assert rows[1].values(metric_of(found, 'test_error')) == {0: 50.0, 1: 75.0}
  assert [run.seed for run in rows[1].finished] == [0, 1]
  assert [rows[2].count(state) for state in ('finished', 'diverged', 'unfinished')] == [0, 1, 2]
  again = cells.cells([*found, found[1]._replace(final={'test_accuracy': 0.75})],
                      metric_of(found, None))[1]
  assert again.values(metric_of(found, None)) == {0: 75.0, 1: 25.0}  # The same run once more.
  assert [[cell.rule for cell in one] for one in cells.settings(rows)] == [['bp', 'fa'], ['fa']]


def test_what_is_the_same_in_all_runs_sets_none_apart(tmp_path, leave, sweep_of):
  found = _found(tmp_path, leave, sweep_of, [
      ({'seed': seed, 'over': {'epochs': 4, 'width': width, **more}}, {})
      for seed, width, more in ((0, 8, {}), (1, 64, {}), (2, 8, {'b': 1}))])
  assert [run.over for run in cells.varying(found)] == [
      {'width': 8}, {'width': 64}, {'width': 8, 'b': 1}]


@pytest.mark.parametrize('asked, usual, title, value', [
    (None, None, 'test accuracy (%)', 50.0), ('test_error', None, 'test error (%)', 50.0),
    (None, 'test_loss', 'test loss (cross-entropy, nats)', 0.5),
    (None, 'test_r2', 'test accuracy (%)', 50.0)])
def test_metrics_of_classes(tmp_path, leave, asked, usual, title, value):
  leave(tmp_path / 'one')
  found = runs.find([tmp_path]).runs
  metric = metric_of(found, asked, usual)
  assert (metric.title, metric.of(found[0])) == (title, value)


@pytest.mark.parametrize('asked, usual, title, value', [
    (None, 'test_accuracy', 'test R²', 0.25), ('test_mse', None, 'test MSE', 2.0),
    ('test_loss', None, 'test loss (half the squared distance)', 0.75)])
def test_metrics_of_targets(tmp_path, leave, asked, usual, title, value):
  leave(tmp_path / 'one', test=0.25, fit=True, loss='mse')
  found = runs.find([tmp_path]).runs
  metric = metric_of(found, asked, usual)
  assert (metric.title, metric.of(found[0])) == (title, value)
