"""Imports go strictly down the table of design.md; packages of one row do not know each other."""
import ast
import io
import pathlib
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the top down; above all of them are train.py and configs/, which nothing imports.
ROWS = (
    ('__main__',),
    ('bench',),
    ('training', 'flags'),
    ('streams',),
    ('probes',),
    ('limit',),
    ('fronts', 'models', 'data'),
    ('network',),
    ('rules', 'measure', 'theory'),
    ('jaxprs',),
    ('typing', 'errors'),
)
# Pages of names, each imported when it is looked up: they may name what lies higher.
PAGES = ('__init__.py', 'measure/__init__.py', 'theory/__init__.py')
# Libraries that belong to some packages only; jax and numpy are everybody's.
LIBRARIES = {
    'flax': ('fronts', 'models', 'limit', 'probes', 'flags', 'streams', 'training', 'bench'),
    'optax': ('training', 'bench'),
    'orbax': ('training', 'bench'),
    'absl': ('data', 'flags', 'training', 'bench'),
    'tensorflow_datasets': ('data',),
    'neurogym': ('data',),
    'matplotlib': ('bench',),
}
NOTHING = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER)
HEIGHT = {package: -row for row, packages in enumerate(ROWS) for package in packages}
FILES = sorted((ROOT / 'bioprop').rglob('*.py'))
# What a reader can hold: lines of one file; lines of code of the mechanism as a whole, whose
# docstrings are the site's pages; and files at its front.
LINES, MECHANISM, FRONT = 350, 3989, 9


def imported(source: str) -> set[str]:
  """Full names of all modules that a file imports, at any depth of it."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative imports hide where they lead'
      names.update(f'{node.module}.{alias.name}' for alias in node.names)
  return names


def package_of(path: pathlib.Path) -> str:
  """'fronts' for bioprop/fronts/linen.py, 'errors' for bioprop/errors.py."""
  return path.relative_to(ROOT / 'bioprop').parts[0].removesuffix('.py')


def faults(package: str, names: set[str]) -> list[str]:
  """What is wrong with a file of `package` that imports `names`."""
  found = []
  for name in sorted(names):
    top, *rest = name.split('.')
    if top == 'bioprop':
      target = rest[0] if rest else ''
      if package == 'models' and target != 'models':
        found.append(f'models imports {name}')
      elif target not in HEIGHT:
        found.append(f'{package} imports {name}, which has no row')
      elif target != package and HEIGHT[target] >= HEIGHT[package]:
        found.append(f'{package} imports {name}, which is not below it')
    if top in ('train', 'configs') or package not in LIBRARIES.get(top, (package,)):
      found.append(f'{package} imports {top}')
  return found


def code(source: str) -> int:
  """Lines that hold more than docstrings, comments and nothing."""
  documents, found = set(), set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
      documents.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type not in NOTHING:
      found.update(range(token.start[0], token.end[0] + 1))
  return len(found - documents)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  """Upward edges, edges within a row, and packages where they do not belong."""
  package = package_of(path)
  if str(path.relative_to(ROOT / 'bioprop')) in PAGES:
    return
  assert package in HEIGHT, f'{package} has no row in the table'
  assert not faults(package, imported(path.read_text()))


@pytest.mark.parametrize('package, line', [
    ('rules', 'from bioprop.fronts import linen'), ('rules', 'import flax.linen as nn'),
    ('fronts', 'from bioprop.models import mlp'), ('models', 'from bioprop.typing import Array'),
    ('fronts', 'import bioprop'), ('training', 'from matplotlib import pyplot'),
    ('typing', 'import bioprop.errors'), ('rules', 'from bioprop import fronts'),
    ('rules', 'from bioprop.network import see'), ('network', 'from flax import nnx'),
    ('network', 'from bioprop.fronts import output'), ('measure', 'from bioprop.rules import make'),
    ('fronts', 'from bioprop.probes import Probe'), ('bench', 'import train'),
    ('bench', 'from bioprop import __main__'), ('__main__', 'import optax'),
    ('fronts', 'def f():\n  import bioprop.training.loop')])
def test_faults_are_seen(package, line):
  """The check itself can fail."""
  assert faults(package, imported(line))


def test_files_are_short():
  too_long = {str(path.relative_to(ROOT)): count for path in FILES
              if (count := len(path.read_text().splitlines())) > LINES}
  assert not too_long


def test_the_mechanism_is_small():
  assert sum(code(path.read_text()) for path in FILES
             if package_of(path) in ('rules', 'network', 'fronts')) <= MECHANISM
  assert len([path for path in FILES if package_of(path) == 'fronts']) <= FRONT


def test_contributors_are_told_the_table():
  text = (ROOT / '.github' / 'CONTRIBUTING.md').read_text()
  shown = text.partition('## Layers')[2].split('```')[1].strip().splitlines()
  assert shown == [', '.join(row) for row in ROWS]


def test_lines_of_code():
  """Of a docstring, a comment, a blank line, and a statement of two lines."""
  assert code('"""What\nit is."""\n\n# Why.\nx = (1,\n     2)  # How.\n') == 2


def test_no_cycle_between_files():
  """Depth-first over the files' import graph."""
  modules = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p
             for p in FILES}
  edges = {}
  for module, path in modules.items():
    names = imported(path.read_text())
    edges[module] = {m for m in modules if m != module and any(
        n == m or (n.rpartition('.')[0] == m and n not in modules) for n in names)}
  done, stack = set(), []

  def visit(module):
    assert module not in stack, f'cycle: {" -> ".join([*stack, module])}'
    if module in done:
      return
    stack.append(module)
    for below in sorted(edges[module]):
      visit(below)
    done.add(stack.pop())

  for module in modules:
    visit(module)
  assert len(done) == len(FILES)
