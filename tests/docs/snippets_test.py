"""Every snippet of README.md and of the site runs as it stands; every command is one that works.

A ```python fence runs alone. A ```text fence right below it is what it prints. In other fences, and
in text between backticks, what begins with a program of ours is a command.
"""
import contextlib
import dataclasses
import io
import pathlib
import re
import runpy
import shlex
import string
import sys
import types
import warnings

import jax
import matplotlib.pyplot as plt
import pytest
from absl import flags

from bioprop.__main__ import COMMANDS
from bioprop.bench.sweep import asked, plan
from bioprop.models import MODELS
from bioprop.rules import RULES, make
from bioprop.training import cli
from bioprop.training import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / 'README.md'
# Docstrings of rules are pages too.
PAGES = [README, *sorted((ROOT / 'docs' / 'pages').rglob('*.md')),
         *sorted((ROOT / 'bioprop' / 'rules').rglob('*.py'))]
_FENCE = re.compile(r'^( *)(`{3,}|~{3,})(\S*)[^\n]*\n(.*?)^\1\2 *$', re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r'`((?:bioprop|python(?: -m bioprop\S*| train\.py)) [^`]*--[^`]*)`')
_PROGRAM = re.compile(
    r'(?:bioprop (?!COMMAND)(\w+)|python -m (bioprop\.bench\.\w+)|(python train\.py))(?=\s|$)')


@dataclasses.dataclass(frozen=True)
class Block:
  """What stands between two fences.

  Attributes:
    page, line: where it begins.
    language: what follows the first fence.
    text: what is between them, from the margin.
    printed: of a ```python fence, the ```text fence right below it.
  """
  page: pathlib.Path
  line: int
  language: str
  text: str
  printed: str | None = None

  def __str__(self):
    return f'{self.page.relative_to(ROOT)}:{self.line}'


def blocks(page: pathlib.Path) -> list[Block]:
  """All fences of a page."""
  text, found = page.read_text('utf-8'), []
  end = 0
  for match in _FENCE.finditer(text):
    body = re.sub(f'^{match[1]}', '', match[4], flags=re.MULTILINE)
    if match[3] == 'text' and found and not text[end:match.start()].strip():
      found[-1] = dataclasses.replace(found[-1], printed=body)
    found.append(Block(page, text.count('\n', 0, match.start()) + 2, match[3], body))
    end = match.end()
  return found


def commands(block: Block) -> list[str]:
  """The lines of a block that begin with a program of ours, with what the shell would put in.

  CONFIG and NAME stand for a configuration, COMMAND for all of them, other capitals for places.
  """
  set_to: dict[str, str] = {}
  found = []
  for line in block.text.replace('\\\n', ' ').splitlines():
    for part in re.split(r'&&|;\s', line):
      part = part.strip().removeprefix('$ ').removeprefix('do ')
      if loop := re.fullmatch(r'for (\w+) in (\S+).*', part):
        set_to[loop[1]] = loop[2]
      elif match := re.fullmatch(r'(\w+)=(\'[^\']*\'|\S*)', part):
        set_to[match[1]] = shlex.split(match[2])[0]
      elif _PROGRAM.match(part):
        part = re.sub(r'\b(CONFIG|NAME)\b', 'digits_mlp', part.replace(' ...', ''))
        found.append(string.Template(part).safe_substitute(set_to))
  return found


def spans(page: pathlib.Path) -> list[Block]:
  """Commands with flags in the text of a page."""
  outside = _FENCE.sub(lambda match: '\n' * match[0].count('\n'), page.read_text('utf-8'))
  return [Block(page, outside.count('\n', 0, match.start()) + 1, 'sh', ' '.join(match[1].split()))
          for match in _SPAN.finditer(outside)]


BLOCKS = {page: blocks(page) for page in PAGES}
PYTHON = [block for page in PAGES for block in BLOCKS[page] if block.language == 'python']
TYPED = [(block, command) for page in PAGES for block in (*BLOCKS[page], *spans(page))
         if block.language in ('', 'sh', 'console') for command in commands(block)]


