"""What the site and README say of the rules is what their docstrings say, and examples run."""
import importlib.util
import pathlib
import re

import pytest

from bioprop.rules import RULES

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def docstrings():
  """docs/hooks/docstrings.py."""
  spec = importlib.util.spec_from_file_location('docstrings', ROOT / 'docs/hooks/docstrings.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_table_of_readme(docstrings):
  """It is what python docs/hooks/docstrings.py prints."""
  held = docstrings.table('', 'bioprop/rules/{}') in (ROOT / 'README.md').read_text()
  assert held, 'put into README.md what python docs/hooks/docstrings.py prints'


@pytest.mark.parametrize('name', RULES)
def test_docstring(docstrings, name):
  """What a page needs, and an example of a few lines that stands by itself and runs."""
  said = docstrings.described(name)
  assert '$$' in said.text and said.does and said.title
  code, = re.findall(r'```python\n(.*?)```', said.sections['Example'], re.DOTALL)
  assert 2 <= len(code.splitlines()) <= 5 and re.search(rf"[( ]'{name}'", code)
  exec(compile(code, name, 'exec'), {})


def test_papers_as_they_are_called(docstrings):
  assert docstrings.papers(RULES['fa']) == 'Lillicrap et al. 2016; Bordelon & Pehlevan 2023'
  assert docstrings.papers(RULES['bp']) == 'Rumelhart, Hinton & Williams 1986'
  assert docstrings.papers(RULES['dfa']) == 'Nøkland 2016'


@pytest.mark.parametrize('docstring', [
    'No colon.\n\nCost:\n  a\n\nWhen it works:\n  b\n\nExample:\n  c\n',
    'Title: does.\n\nCost:\n  a\n\nExample:\n  c\n',
    'Title: does.\n\nAttributes:\n  other: x\n\nCost:\n  a\n\nWhen it works:\n  b\n\n'
    'Example:\n  c\n'])
def test_docstrings_that_make_no_page(docstrings, docstring, monkeypatch):
  """The check itself can fail."""
  monkeypatch.setattr(RULES['bp'], '__doc__', docstring)
  with pytest.raises(ValueError, match='the docstring of Backprop must begin'):
    docstrings.described('bp')
