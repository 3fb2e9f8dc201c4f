"""Several runs in one table and one figure."""
import json
import sys

import pytest

from bioprop import data
from bioprop.bench import compare, plots
from bioprop.errors import WorkdirError
from bioprop.training import base, workdir


def _run(path, epochs, test=None, validation=True, **values):
  """The directory of a run as training leaves it; loss 4 / epoch, and half of it in validation."""
  config = base()
  config.update({'dataset': 'characters', 'validation': 300, **values})
  config.epochs = epochs if test else 10
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(workdir.as_json(config)))
  records = [{'epoch': n, 'train_loss': 4 / n, 'train_accuracy': 0.5, 'seconds': 1.0,
              **({'validation_loss': 2 / n, 'validation_accuracy': 0.5} if validation else {})}
             for n in range(1, epochs + 1)]
  records += [{'test_loss': test, 'test_accuracy': 0.25}] if test else []
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  return str(path)


def test_the_table_has_a_line_for_each_run(tmp_path):
  """Finished, unfinished, and not begun."""
  runs = [_run(tmp_path / 'done', 2, 1.5), _run(tmp_path / 'going', 4), _run(tmp_path / 'new', 0)]
  rows = [line.split() for line in compare.table(runs).splitlines()]
  assert rows[1:] == [['done', '2', '2.0000', '1.0000', '1.5000', '0.2500'],
                      ['going', '4', '1.0000', '0.5000', '-', '-'],
                      ['new', '0', '-', '-', '-', '-']]
  assert compare.table(runs).splitlines()[0].split() == (
      'run epochs train loss validation loss test loss test accuracy'.split())


def test_entropies_stand_beside_runs_on_one_text_only(tmp_path):
  """Of what these runs were trained on."""
  one, two = _run(tmp_path / 'one', 1), _run(tmp_path / 'two', 1)
  train = data.load('characters', validation=300).train
  assert compare.entropies([one, two]) == {
      'unigram entropy': data.unigram_entropy(train), 'bigram entropy': data.bigram_entropy(train)}
  assert compare.entropies([one, _run(tmp_path / 'more', 1, seed=1)])
  assert compare.entropies([one, _run(tmp_path / 'images', 1, dataset='digits')]) == {}
  assert compare.entropies([_run(tmp_path / 'mnist', 1, dataset='mnist')]) == {}


def test_the_figure_has_a_curve_for_each_run_and_a_line_for_each_entropy(tmp_path, monkeypatch):
  """Validation losses, or training losses where there is no validation."""
  figures = []

  class Seen(plots.Figure):

    def savefig(self, *args, **kwargs):
      figures.append(self)
      super().savefig(*args, **kwargs)

  monkeypatch.setattr(plots, 'Figure', Seen)
  runs = [_run(tmp_path / 'held', 2), _run(tmp_path / 'all', 3, validation=False),
          _run(tmp_path / 'new', 0)]
  plots.losses(runs, tmp_path / 'losses.png', {'unigram entropy': 3.0})
  assert (tmp_path / 'losses.png').read_bytes().startswith(b'\x89PNG')
  lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
           for line in figures[0].axes[0].lines}
  assert lines == {'held': ([1, 2], [2, 1]), 'all': ([1, 2, 3], [4, 2, 4 / 3]), 'new': ([], []),
                   'unigram entropy 3': ([0, 1], [3, 3])}


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are drawn."""
  figures = []

  class Seen(plots.Figure):

    def savefig(self, *args, **kwargs):
      figures.append(self)

  monkeypatch.setattr(plots, 'Figure', Seen)
  return figures


def test_the_axis_says_which_losses_these_are(tmp_path, drawn):
  """Validation, training, or both."""
  one, other = _run(tmp_path / 'one', 2), _run(tmp_path / 'other', 3, validation=False)
  for runs, words in (([one], 'validation loss'), ([other], 'training loss'),
                      ([one, other], 'validation loss\n(training loss: other)')):
    plots.losses(runs, tmp_path / 'losses.png', {})
    assert drawn[-1].axes[0].get_ylabel() == words


def test_epochs_are_whole_on_the_axis_and_one_is_not_stretched(tmp_path, drawn):
  """One, and a few."""
  for epochs, limits in ((1, (0, 2)), (3, None)):
    run = _run(tmp_path / str(epochs), epochs)
    plots.curves(run, tmp_path / 'curves.png')
    plots.losses([run], tmp_path / 'losses.png', {})
    for axes in drawn[-2].axes + drawn[-1].axes:
      assert limits in (None, axes.get_xlim())
      assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_figure_that_cannot_be_written(tmp_path):
  """Of no known format, and where nothing can be written; a link is replaced, not followed."""
  run = _run(tmp_path / 'run', 1)
  for name, words in (('losses.doc', 'Valid: .*png'), ('no/losses.png', 'No such file')):
    with pytest.raises(WorkdirError, match=words):
      plots.losses([run], tmp_path / name, {})
  (tmp_path / 'thesis').write_text('years of work')
  for name in ('losses.png', 'losses.png.new'):
    (tmp_path / name).symlink_to(tmp_path / 'thesis')
  plots.losses([run], tmp_path / 'losses.png', {})
  assert (tmp_path / 'thesis').read_text() == 'years of work'
  assert (tmp_path / 'losses.png').read_bytes().startswith(b'\x89PNG')


def test_a_directory_without_a_run_is_one_paragraph(tmp_path, monkeypatch):
  """And so is no directory."""
  with pytest.raises(WorkdirError, match='holds no run.*--workdir'):
    compare.table([tmp_path])
  monkeypatch.setattr(sys, 'argv', ['compare'])
  for argv, words in ((['compare'], 'no runs'), (['compare', str(tmp_path)], 'holds no run')):
    with pytest.raises(SystemExit, match=words):
      compare.main(argv)