@contextlib.contextmanager
def a_users_jax():
  """JAX as it comes: the tests of this folder's neighbours are stricter than users are."""
  # XLA optimises as little as elsewhere in the tests: what is compiled here runs for milliseconds.
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


@contextlib.contextmanager
def own_names():
  """Whatever rules and models are added inside are forgotten afterwards."""
  before = [(known, set(known)) for known in (RULES, MODELS)]
  try:
    yield
  finally:
    for known, names in before:
      for name in set(known) - names:
        del known[name]


@contextlib.contextmanager
def own_flags():
  """Whatever absl flags are defined inside are forgotten afterwards."""
  before = set(flags.FLAGS)
  try:
    yield
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize('block', [
    pytest.param(block, id=str(block), marks=[] if block.page == README else pytest.mark.slow)
    for block in PYTHON])
def test_it_runs_as_it_stands(block, tmp_path, monkeypatch):
  """Alone, in a folder of its own, without a warning; and it prints what stands below it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'argv', ['snippet.py'])
  name = '__main__'  # What it defines is looked up there, by dataclasses for instance.
  module = types.ModuleType(name)
  monkeypatch.setitem(sys.modules, name, module)
  code = compile('\n' * (block.line - 1) + block.text, block.page, 'exec')
  out = io.StringIO()
  with a_users_jax(), own_flags(), own_names(), warnings.catch_warnings(action='error'), (
      contextlib.redirect_stdout(out)):
    exec(code, vars(module))
    if 'get_config' in vars(module):  # A configuration.
      _check_config(module.get_config())
  plt.close('all')
  if block.printed is not None:
    assert [line.rstrip() for line in out.getvalue().strip().splitlines()] == (
        [line.rstrip() for line in block.printed.strip().splitlines()])


# Of ml_collections' way to read a configuration.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize('block, command', [
    pytest.param(block, command, id=f'{block} {command[:60]}') for block, command in TYPED])
def test_its_command_works(block, command, monkeypatch, capsys):
  """The program exists, takes these flags with these values, and knows the configuration."""
  del block
  monkeypatch.chdir(ROOT)
  words = shlex.split(command, comments=True)
  match = _PROGRAM.match(command)
  file = ROOT / 'train.py'
  if not match[3]:
    assert not match[1] or match[1] in COMMANDS, f'there is no bioprop {match[1]}'
    where = (COMMANDS[match[1]].module if match[1] else match[2]).split('.')
    file = ROOT.joinpath(*where).with_suffix('.py')
    file = file if file.is_file() else ROOT.joinpath(*where, '__main__.py')
  argv = words[len(match[0].split()):]
  if not argv or argv == ['--help']:
    return
  started = []
  monkeypatch.setattr(cli, 'start', lambda main, program: started.append(program))
  monkeypatch.setattr(sys, 'argv', [str(file), *argv])
  with own_flags():
    runpy.run_path(str(file), run_name='__main__')
    program, = started
    try:
      rest = cli.parse(sys.argv, program)
      _check(program, rest[1:])
    except SystemExit as error:
      raise AssertionError(f'{command}\nends with: {error}; {capsys.readouterr().err}') from error


def _check(program, rest):
  """What a program reads before it computes anything."""
  values = flags.FLAGS
  if program.base and 'experiment' not in values.config:
    _check_config(values.config)
  if 'seeds' in values and program.configs and not program.base:  # sweep and align_score
    configs = rest[1:] if 'tune' in values else rest
    over, tune = (plan.parse_fields(values[name].value, name) if name in values else {}
                  for name in ('over', 'tune'))
    assert plan.plan('runs', configs, *asked.rules_and_seeds(), over, tune)
  elif 'rules' in values and values.rules:
    rules = values.rules if isinstance(values.rules, str) else ','.join(values.rules)
    for rule in plan.parse_rules(rules):
      name, options = plan.parse_rule(rule)
      make(name, **options)


def _check_config(config):
  config_lib.check(config)
  make(config.rule, **config_lib.rule_options(config))


def test_there_is_what_to_run():
  """An expression that finds nothing would pass too."""
  assert {README, *ROOT.joinpath('docs', 'pages').glob('[mrstuw]*.md')} <= (
      {block.page for block in PYTHON})
  assert len(TYPED) > 60
