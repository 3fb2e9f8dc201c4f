"""Imports go strictly down the table of design.md; packages of one row do not know each other."""
import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the top down; above all of them are train.py and configs/, which nothing imports.
ROWS = (
    ('bench',),
    ('training', 'flags'),
    ('streams',),
    ('probes',),
    ('limit',),
    ('plug', 'models', 'data'),
    ('network',),
    ('rules', 'measure', 'theory'),
    ('typing', 'errors'),
)
# Libraries that belong to some packages only; jax and numpy are everybody's.
LIBRARIES = {
    'flax': ('plug', 'models', 'limit', 'probes', 'flags', 'streams', 'training', 'bench'),
    'optax': ('training', 'bench'),
    'orbax': ('training', 'bench'),
    'absl': ('data', 'flags', 'training', 'bench'),
    'tensorflow_datasets': ('data',),
    'neurogym': ('data',),
    'matplotlib': ('bench',),
}
HEIGHT = {package: -row for row, packages in enumerate(ROWS) for package in packages}
FILES = sorted((ROOT / 'bioprop').rglob('*.py'))
# What a reader can hold: lines of one file, of the mechanism as a whole, and files at its front.
LINES, MECHANISM, FRONT = 350, 6359, 8


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
    if top in ('train', 'configs') or package not in LIBRARIES.get(top, (package,)):
      found.append(f'{package} imports {top}')
  return found


def lines(*packages: str) -> int:
  """Of all files of these packages together."""
  return sum(len(path.read_text().splitlines()) for path in FILES if package_of(path) in packages)


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
    ('rules', 'from bioprop.network import see'), ('network', 'from flax import nnx'),
    ('network', 'from bioprop.plug import output'), ('plug', 'from bioprop.probes import Probe'),
    ('measure', 'from bioprop.rules import make'), ('bench', 'import train'),
    ('plug', 'def f():\n  import bioprop.training.loop')])
def test_faults_are_seen(package, line):
  """The check itself can fail."""
  assert faults(package, imported(line))


def test_files_are_short():
  too_long = {str(path.relative_to(ROOT)): count for path in FILES
              if (count := len(path.read_text().splitlines())) > LINES}
  assert not too_long


def test_the_mechanism_is_small():
  assert lines('rules', 'network', 'plug') <= MECHANISM
  assert len([path for path in FILES if package_of(path) == 'plug']) <= FRONT


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
