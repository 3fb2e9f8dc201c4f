"""`bioprop`: its commands, configurations by name, and what is installed."""
import configparser
import importlib
import pathlib
import subprocess
import sys

import pytest

from bioprop.__main__ import COMMANDS, NEEDED
from bioprop.errors import ConfigError
from bioprop.training import configs

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = {path.stem for path in (ROOT / 'configs').glob('*.py')}


@pytest.fixture(scope='module')
def bioprop(python):
  """bioprop(*argv, cwd=...) runs the command."""
  return lambda *argv, **kwargs: python(*argv, module='bioprop', **kwargs)


def _paragraph(done):
  assert done.returncode == 1 and done.stdout == ''
  assert len(done.stderr.splitlines()) == 1, done.stderr
  return done.stderr


def test_the_commands(bioprop):
  """A line each; the same without a command, which a script notices."""
  done = bioprop('--help')
  assert done.returncode == 0 and done.stderr == ''
  lines = done.stdout.splitlines()
  assert max(map(len, lines)) <= 100 and 'bioprop COMMAND --help' in done.stdout
  at = lines.index('Commands:') + 1
  assert [line.split()[0] for line in lines[at:at + 8]] == [
      'train', 'sweep', 'report', 'describe', 'probe', 'ntk', 'theory', 'speed']
  bare = bioprop()
  assert bare.returncode == 1 and bare.stdout == done.stdout


def test_only_what_is_chosen_is_imported():
  """The help needs no JAX, and `import bioprop` alone neither."""
  code = ('import sys\nimport bioprop.__main__\nsys.argv = ["bioprop", "--help"]\n'
          'try:\n  bioprop.__main__.main()\nexcept SystemExit:\n'
          '  print(sorted({"jax", "flax", "numpy", "bioprop.rules"} & set(sys.modules)))')
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                        timeout=100, check=True)
  assert done.stdout.splitlines()[-1] == '[]'


@pytest.mark.parametrize('absent, told', [
    (['sklearn'], 'bioprop train: scikit-learn is not installed.'),
    (list(NEEDED.values()), 'bioprop train: array_record, matplotlib, ml_collections, ')])
def test_the_library_alone_has_no_commands(absent, told):
  """One paragraph, with all that is missing; the help needs none of it."""
  code = ('import sys\nimport bioprop.__main__\n'
          f'sys.modules.update(dict.fromkeys({absent}))\n'  # None: as if there were no such module.
          'sys.argv = ["bioprop", *sys.argv[1:]]\nbioprop.__main__.main()')
  run = lambda *argv: subprocess.run([sys.executable, '-c', code, *argv], cwd=ROOT, timeout=100,
                                     capture_output=True, text=True, check=False)
  paragraph = _paragraph(run('train', '--config=mnist_lenet'))
  assert paragraph.startswith(told) and "pip install 'bioprop[train]'" in paragraph
  assert run('--help').returncode == 0
  code = ('import runpy\nimport sys\n'
          f'sys.modules.update(dict.fromkeys({absent}))\n'
          'sys.argv = ["train.py"]\nrunpy.run_path("train.py", run_name="__main__")')
  assert _paragraph(run()).startswith(told.replace('bioprop train', 'train.py'))


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.some(2)
def test_each_is_its_program(bioprop, python, name):
  """The help of the module that python -m runs, and the name that was typed in its mistakes."""
  module = COMMANDS[name].module
  program = importlib.import_module(module)
  assert callable(program.main) and callable(program.define_flags) and program.PROGRAM
  done = bioprop(name, '--help')
  assert done.returncode == 0 and done.stdout.startswith(program.__doc__.strip())
  assert done.stdout == python('--help', module=module.removesuffix('.__main__')).stdout
  wrong = _paragraph(bioprop(name, '--no_such_flag=1'))
  assert wrong.startswith(f'bioprop {name}: there is no flag --no_such_flag.')


