"""Curves, final numbers and values of a sweep: that figures show what the files hold."""
import numpy as np
import pytest

from bioprop import data
from bioprop.bench import style
from bioprop.bench.report import cells, curves, runs, series, texts
from bioprop.bench.report.metric import metric_of


def _cells(tmp_path, metric='test_accuracy'):
  found = runs.find([tmp_path]).runs
  metric = metric_of(found, metric)
  rows = cells.cells(found, metric)
  return rows, style.looks(dict.fromkeys(row.rule for row in rows)), metric


def _learning(rows, looks, **across):
  return curves.learning(series.labelled(rows), looks, 'x', across)


def _lines(figure):
  return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
          for line in figure.axes[0].lines}


def test_a_line_for_each_rule_and_one_for_each_entropy(tmp_path, leave):
  """Means of the seeds; the legend is in the order of the ends; bands are deviations."""
  for seed, epochs in ((0, 2), (1, 2)):
    leave(tmp_path / f'bp{seed}', 'bp', seed, epochs=epochs, validation=0.2 + 0.2 * seed)
    leave(tmp_path / f'fa{seed}', 'fa', seed, epochs=epochs, validation=0.1)
  rows, looks, _ = _cells(tmp_path)
  pictures = {one.name: one for one in _learning(rows, looks, **{'unigram entropy': 3.0})}
  assert list(pictures) == ['validation_loss', 'train_loss', 'validation_accuracy',
                            'train_accuracy']
  lines = _lines(pictures['validation_loss'].figure)
  assert lines == {'bp': ([1, 2], [2, 1]), 'fa': ([1, 2], [2, 1]),
                   'unigram entropy 3': ([0, 1], [3, 3])}
  assert _lines(pictures['train_loss'].figure)['bp'] == ([1, 2], [4, 2])
  figure = pictures['validation_accuracy'].figure
  assert list(_lines(figure)) == ['bp', 'fa']
  np.testing.assert_allclose(_lines(figure)['bp'][1], [0.3, 0.3])
  bands = [band.get_paths()[0].vertices[:, 1] for band in figure.axes[0].collections]
  deviation = np.std([0.2, 0.4], ddof=1)
  np.testing.assert_allclose([bands[0].min(), bands[0].max()], [0.3 - deviation, 0.3 + deviation])
  assert 'bp 0.30 ± 0.14; fa 0.1000 ± 0.0000' in pictures['validation_accuracy'].text
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ['bp', 'fa']


def test_the_axis_says_which_losses_these_are(tmp_path, leave):
  """Validation and training, or training alone where a run has no validation."""
  leave(tmp_path / 'a', 'bp')
  for rule, words in ((None, ['validation loss', 'training loss']), ('fa', ['training loss'])):
    if rule:
      leave(tmp_path / 'b', rule, validation=None)
    rows, looks, _ = _cells(tmp_path)
    labels = [one.figure.axes[0].get_ylabel() for one in _learning(rows, looks)]
    assert [label for label in labels if 'loss' in label] == words


@pytest.mark.parametrize('epochs', [1, 3])
def test_epochs_are_whole_on_the_axis_and_one_is_not_stretched(tmp_path, leave, epochs):
  leave(tmp_path / 'a', epochs=epochs)
  rows, looks, _ = _cells(tmp_path)
  for one in _learning(rows, looks):
    axes = one.figure.axes[0]
    assert epochs > 1 or axes.get_xlim() == (0, 2)
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_targets_have_no_accuracy(tmp_path, leave):
  leave(tmp_path / 'a', fit=True)
  rows, looks, _ = _cells(tmp_path, None)
  labels = [one.figure.axes[0].get_ylabel() for one in _learning(rows, looks)]
  assert labels == ['validation loss', 'training loss', 'validation R²', 'training R²']


def test_losses_by_value(tmp_path, leave, sweep_of):
  """A figure for each rule that has several, a line for each."""
  entries = [('bp', 8, 2), ('fa', 8, 2), ('fa', 64, 4)]
  for at, (rule, _, epochs) in enumerate(entries):
    leave(tmp_path / str(at), rule, epochs=epochs, validation=None if at == 2 else 0.5)
  sweep_of(tmp_path, [{'path': str(at), 'rule': rule, 'seed': 0, 'over': {'m.width': width}}
                      for at, (rule, width, _) in enumerate(entries)])
  rows, _, _ = _cells(tmp_path)
  (picture,) = curves.by_value(rows, 'x', {'bigram entropy': 2.5})
  assert picture.name == 'fa-by-value' and 'x, fa' in picture.title
  assert _lines(picture.figure) == {
      'width = 8': ([1, 2], [4, 2]), 'width = 64': ([1, 2, 3, 4], [4, 2, 4 / 3, 1]),
      'bigram entropy 2.5': ([0, 1], [2.5, 2.5])}
  assert picture.figure.axes[0].get_ylabel() == 'training loss'  # One has no validation.


