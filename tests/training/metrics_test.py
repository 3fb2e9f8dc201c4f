"""The record of a run: cut where it is resumed, and only there."""
import json

import pytest

from bioprop.errors import WorkdirError
from bioprop.training import metrics

LINES = [json.dumps({'epoch': number, 'train_loss': 1 / number}) + '\n' for number in (1, 2, 3)]


def test_resuming_cuts_later_lines_and_keeps_earlier_ones_byte_for_byte(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(''.join(LINES) + '{"epoch": 4, "tr')
  log = metrics.MetricsLog(tmp_path, 2, 20)
  log.write({'epoch': 3, 'train_loss': 0.25}, 30)
  log.close()
  assert (tmp_path / 'metrics.jsonl').read_text() == (
      ''.join(LINES[:2]) + '{"epoch": 3, "train_loss": 0.25}\n')
  assert list(tmp_path.glob('events.out.tfevents.*'))


@pytest.mark.parametrize('text', ['', LINES[0], LINES[1] + LINES[0], LINES[0] + 'oh no\n'])
def test_missing_lines_before_the_checkpoint_are_an_error_and_nothing_is_cut(tmp_path, text):
  (tmp_path / 'metrics.jsonl').write_text(text)
  with pytest.raises(WorkdirError, match='epochs 1 to 2'):
    metrics.MetricsLog(tmp_path, 2, 20)
  assert (tmp_path / 'metrics.jsonl').read_text() == text


def test_reading_leaves_out_a_line_that_was_cut_short(tmp_path):
  assert metrics.read(tmp_path) == [] and not metrics.is_finished(tmp_path)
  (tmp_path / 'metrics.jsonl').write_text(LINES[0] + '{"test_loss": 1.0}')
  assert metrics.read(tmp_path) == [{'epoch': 1, 'train_loss': 1.0}]
  assert not metrics.is_finished(tmp_path)
  (tmp_path / 'metrics.jsonl').write_text(LINES[0] + '{"test_loss": 1.0}\n')
  assert metrics.is_finished(tmp_path)
