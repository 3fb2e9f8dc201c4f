"""Imports go strictly down the table of design.md; packages of one row do not know each other."""
import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the top down; recurrent and theory are planned.
ROWS = (
    ('bench',),
    ('training', 'flags'),
    ('probes',),
    ('plug', 'recurrent', 'models', 'data'),
    ('rules', 'measure', 'theory'),
    ('typing', 'errors'),
)
HEIGHT = {package: -row for row, packages in enumerate(ROWS) for package in packages}
FILES = sorted((ROOT / 'bioprop').rglob('*.py'))


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
  """'plug' for bioprop/plug/linen.py, 'errors' for bioprop/errors.py."""
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
    if top == 'matplotlib' and package != 'bench':
      found.append(f'{package} imports matplotlib')
    if top == 'flax' and ('rules', 'measure', 'theory') == ROWS[-HEIGHT[package]]:
      found.append(f'{package} imports flax')
    if top in ('optax', 'orbax', 'absl') and package in ('plug', 'models', 'rules'):
      found.append(f'{package} imports {top}')
  return found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  """Upward edges, edges within a row, and packages where they do not belong."""
  package = package_of(path)
  if package == '__init__':
    return
  assert package in HEIGHT, f'{package} has no row in the table'
  assert not faults(package, imported(path.read_text()))


@pytest.mark.parametrize('package, line', [
    ('rules', 'from bioprop.plug import linen'), ('rules', 'import flax.linen as nn'),
    ('plug', 'from bioprop.models import mlp'), ('models', 'from bioprop.typing import Array'),
    ('plug', 'import bioprop'), ('training', 'from matplotlib import pyplot'),
    ('typing', 'import bioprop.errors'), ('rules', 'from bioprop import plug'),
    ('plug', 'def f():\n  import bioprop.training.loop')])
def test_faults_are_seen(package, line):
  """The check itself can fail."""
  assert faults(package, imported(line))


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
