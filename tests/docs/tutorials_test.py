"""Tutorials run as notebooks: no errors, no warnings, pictures.

Each is run once in a suite, here: the site's own test builds it with BIOPROP_EXECUTE=false.
"""
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'docs' / 'pages' / 'tutorials'
TUTORIALS = sorted(FOLDER.glob('*.py'))
NEEDED = ('ipykernel', 'jupytext', 'nbclient')
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
# In a process of its own: these libraries warn of themselves. A cell that fails ends it.
EXECUTE = """
import sys
import jupytext, nbclient
notebook = jupytext.read(sys.argv[1])
nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3').execute()
jupytext.write(notebook, sys.argv[2])
"""
EACH = pytest.mark.parametrize('path', TUTORIALS, ids=lambda path: path.stem)


def cells(path, kind='# %%'):
  """The source of the cells of a tutorial: all, or '# %% [markdown]'."""
  parts = re.split(r'^(?=# %%)', path.read_text(), flags=re.MULTILINE)
  return [part for part in parts if part.startswith(kind)]


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """executed(path) runs a tutorial and returns the outputs of its cells."""
  folder = tmp_path_factory.mktemp('notebooks')

  def run(path):
    # Trainings are to be optimised as users', which the suite's short programs are not.
    env = {name: value for name, value in os.environ.items()
           if name not in ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'XLA_FLAGS')}
    env['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [env.get('PYTHONPATH')])])
    notebook = folder / f'{path.stem}.ipynb'
    done = subprocess.run([sys.executable, '-c', EXECUTE, path, notebook], cwd=folder, env=env,
                          capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-4000:]
    return [out for cell in json.loads(notebook.read_text())['cells']
            for out in cell.get('outputs', ())]

  return run


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f'{", ".join(MISSING)} not installed: '
                    'pip install -e ".[docs]"')
@EACH
def test_runs_without_a_warning_and_shows_pictures(path, executed):
  outputs = executed(path)
  assert [out['text'] for out in outputs if out.get('name') == 'stderr'] == []
  pictures = [out for out in outputs
              if {'image/png', 'image/svg+xml'} & set(out.get('data', ()))]
  assert len(pictures) >= 2


@EACH
def test_says_how_long_it_takes_how_to_install_and_what_is_next(path):
  texts = cells(path, '# %% [markdown]')
  assert re.search(r'^# # \S', texts[0], re.MULTILINE)
  assert re.search(r'\*\*[^*]*minute[^*]*\*\*', texts[0])
  assert "pip install 'bioprop[train]'" in texts[0]
  assert '**Next:**' in texts[-1]


@EACH
def test_links_lead_to_pages_and_equations_are_whole(path):
  """Pages of notebooks are HTML to MkDocs, which looks at neither there."""
  texts = ''.join(cells(path, '# %% [markdown]'))
  for target in re.findall(r'\]\((?!https://)([^)]+)\)', texts):
    page = (FOLDER / target).resolve()
    assert page.suffix == '.html'
    assert any(page.with_suffix(suffix).exists() for suffix in ('.md', '.py')), target
  assert [line for line in texts.splitlines() if line.count('$') % 2] == []


@EACH
def test_code_cells_are_small(path):
  code = [cell for cell in cells(path) if not cell.startswith('# %% [markdown]')]
  assert max(len(cell.strip().splitlines()) - 1 for cell in code) <= 25


def test_all_are_in_the_index_in_their_order():
  linked = re.findall(r'\]\((\w+\.py)\)', (FOLDER / 'index.md').read_text())
  assert linked == [path.name for path in TUTORIALS]
  assert len(TUTORIALS) >= 6
