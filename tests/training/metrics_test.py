"""The record of a run: cut where it is resumed, and only there."""
import json

import pytest

from bioprop.errors import WorkdirError
from bioprop.training import metrics

LINES = [json.dumps({'epoch': number, 'train_loss': 1 / number, 'train_accuracy': 0.5,
                     'seconds': 2.0}) + '\n' for number in (1, 2, 3)]
FINAL = '{"test_loss": 1.0, "test_accuracy": 0.25}\n'


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
  assert metrics.read(tmp_path) == [
      {'epoch': 1, 'train_loss': 1.0, 'train_accuracy': 0.5, 'seconds': 2.0}]
  assert not metrics.is_finished(tmp_path)
  (tmp_path / 'metrics.jsonl').write_text(LINES[0] + '{"test_loss": 1.0}\n')
  assert metrics.is_finished(tmp_path)


WHOLE = [*LINES, FINAL]
DAMAGED = {
    'only the last': ([FINAL], 'line 1 is the final result, after 0 of 3 epochs'),
    'one missing': ([*LINES[:1], *WHOLE[2:]], 'line 2 is of epoch 3 and not of epoch 2'),
    'last epoch missing': ([*LINES[:2], FINAL], 'line 3 is the final result, after 2 of 3 epochs'),
    'twice': ([LINES[0], *WHOLE], 'line 2 is of epoch 1 and not of epoch 2'),
    'mangled': ([LINES[0], LINES[1][:9] + '\n', LINES[2], FINAL], 'line 2 is no JSON object'),
    'a number': ([LINES[0], '7\n', LINES[2], FINAL], 'line 2 is no JSON object'),
    'too deep': ([LINES[0], '[' * 10**5 + '\n', LINES[2], FINAL], 'line 2 is no JSON object'),
    'no UTF-8': ([LINES[0], '"\udcff"\n', LINES[2], FINAL], 'line 2 is no JSON object'),
    'of nothing': ([LINES[0], '{}\n', LINES[2], FINAL], 'line 2 is neither'),
    'no accuracy': ([*LINES, '{"test_loss": 1.0}\n'], 'line 4 has no test_accuracy'),
    'no number': ([*LINES, FINAL.replace('0.25', '"0.25"')], "line 4 has test_accuracy '0.25'"),
    'no seconds': ([LINES[0], LINES[1].replace('seconds', 's'), LINES[2], FINAL], 'has no seconds'),
    'garbage behind': ([*WHOLE, 'garbage\n'], 'line 5 follows the final result'),
    'final twice': ([*WHOLE, FINAL], 'line 5 follows the final result'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_record_is_told_with_its_line_and_left(tmp_path, name):
  lines, words = DAMAGED[name]
  text = ''.join(lines).encode('utf-8', 'surrogateescape')
  (tmp_path / 'metrics.jsonl').write_bytes(text)
  with pytest.raises(WorkdirError) as caught:
    metrics.read(tmp_path, 3)
  assert words in str(caught.value) and f'mv {tmp_path} {tmp_path}-damaged' in str(caught.value)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == text


def test_a_whole_record_is_read(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(''.join(WHOLE) + '{"cut')
  assert metrics.read(tmp_path, 3) == metrics.read(tmp_path) == [*map(json.loads, WHOLE)]


def test_a_record_that_cannot_be_read_or_written(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  for use in (metrics.read, metrics.is_finished, lambda path: metrics.MetricsLog(path, 0, 0)):
    with pytest.raises(WorkdirError, match='metrics.jsonl cannot be read: Is a directory'):
      use(tmp_path)
  (tmp_path / 'metrics.jsonl').rmdir()
  log = metrics.MetricsLog(tmp_path, 0, 0)
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(WorkdirError, match='cannot write .*metrics.jsonl'):
    log.write({'epoch': 1}, 1)
  log.close()


def test_what_links_point_to_is_not_written(tmp_path):
  run, other = tmp_path / 'run', tmp_path / 'thesis'
  run.mkdir()
  other.write_text('years of work')
  (run / 'metrics.jsonl').write_text(''.join(LINES))
  (run / 'metrics.jsonl.new').symlink_to(other)
  log = metrics.MetricsLog(run, 1, 10)
  assert (run / 'metrics.jsonl').read_text() == LINES[0]
  (run / 'metrics.jsonl').unlink()
  (run / 'metrics.jsonl').symlink_to(other)
  with pytest.raises(WorkdirError, match='cannot write'):
    log.write({'epoch': 2}, 20)
  log.close()
  assert other.read_text() == 'years of work'
