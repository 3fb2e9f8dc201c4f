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
from bioprop.training import configs as configs_lib

_WIDTH, _LONG = 100, 30
_ASKS = {f'{dashes}{word}' for dashes in ('-', '--') for word in ('h', 'help', 'helpshort')}


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
    configs: pattern of the names of configurations that it takes; '': it takes none.
    rules: whether it takes rules.
    settings: what a configuration has, with the defaults; None: it takes no --config.
  """
  parts = [doc.strip(), _section('Flags:', [_flag(flag) for flag in own()])]
  if settings is not None:
    names = [f'{name}.<name>' if hasattr(value, 'items') else f'{name}={value}'
             for name, value in settings.items()]
    parts.append('Settings, typed as --config.seed=1, with the usual values:\n'
                 + _filled(' '.join(names), 2))
  files = configs_lib.shipped(configs) if configs else []
  if files:
    rows = [(path.stem, _summary(ast.get_docstring(ast.parse(path.read_text('utf-8')))))
            for path in files]
    parts.append(_section(f'Configurations, by name; the files are in {shown(configs_lib.FOLDER)}:',
                          rows))
  if rules:
    title = lambda cls: _summary(cls.__doc__).partition(': ')[0]
    rows = [(name, ' '.join(filter(None, (title(cls), _options(cls)))))
            for name, cls in RULES.items()]
    parts.append(_section('Rules, and their options with the usual values:', rows))
  return '\n\n'.join(part for part in parts if part)


def _flag(flag):
  # absl adds a sentence to those that may be given several times.
  words = re.split(r';\s+repeat this option', flag.help)[0]
  if flag.boolean:
    return f'--{flag.name}', words
  return f'--{flag.name}={_default(flag)}', words


def _default(flag):
  """The value that holds if nothing is said, '...' if it is none, or as long as a line."""
  value = '' if flag.default is None else flag.default_as_str.strip("'")
  value = next((path.stem for path in configs_lib.shipped() if value == str(path)), value)
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
