"""--help of every program: its own flags, configurations and rules, and nothing of others."""
import dataclasses
import pathlib

import pytest

from bioprop.rules import RULES

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = {
    'train.py': ['config', 'data_dir', 'workdir'],
    'accuracy': ['activation', 'copies', 'depths', 'keys', 'networks', 'rules', 'width'],
    'align_score': ['data_dir', 'epochs', 'rules', 'seeds'],
    'classes': ['copies', 'data_dir', 'dataset', 'depth', 'networks', 'rate', 'replicas', 'rho',
                'rules', 'samples', 'steps', 'width'],
    'compare': ['out'],
    'dmft': ['copies', 'depth', 'directions', 'rules', 'samples', 'steps'],
    'ntk': ['implementation', 'json', 'networks', 'peer', 'rounds'],
    'pictures': ['out'],
    'representation': [],
    'speed': ['json', 'loop', 'models', 'probes', 'rounds', 'rules', 'seconds', 'steps'],
    'start': ['copies', 'depths', 'gamma0', 'out', 'replicas', 'rules'],
    'sweep': ['data_dir', 'metric', 'rules', 'seeds'],
    'theory': ['config', 'out', 'overwrite'],
    'widths': ['copies', 'depths', 'networks', 'outputs', 'rules', 'widths'],
}
CONFIGS = {path.name for path in (ROOT / 'configs').glob('*.py')}
THEORY = {name for name in CONFIGS if name.startswith('theory_')}
TAKES = {'train.py': CONFIGS - THEORY, 'sweep': CONFIGS - THEORY, 'align_score': CONFIGS - THEORY,
         'theory': THEORY}


def test_every_program_is_tried():
  """What one starts by python -m: files with a main, less the peer, which we start ourselves."""
  mains = {path.stem if path.stem != '__main__' else path.parent.name
           for path in (ROOT / 'bioprop' / 'bench').rglob('*.py')
           if "if __name__ == '__main__'" in path.read_text()}
  assert mains - {'ntk_peer'} == set(FLAGS) - {'train.py'}


@pytest.fixture(scope='module')
def asked(python):
  """asked(program, *argv) runs it."""
  return lambda program, *argv: (python(ROOT / program, *argv) if program == 'train.py' else
                                 python(*argv, module=f'bioprop.bench.{program}'))


@pytest.mark.parametrize('program', FLAGS)
def test_help(asked, program):
  """A line each; short, on stdout, and no failure."""
  done = asked(program, '--help')
  assert done.returncode == 0 and 'Error' not in done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) < 90 and max(map(len, lines)) <= 100
  first = [line.split()[0] for line in lines if line.startswith('  ') and line[2:3] not in ' ']
  assert [word.partition('=')[0] for word in first if word.startswith('--')] == [
      f'--{name}' for name in FLAGS[program]]
  assert {word for word in first if word in CONFIGS} == TAKES.get(program, set())
  if program in ('train.py', 'sweep', 'align_score', 'speed', 'dmft'):
    assert [word for word in first if word in RULES] == list(RULES)
    text = ' '.join(done.stdout.split())
    for rule in RULES.values():
      options = ', '.join(f'{field.name}={field.default}' for field in dataclasses.fields(rule))
      assert not options or f'[{options}]' in text
  else:
    assert not set(first) & set(RULES)


def test_settings_and_how_else_one_asks(asked):
  """Those of a configuration, with their values."""
  done = asked('train.py', '-h', '--config.rule=dfa')
  assert done.returncode == 0
  text = ' '.join(done.stdout.split())
  assert 'learning_rate=0.1' in text and 'rule_options.<name>' in text
  assert '--config=configs/digits_mlp.py' in text


@pytest.mark.parametrize('program, argv, words', [
    ('compare', ['--uot=x.png'], 'no flag --uot. Did you mean --out=x.png? The flags are --out'),
    ('sweep', ['--rule=bp'], 'Did you mean --rules=bp?'),
    ('speed', ['mlp'], "no use for 'mlp'"),
    ('speed', ['--models=mlp', '--rules=rflo'], 'RFLO is a rule of recurrent networks'),
    ('dmft', ['--steps=2', '--samples=1'], '--directions=4')])
def test_mistakes_are_one_paragraph(asked, program, argv, words):
  """Of the command line of every program."""
  done = asked(program, *argv)
  assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
