"""--help of every program: its own flags, configurations and rules, and nothing of others."""
import dataclasses
import pathlib

import pytest

from bioprop.rules import RULES

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = {
    'train.py': ['config', 'data_dir', 'workdir'],
    'train': ['config', 'data_dir', 'workdir'],
    'accuracy': ['activation', 'copies', 'depths', 'keys', 'networks', 'rules', 'width'],
    'align_score': ['data_dir', 'epochs', 'rules', 'seeds'],
    'classes': ['copies', 'data_dir', 'dataset', 'depth', 'networks', 'rate', 'replicas', 'rho',
                'rules', 'samples', 'steps', 'width'],
    'describe': ['config', 'data_dir'],
    'dmft': ['copies', 'depth', 'directions', 'rules', 'samples', 'steps'],
    'ntk': ['batch', 'block', 'config', 'data_dir', 'infinite', 'out', 'overwrite', 'rules',
            'seeds'],
    'ntk_speed': ['implementation', 'json', 'networks', 'peer', 'rounds'],
    'overview': ['out', 'rules', 'seeds', 'steps', 'width'],
    'peers': ['biotorch', 'json', 'models', 'rounds', 'rules', 'seconds'],
    'probe': ['batch', 'block', 'config', 'data_dir', 'name', 'type'],
    'report': ['metric', 'out'],
    'speed': ['data_dir', 'imports', 'json', 'loop', 'minutes', 'models', 'probes', 'replicas',
              'rounds', 'rules', 'seconds', 'steps', 'suite', 'workdir'],
    'start': ['copies', 'depths', 'gamma0', 'out', 'replicas', 'rules'],
    'sweep': ['data_dir', 'max_gib', 'metric', 'over', 'replicas', 'rules', 'seeds', 'tune'],
    'theory': ['config', 'out', 'overwrite'],
    'widths': ['copies', 'depths', 'networks', 'outputs', 'rules', 'widths'],
}
CONFIGS = {path.stem for path in (ROOT / 'configs').glob('*.py')}
THEORY = {name for name in CONFIGS if name.startswith('theory_')}
NETWORKS = ('train.py', 'train', 'sweep', 'align_score', 'describe', 'ntk')
TAKES = {'theory': THEORY} | {program: CONFIGS - THEORY for program in NETWORKS}


def test_every_program_is_tried():
  """What one starts by python -m: files with a main, less the peers, which we start ourselves."""
  mains = {path.stem if path.stem != '__main__' else path.parent.name
           for path in (ROOT / 'bioprop' / 'bench').rglob('*.py')
           if "if __name__ == '__main__'" in path.read_text()}
  assert mains - {'ntk_peer', 'biotorch_peer'} == set(FLAGS) - {'train.py'}


@pytest.fixture(scope='module')
def asked(python):
  """asked(program, *argv) runs it."""
  return lambda program, *argv: (python(ROOT / program, *argv) if program == 'train.py' else
                                 python(*argv, module=f'bioprop.bench.{program}'))


@pytest.mark.parametrize('program', FLAGS)
@pytest.mark.some(2)
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
  if program in ('train.py', 'train', 'sweep', 'align_score', 'describe', 'speed', 'dmft'):
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
  assert '--config=digits_mlp' in text


@pytest.mark.parametrize('program, argv, words', [
    ('report', ['--uot=x'], 'no flag --uot. Did you mean --out=x? The flags are --metric'),
    ('sweep', ['--rule=bp'], 'Did you mean --rules=bp?'),
    ('sweep', ['--config.seed=3'], 'Did you mean --seeds=3?'),
    ('sweep', ['--config.epochs=3'], 'Did you mean --over=epochs:3, '),
    ('ntk', ['--rule=fa'], 'Did you mean --rules=fa?'),
    ('ntk', ['--config.rule=fa'], 'Type --rules=fa.'),
    ('speed', ['mlp'], "no use for 'mlp'"),
    ('speed', ['--models=mlp', '--rules=rflo'], 'RFLO is a rule of recurrent networks'),
    ('dmft', ['--steps=2', '--samples=1'], '--directions=4')])
@pytest.mark.some(2)
def test_mistakes_are_one_paragraph(asked, program, argv, words):
  """Of the command line of every program."""
  done = asked(program, *argv)
  assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
