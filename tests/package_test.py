"""What is shipped: metadata, wheel and source distribution, as one without the clone has them."""
import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
import yaml

import bioprop
from bioprop.__main__ import NEEDED

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = {path.stem for path in (ROOT / 'configs').glob('*.py')}
PIP = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
ALONE = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
# What an installed package is imported from; tests, documents and tools stay with the sources.
SHIPPED = {str(path.relative_to(ROOT)) for path in (ROOT / 'bioprop').rglob('*')
           if path.is_file() and '__pycache__' not in path.parts} | {
               f'bioprop/{path.relative_to(ROOT)}' for path in (ROOT / 'configs').glob('*.py')}


def _setup():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  return setup


def _named(requirements):
  """{'jax': '>=0.8.3,<0.13'} of the lines of a requirement."""
  lines = [re.fullmatch(r'([\w.-]+(?:\[\w+\])?)(.*)', line)
           for line in requirements.splitlines() if line and not line.startswith('#')]
  return {match[1]: match[2] for match in lines}


def test_citation_names_the_version():
  cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert str(cited['version']) == bioprop.__version__
  assert cited['cff-version'] == '1.2.0' and cited['authors'] and cited['message']
  assert cited['license'] == _setup()['metadata']['license']


def test_templates_of_issues_can_be_read():
  """Each field has what a form needs; ids are one of a kind."""
  for path in (ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*.yml'):
    form = yaml.safe_load(path.read_text())
    if path.stem == 'config':
      assert set(form) <= {'blank_issues_enabled', 'contact_links'}
      continue
    assert form['name'] and form['description']
    assert len({field['id'] for field in form['body']}) == len(form['body'])
    assert all(field['attributes']['label'] for field in form['body'])


def test_the_core_is_small():
  """What the library itself needs; the commands say what is missing by the extra `train`."""
  options, extras = _setup()['options'], _setup()['options.extras_require']
  assert set(_named(options['install_requires'])) == {
      'absl-py', 'etils[epy]', 'flax', 'jax', 'numpy', 'optax', 'scipy'}
  assert set(_named(extras['train'])) == set(NEEDED)


def test_the_oldest_versions_are_the_lower_bounds():
  """.ci/run tries what setup.cfg promises."""
  options, extras = _setup()['options'], _setup()['options.extras_require']
  bounds = {name.partition('[')[0]: re.search(r'>=([\d.]+)', asked)[1] for name, asked in (
      _named(options['install_requires']) | _named(extras['train'])).items()}
  pinned = {name: asked.removeprefix('==') for name, asked in _named(
      (ROOT / '.ci' / 'oldest.txt').read_text()).items()}
  release = lambda version: [int(part) for part in version.split('.')]
  for name, bound in bounds.items():
    assert release(pinned[name])[:len(release(bound))] == release(bound), name
    assert not any(release(pinned[name])[len(release(bound)):]), name


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """A copy, in which setuptools may leave what it leaves: what git has, and what it would take."""
  folder = tmp_path_factory.mktemp('sources')
  listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
                          cwd=ROOT, capture_output=True, text=True, check=False)
  if listed.returncode:
    pytest.skip(f'these are no sources of a git repository: {listed.stderr}')
  for name in listed.stdout.splitlines():
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, folder / name)
  return folder


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory):
  """As pip builds it of the sources."""
  return _built(tmp_path_factory.mktemp('wheel'), sources)


def _run(*command):
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False,
                        env=ALONE)
  said = done.stdout + done.stderr
  if done.returncode and 'No matching distribution found for setuptools' in said:
    pytest.skip('setuptools builds, from a package index, and none can be reached')
  assert not done.returncode, said


def _built(folder, sources):
  _run(*PIP, 'wheel', '--no-deps', '--wheel-dir', folder, sources)
  wheel, = folder.glob('*.whl')
  return wheel


def _contents(wheel):
  with zipfile.ZipFile(wheel) as opened:
    return {name: opened.read(name) for name in opened.namelist()
            if not name.endswith('.dist-info/RECORD')}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
  assert wheel.name == f'bioprop-{bioprop.__version__}-py3-none-any.whl'
  held = _contents(wheel)
  files = {name for name in held if '.dist-info/' not in name}
  assert files == SHIPPED
  assert {'bioprop/py.typed', 'bioprop/data/persuasion.txt',
          'bioprop/configs/mnist_lenet.py'} <= files
  metadata, = (text.decode() for name, text in held.items() if name.endswith('/METADATA'))
  assert f'\nVersion: {bioprop.__version__}\n' in metadata
  assert '\nRequires-Dist: matplotlib' in metadata
  assert all('extra ==' in line for line in metadata.splitlines()
             if line.startswith(('Requires-Dist: matplotlib', 'Requires-Dist: tensorflow')))


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(sources, wheel, tmp_path):
  pytest.importorskip('build', reason='build, of the extra test, is not installed')
  _run(sys.executable, '-m', 'build', '--sdist', '--outdir', tmp_path, sources)
  archive, = tmp_path.glob('*.tar.gz')
  assert _contents(_built(tmp_path / 'wheel', archive)) == _contents(wheel)
  with tarfile.open(archive) as opened:
    names = {name.partition('/')[2] for name in opened.getnames()}
  assert {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'bioprop/py.typed',
          'configs/mnist_lenet.py'} <= names


@pytest.mark.slow
def test_a_wheel_without_the_sources(wheel, tmp_path):
  """In an environment that has our dependencies, it trains in an empty directory."""
  venv.create(tmp_path / 'venv', with_pip=False)
  installed, = (tmp_path / 'venv' / 'lib').glob('python*/site-packages')
  subprocess.run([*PIP, '--python', tmp_path / 'venv', 'install', '--no-deps', wheel], check=True,
                 timeout=300, env=ALONE)
  # A folder of a .pth has no .pth files of its own: nothing of these sources is seen from there.
  (installed / 'others.pth').write_text('\n'.join(
      path for path in sys.path if path.endswith('site-packages')))
  empty = tmp_path / 'empty'
  empty.mkdir()
  command = lambda *argv: subprocess.run(
      [tmp_path / 'venv' / 'bin' / 'bioprop', *argv], cwd=empty, capture_output=True, text=True,
      timeout=300, check=False, env=ALONE)
  done = command('train', '--config.epochs=1', '--config.model_options.hidden=8')
  assert done.returncode == 0, done.stderr
  assert (empty / 'runs' / 'digits_mlp-fa-seed0' / 'curves.png').exists()
  named = command('describe', '--config=mnist_lenet', '--config.rule=dfa')
  assert named.stdout.startswith('mnist_lenet: lenet on mnist'), named.stderr
  listed = command('train', '--help').stdout
  assert f'{installed}/bioprop/configs' in ' '.join(listed.split())
  assert all(f'\n  {name} ' in listed for name in CONFIGS if not name.startswith('theory_'))