@pytest.mark.parametrize('argv, words', [
    (['trian', '--config=x'], ["no command 'trian'. Did you mean bioprop train --config=x?",
                               'describe, probe, ntk']),
    (['DESCRIBE'], ['Did you mean bioprop describe?']),
    (['xyzzy'], ["no command 'xyzzy'. The commands are train, sweep"]),
    (['--config=mnist_lenet'], ['Type for instance bioprop train --config=mnist_lenet.']),
    (['train', 'mnist_lenet'], ["bioprop train: there is no use for 'mnist_lenet'",
                              'Did you mean --config=mnist_lenet?']),
    (['train', '--config=mnist_lenot'], ['Did you mean --config=mnist_lenet?']),
    (['theory', '--config=xyzzy'], ['Type for instance --config=theory_fa']),
    (['theory', '--config=digits_mlp'], ['type bioprop train --config=']),
    (['describe', '--config=theory_fa'], ['Type bioprop theory --config=']),
    # Before --config or after it.
    (['train', '--config.rule=daf', '--config', 'mnist_align_mlp:16'], ["no rule 'daf'"]),
    (['sweep', 'runs', 'digits_mpl'], ['bioprop sweep: ', 'Did you mean digits_mlp?']),
])
def test_mistakes_are_one_paragraph(bioprop, tmp_path, argv, words):
  paragraph = _paragraph(bioprop(*argv, cwd=tmp_path))
  assert all(word in paragraph for word in words), paragraph
  assert not list(tmp_path.iterdir())


def test_configurations_by_name(tmp_path, monkeypatch):
  """With or without .py and an argument; from anywhere; a file that is there comes first."""
  monkeypatch.chdir(tmp_path)
  for name in NAMES:
    assert configs.find(name) == configs.find(f'{name}.py') == str(ROOT / 'configs' / f'{name}.py')
  assert configs.find('mnist_align_mlp:16,5') == str(ROOT / 'configs' / 'mnist_align_mlp.py:16,5')
  assert configs.load('mnist_align_mlp.py:16').model_options.hidden == (16, 16)
  assert configs.stem('configs/mnist_mlp_ntk.py:0.3') == 'mnist_mlp_ntk' == configs.stem(
      'mnist_mlp_ntk:0.3')
  (tmp_path / 'mnist_lenet').mkdir()  # No file.
  assert configs.find('mnist_lenet') == str(ROOT / 'configs' / 'mnist_lenet.py')
  (tmp_path / 'mnist_lenet.py').write_text('def get_config():\n  return {"own": 1}\n')
  assert configs.find('mnist_lenet.py') == 'mnist_lenet.py'
  assert configs.load('mnist_lenet.py') == {'own': 1}
  for name in ('nope', 'configs/mnist_lenet.py', '', 'mnist_lenet.py.py'):
    with pytest.raises(ConfigError, match='there is no configuration'):
      configs.find(name)


def test_overrides_act_on_a_named_configuration(bioprop, tmp_path):
  """Whichever comes first; --config alone, or with its value."""
  want = bioprop('describe', '--config=mnist_align_mlp:16', '--config.rule=dfa', cwd=tmp_path)
  assert want.stdout.startswith('mnist_align_mlp: mlp on mnist, inputs 28x28x1, dfa\n')
  assert 'Dense_2/kernel 16x10 Dense dfa 10x16' in ' '.join(want.stdout.split())
  for argv in (['--config.rule=dfa', '--config=mnist_align_mlp:16'],
               ['--config.rule=dfa', '--config', 'mnist_align_mlp.py:16']):
    assert bioprop('describe', *argv, cwd=tmp_path).stdout == want.stdout


def test_all_packages_are_installed():
  """setup.cfg names each by itself, since configs/ lies elsewhere than its package."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  packages = {'.'.join(path.parent.relative_to(ROOT).parts)
              for path in (ROOT / 'bioprop').rglob('__init__.py')}
  assert set(setup['options']['packages'].split()) == {*packages, 'bioprop.configs'}
  assert setup['options']['package_dir'].split() == ['bioprop.configs', '=', 'configs']
