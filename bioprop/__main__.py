"""bioprop: Flax models that learn by other rules than backprop, and what the rules do to them.

    bioprop COMMAND [--FLAG=VALUE ...]
    bioprop COMMAND --help
"""
import difflib
import importlib
import importlib.util
import sys
import textwrap
from typing import NamedTuple

_MORE = ('bioprop COMMAND --help has the flags, settings, configurations and rules of a command. '
         'bioprop train alone trains a small network, and needs no files. In Python start at '
         'help(bioprop).')
_ASKS = ('-h', '-help', '--help', '--helpshort', 'help')


class Command(NamedTuple):
  """A module with define_flags(), main(argv) and PROGRAM, and what it does, in a line."""
  module: str
  does: str


COMMANDS = {
    'train': Command('bioprop.bench.train', 'Trains a model by a rule, or goes on with a run.'),
    'sweep': Command('bioprop.bench.sweep.__main__', 'Trains rules side by side: one table.'),
    'report': Command('bioprop.bench.report.__main__', 'Tables and figures of finished runs.'),
    'describe': Command('bioprop.bench.describe', 'Says which parameter learns by which rule.'),
    'probe': Command('bioprop.bench.probe', 'Measures networks of finished runs, at checkpoints.'),
    'ntk': Command('bioprop.bench.ntk', 'The effective NTK at the start, rule beside rule.'),
    'theory': Command('bioprop.bench.theory.__main__', 'Sets theory beside trained networks.'),
    'speed': Command('bioprop.bench.speed', 'Times steps beside those of plain Flax backprop.'),
}
# What the extra `train` installs, and the modules by which it is imported.
NEEDED = {
    'array_record': 'array_record', 'matplotlib': 'matplotlib', 'ml_collections': 'ml_collections',
    'orbax-checkpoint': 'orbax', 'pillow': 'PIL', 'rich': 'rich', 'scikit-learn': 'sklearn',
    'tensorboardX': 'tensorboardX', 'tensorflow-datasets': 'tensorflow_datasets', 'tqdm': 'tqdm',
}


def main() -> None:
  """Runs the command that is typed first; only its program is imported."""
  name, *rest = sys.argv[1:] or ['']
  if not name or name in _ASKS:
    print(text())
    sys.exit(0 if name else 1)  # Nothing was done, which a script is to notice.
  if name not in COMMANDS:
    sys.exit(f'bioprop: {_unknown(name, rest)}')
  require(f'bioprop {name}')
  sys.argv = [f'bioprop {name}', *rest]  # By which its mistakes are told.
  from bioprop.training import cli
  program = importlib.import_module(COMMANDS[name].module)
  program.define_flags()
  cli.start(program.main, program.PROGRAM)


def require(program: str) -> None:
  """Ends a program, with one paragraph, where the library is installed without what that needs.

  Args:
    program: its name, for the paragraph.
  """
  if missing := [package for package, module in NEEDED.items()
                 if importlib.util.find_spec(module) is None]:
    *others, last = missing
    named = f'{", ".join(others)} and {last} are' if others else f'{last} is'
    sys.exit(f'{program}: {named} not installed. The library alone, import bioprop, does without; '
             f'its commands train, draw and read data. Type pip install \'bioprop[train]\', or, '
             f'from the sources, pip install -e \'.[train]\'.')


def text() -> str:
  """Returns what --help says: the commands, and where to read more."""
  width = max(map(len, COMMANDS))
  rows = [f'  {name:<{width}}  {command.does}' for name, command in COMMANDS.items()]
  more = textwrap.fill(_MORE, 100, break_on_hyphens=False)
  return '\n'.join([__doc__.strip(), '', 'Commands:', *rows, '', more])


def _unknown(name, rest):
  """What to say of a word that is no command."""
  listed = f'The commands are {", ".join(COMMANDS)}; bioprop --help says what each does.'
  if name.startswith('-'):
    typed = ' '.join(['bioprop train', name, *rest])
    return f'the command comes before its flags. Type for instance {typed}. {listed}'
  near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
  guess = f' Did you mean {" ".join(["bioprop", near[0], *rest])}?' if near else ''
  return f'there is no command {name!r}.{guess} {listed}'


if __name__ == '__main__':
  main()
