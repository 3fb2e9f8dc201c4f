"""Types of the public interface, by pyrefly: a user's program is clean, mistakes are found."""
import importlib
import importlib.util
import inspect
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = ROOT / 'tests' / 'typed_program.py'
PAGES = ('bioprop', 'bioprop.measure', 'bioprop.theory', 'bioprop.rules')
WHOLE = ('bioprop.errors', 'bioprop.flags')

pytestmark = pytest.mark.skipif(importlib.util.find_spec('pyrefly') is None,
                                reason='pyrefly, of the extra test, is not installed')


def pyrefly(*argv):
  """What it says, a mistake a line; empty if it has nothing to say."""
  done = subprocess.run(
      [sys.executable, '-m', 'pyrefly', *argv, '--config', ROOT / '.pyrefly.toml',
       '--python-interpreter-path', sys.executable, '--output-format=min-text'],
      cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
  said = [line for line in done.stdout.splitlines() if line.startswith(('ERROR', ' WARN'))]
  assert done.returncode == bool(said), done.stdout + done.stderr
  return said


def defined():
  """The files of all that is public."""
  modules = set(WHOLE)
  for name in PAGES:
    page = importlib.import_module(name)
    for one in (getattr(page, public) for public in page.__all__):
      module = one if inspect.ismodule(one) else inspect.getmodule(one)
      if module and module.__name__.startswith('bioprop.'):
        modules.add(module.__name__)
  return sorted(inspect.getsourcefile(importlib.import_module(name)) for name in modules)


def test_a_users_program_is_clean():
  assert not pyrefly('check')


MISTAKES = (
    ("bioprop.plug(Net(), 'dfa')", 'bioprop.plug(Net(), 3)'),
    ("bioprop.plug(Net(), 'dfa')", "bioprop.wrap(Net(), 'dfa')"),
    ('variables=variables, output=0', 'variable=variables, output=0'),
    ('assert_type(plain, Net)', 'assert_type(plain, Layers)'),
    ('plugged.init_feedback(jax.random.key(0), params, x)', 'plugged.init_feedback()'),
    ('flags.define()', 'flags.define(3)'),
    ('bioprop.make(\'fa\', rho=0.5)\n  names', 'bioprop.make(0.5)\n  names'),
    ('state = stream.init(variables, x)', 'state = stream.init(variables)'),
    ('return step.loss', 'return step.losses'),
    ('assert_type(by_layer, dict[str, jax.Array])', 'assert_type(by_layer, jax.Array)'),
    ("kernels['Dense_0/kernel'].phi", 'kernels.phi'),
    ('measure.spectrum(kernel)', 'measure.spectrum(by_layer)'),
    ("theory.lazy_kernels(x, 3, 'relu', 'fa', rho=0.5)", "theory.lazy_kernels(x, '3', 'relu')"),
    ('x, y, depth=2, ', 'x, y, 2, '),
    ('errors.ConvergenceError', 'errors.ConvergenceErrors'),
    ('outputs.train', 'outputs.training'))


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """What is said of copies of the program, each with one mistake."""
  folder, program = tmp_path_factory.mktemp('broken'), PROGRAM.read_text()
  for number, (right, wrong) in enumerate(MISTAKES):
    (folder / f'broken{number}.py').write_text(program.replace(right, wrong, 1))
  return '\n'.join(pyrefly('check', *folder.glob('*.py')))


@pytest.mark.parametrize('number', range(len(MISTAKES)), ids=[wrong for _, wrong in MISTAKES])
def test_mistakes_are_found(found, number):
  """On the line of the mistake, if not only there."""
  before = PROGRAM.read_text().split(MISTAKES[number][0])[:-1]
  assert before and f'broken{number}.py:{before[0].count(chr(10)) + 1}:' in found


def test_all_that_is_public_has_types():
  """Parameters, what is returned, and attributes, in every file where a public name is defined."""
  files = defined()
  assert {'plug.py', 'tangent.py', 'jacobian.py', 'base.py', 'errors.py'} <= {
      pathlib.Path(file).name for file in files}
  assert not pyrefly('coverage', 'check', '--public-only', *files)


def test_what_has_no_types_is_found(tmp_path):
  """The check of types itself can fail."""
  (tmp_path / 'bare.py').write_text('def bare(x):\n  return x\n')
  assert 'bare' in ''.join(pyrefly('coverage', 'check', '--public-only', tmp_path / 'bare.py'))
