"""The folder of a report: what is not the report's own stays as it is."""
import pytest

from bioprop.bench.report import written
from bioprop.errors import WorkdirError

FIRST = {'a.txt': b'one', 'in/b.txt': b'two'}


def _there(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*')
          if path.is_file() and path.name != '.report.json'}


def test_its_own_files_are_replaced_and_removed(tmp_path):
  folder = tmp_path / 'new' / 'report'
  written.write(folder, FIRST)
  assert _there(folder) == FIRST
  (folder / 'notes').write_text('mine')
  written.write(folder, {'a.txt': b'three', 'c.txt': b'four'})
  assert _there(folder) == {'a.txt': b'three', 'c.txt': b'four', 'notes': b'mine'}
  written.write(folder, FIRST)


@pytest.mark.parametrize('change', ['edited', 'foreign', 'gone', 'link', 'folder'])
def test_what_others_wrote_is_refused_and_nothing_is_written(tmp_path, change):
  folder = tmp_path / 'report'
  written.write(folder, FIRST)
  new = {'a.txt': b'five', 'c.txt': b'six'}
  path = folder / {'edited': 'a.txt', 'gone': 'in/b.txt'}.get(change, 'c.txt')
  if change == 'link':
    path.symlink_to(tmp_path / 'elsewhere')
  elif change == 'folder':
    path.mkdir()
  else:
    path.write_text('mine')
  before = _there(folder)
  words = 'was changed since' if change in ('edited', 'gone') else 'is no file of a report'
  with pytest.raises(WorkdirError, match=f'{path} {words}.*Nothing was written.*--out='):
    written.write(folder, new)
  assert _there(folder) == before


def test_a_report_that_was_cut_short_can_be_made_again(tmp_path, monkeypatch):
  """Whatever of the new files is there by then."""
  written.write(tmp_path, FIRST)
  replacing = written.files.replacing

  def cut(path):
    if path.name == 'b.txt':
      raise KeyboardInterrupt
    return replacing(path)

  monkeypatch.setattr(written.files, 'replacing', cut)
  new = {'a.txt': b'seven', 'in/b.txt': b'eight'}
  with pytest.raises(KeyboardInterrupt):
    written.write(tmp_path, new)
  monkeypatch.undo()
  assert _there(tmp_path) == {'a.txt': b'seven', 'in/b.txt': b'two'}
  written.write(tmp_path, {**new, 'a.txt': b'nine'})
  assert _there(tmp_path) == {'a.txt': b'nine', 'in/b.txt': b'eight'}


def test_a_folder_that_cannot_be_one(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(WorkdirError, match='cannot write the report into .*file/below.*--out='):
    written.write(tmp_path / 'file' / 'below', FIRST)
  for text in ('{', '[]', '{"files": 3}', '{"files": {"a": 3}}'):
    (tmp_path / '.report.json').write_text(text)
    with pytest.raises(WorkdirError, match='report.json is damaged'):
      written.write(tmp_path, FIRST)