def test_the_final_number_with_every_seed(tmp_path, leave):
  """Best above; an interval from three seeds on; what has no result is not there."""
  for seed, test in enumerate((0.25, 0.5, 0.75)):
    leave(tmp_path / f'bp{seed}', 'bp', seed, test)
  leave(tmp_path / 'fa0', 'fa', 0, 0.25)
  leave(tmp_path / 'dfa0', 'dfa', 0, diverged='nan')
  rows, looks, metric = _cells(tmp_path)
  axes = curves.finals(rows, looks, 'x', metric).figure.axes[0]
  assert [label.get_text() for label in axes.get_yticklabels()] == ['fa', 'bp']
  drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
  assert drawn[:2] == [([25.0], [0]), ([25.0], [0])]
  assert drawn[2] == ([25.0, 50.0, 75.0], [1, 1, 1]) and drawn[4] == ([50.0], [1])
  low, high = drawn[3][0]
  assert 25 <= low < 50 < high <= 75
  assert curves.finals([row for row in rows if row.rule == 'dfa'], looks, 'x', metric) is None
  for name in ('test_error', 'test_loss'):  # Less of it is better.
    rows, looks, metric = _cells(tmp_path, name)
    axes = curves.finals(rows, looks, 'x', metric).figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['fa', 'bp']


def test_over_a_value(tmp_path, leave, sweep_of):
  """A line for each rule, a figure for each combination of the others; log where they spread."""
  entries = []
  for at, (rule, width, depth, seed, test) in enumerate([
      ('bp', 8, 2, 0, 0.5), ('bp', 64, 2, 0, 0.75), ('fa', 8, 2, 0, 0.25), ('fa', 8, 2, 1, 0.5),
      ('fa', 64, 2, 0, 0.5), ('bp', 8, 3, 0, 0.125)]):
    leave(tmp_path / str(at), rule, seed, test)
    entries.append({'path': str(at), 'rule': rule, 'seed': seed,
                    'over': {'m.width': width, 'm.depth': depth, 'm.name': 'x'}})
  sweep_of(tmp_path, entries)
  rows, looks, metric = _cells(tmp_path)
  by_width, by_depth = curves.over(rows, looks, metric)
  axes = by_width.figure.axes[0]
  assert axes.get_xscale() == 'log' and axes.get_xlabel() == 'width'
  assert [text.get_text() for text in axes.get_xticklabels()] == ['8', '64']
  lines = {one.get_label(): (list(one.lines[0].get_xdata()), list(one.lines[0].get_ydata()))
           for one in axes.containers}
  assert lines == {'bp': ([8, 64], [50, 75]), 'fa': ([8, 64], [37.5, 50])}
  assert 'depth = 2' in by_width.title and 'width = 8' in by_depth.title
  assert by_depth.figure.axes[0].get_xscale() == 'linear'


@pytest.mark.parametrize('values, ticks', [
    ([[8, 8], [64, 64]], ['8', '64']), ([[8, 8], [64]], None), ([[8, 9], [64, 64]], None),
    (['8', '64'], None), ([True, False], None), ([10, 12], ['10', '12'])])
def test_what_a_figure_is_over(tmp_path, leave, sweep_of, values, ticks):
  """Numbers, and layers that are all as wide, of as many layers."""
  for at in range(2):
    leave(tmp_path / str(at))
  sweep_of(tmp_path, [{'path': str(at), 'rule': 'fa', 'seed': 0, 'over': {'hidden': value}}
                      for at, value in enumerate(values)])
  rows, looks, metric = _cells(tmp_path)
  found = [[text.get_text() for text in one.figure.axes[0].get_xticklabels()]
           for one in curves.over(rows, looks, metric)]
  assert found == ([] if ticks is None else [ticks])


def test_entropies_stand_beside_runs_on_one_text_only():
  """Of what these runs were trained on."""
  one = {'dataset': 'characters', 'validation': 300}
  train = data.load('characters', validation=300).train
  assert texts.entropies([one, {**one, 'seed': 1}]) == {
      'unigram entropy': data.unigram_entropy(train), 'bigram entropy': data.bigram_entropy(train)}
  assert texts.entropies([one, {**one, 'validation': 200}]) == {}
  assert texts.entropies([one, {**one, 'dataset': 'digits'}]) == {}
  assert texts.entropies([{**one, 'dataset': 'mnist'}]) == {}


def test_no_two_rules_look_alike():
  """Not in grey either: of the first dozen, marks and dashes are pairs of their own."""
  looks = style.looks([f'r{at}' for at in range(70)])
  assert len({tuple(look.values()) for look in looks.values()}) == 70
  pairs = {(look['marker'], look['linestyle']) for look in list(looks.values())[:12]}
  assert len(pairs) == 12 and looks['r0']['color'] == '#000000'
