"""The figure of one run, and how figures are written."""
import json

import pytest

from bioprop.bench import plots
from bioprop.errors import WorkdirError
from bioprop.training import base, workdir


def _run(path, epochs):
  """The directory of an unfinished run as training leaves it."""
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(workdir.as_json(base())))
  records = [{'epoch': n, 'train_loss': 4 / n, 'train_accuracy': 0.5, 'seconds': 1.0,
              'validation_loss': 2 / n, 'validation_accuracy': 0.5} for n in range(1, epochs + 1)]
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  return path


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are drawn."""
  figures = []

  class Seen(plots.Figure):

    def savefig(self, *args, **kwargs):
      figures.append(self)

  monkeypatch.setattr(plots, 'Figure', Seen)
  return figures


def test_epochs_are_whole_on_the_axis_and_one_is_not_stretched(tmp_path, drawn):
  """One, and a few."""
  for epochs, limits in ((1, (0, 2)), (3, None)):
    run = _run(tmp_path / str(epochs), epochs)
    plots.curves(run, tmp_path / 'curves.png')
    for axes in drawn[-1].axes:
      assert limits in (None, axes.get_xlim())
      assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_figure_that_cannot_be_written(tmp_path):
  """Of no known format, and where nothing can be written; a link is replaced, not followed."""
  run = _run(tmp_path / 'run', 1)
  for name, words in (('losses.doc', 'Valid: .*png'), ('no/losses.png', 'No such file')):
    with pytest.raises(WorkdirError, match=words):
      plots.curves(run, tmp_path / name)
  (tmp_path / 'thesis').write_text('years of work')
  for name in ('losses.png', 'losses.png.new'):
    (tmp_path / name).symlink_to(tmp_path / 'thesis')
  plots.curves(run, tmp_path / 'losses.png')
  assert (tmp_path / 'thesis').read_text() == 'years of work'
  assert (tmp_path / 'losses.png').read_bytes().startswith(b'\x89PNG')
