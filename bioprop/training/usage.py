"""What --help of a program says: what it does, its own flags, configurations and rules."""
import ast
import dataclasses
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from bioprop.rules import RULES
from bioprop.training.config import nearest

_WIDTH, _LONG = 100, 30
_ASKS = {f'{dashes}{word}' for dashes in ('-', '--') for word in ('h', 'help', 'helpshort')}
FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'configs'


def is_asked(argv: Iterable[str]) -> bool:
  """Whether a command line asks for help; what follows a bare -- is no flag."""
  before = list(argv)
  return bool(_ASKS & set(before[:before.index('--')] if '--' in before else before))


def own() -> list[flags.Flag]:
  """Returns the flags that the program itself defines, in alphabetical order.

  Those of absl and of other libraries are left out, and so are the parts of a configuration.
  """
  found = [flag for module, defined in flags.FLAGS.flags_by_module_dict().items()
           if module in ('__main__', sys.argv[0]) or module.startswith('bioprop.')
           for flag in defined if '.' not in flag.name]
  return sorted(found, key=lambda flag: flag.name)


def configurations(pattern: str) -> list[pathlib.Path]:
  """Returns the files of configs/ whose name matches, none where only the package is there."""
  return sorted(path for path in FOLDER.glob('*.py') if re.match(pattern, path.name))


def no_configuration(file: str, flag: str = '') -> str:
  """Returns what to say of a configuration's file that is not there, with one that is.

  Args:
    file: as it was typed.
    flag: what to type before a file, '--config='.
  """
  there = {path.name: path for path in configurations('')}
  near = nearest(pathlib.Path(file).name, there) or 'digits_mlp.py'
  where = '' if pathlib.Path(file).is_absolute() else f', seen from {pathlib.Path.cwd()}'
  what = (f'Type for instance {flag}{shown(there[near])}.' if near in there else
          'Give a file with a get_config(), such as those of configs/ beside the source.')
  return f'there is no configuration {file}{where}. {what}'


def shown(path: str | os.PathLike) -> str:
  """Returns a path as one types it here: relative, where it is below this directory."""
  try:
    return str(pathlib.Path(path).relative_to(pathlib.Path.cwd()))
  except ValueError:
    return str(path)


def text(doc: str, configs: str = '', rules: bool = False,
         settings: Mapping[str, Any] | None = None) -> str:
  """Returns the help of the program whose flags are defined.

  Args:
    doc: the program's docstring.
    configs: pattern of the names in configs/ that it takes; '': it takes none.
    rules: whether it takes rules.
    settings: what a configuration has, with the defaults; None: it takes no --config.
  """
  parts = [doc.strip(), _section('Flags:', [_flag(flag) for flag in own()])]
  if settings is not None:
    names = [f'{name}.<name>' if hasattr(value, 'items') else f'{name}={value}'
             for name, value in settings.items()]
    parts.append('Settings, typed as --config.seed=1, with the usual values:\n'
                 + _filled(' '.join(names), 2))
  files = configurations(configs) if configs else []
  if files:
    rows = [(path.name, _summary(ast.get_docstring(ast.parse(path.read_text('utf-8')))))
            for path in files]
    parts.append(_section(f'Configurations, in {shown(FOLDER)}:', rows))
  if rules:
    rows = [(name, ' '.join(filter(None, (_summary(cls.__doc__), _options(cls)))))
            for name, cls in RULES.items()]
    parts.append(_section('Rules, and their options with the usual values:', rows))
  return '\n\n'.join(part for part in parts if part)


def _flag(flag):
  if flag.boolean:
    return f'--{flag.name}', flag.help
  return f'--{flag.name}={_default(flag)}', flag.help


def _default(flag):
  """The value that holds if nothing is said, '...' if it is none, or as long as a line."""
  value = '' if flag.default is None else shown(flag.default_as_str.strip("'"))
  return value if 0 < len(value) < _LONG else '...'


def _options(cls):
  """'[rho=0.0, scale=None]'."""
  options = ', '.join(f'{field.name}={field.default}' for field in dataclasses.fields(cls))
  return f'[{options}]' if options else ''


def _summary(doc):
  return (doc or '').strip().partition('\n')[0]


def _section(title, rows):
  """A title, and below it a row for each pair of a name and its explanation."""
  if not rows:
    return ''
  width = max(len(name) for name, _ in rows)
  return '\n'.join([title, *(_filled(f'{name:<{width}}  {words}', width + 4)
                             for name, words in rows)])


def _filled(words, indent):
  """Lines of which all but the first stand `indent` columns to the right."""
  return textwrap.fill(words, _WIDTH, initial_indent='  ', subsequent_indent=' ' * indent,
                       break_on_hyphens=False, break_long_words=False)
