"""The command line: flags, their errors, and how a run ends. Every mistake is one paragraph."""
import contextlib
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from bioprop.errors import BiopropError, LostProcessError
from bioprop.training import config as config_lib
from bioprop.training import distributed, usage, workdir

_RUNS = 'runs'


class Program(NamedTuple):
  """What a program takes, which its help and the mistakes of a command line are told by.

  Attributes:
    configs: pattern of the names of its configurations in configs/; '': it takes none.
    rules: whether it takes rules.
    arguments: whether it takes anything but flags.
    example: a configuration to type, where there is a --config.
    base: makes a configuration with all keys that there are; None: there is no --config.
    check: raises ConfigError for a configuration of something else.
  """
  configs: str = ''
  rules: bool = False
  arguments: bool = True
  example: str = ''
  base: Callable[[], ml_collections.ConfigDict] | None = None
  check: Callable[[ml_collections.ConfigDict], None] = config_lib.check_kind


TRAIN = Program('(?!theory_)', rules=True, arguments=False, example='configs/mnist_lenet.py',
                base=config_lib.base)
PLAIN = Program()


def start(main: Callable[[list[str]], None], program: Program = PLAIN) -> None:
  """Runs a program, whose flags are defined, as `absl.app.run`; our errors are one paragraph."""
  def told(argv):
    try:
      main(argv)
    except (app.UsageError, BiopropError) as error:
      raise _ending(str(error)) from error

  app.run(told, flags_parser=functools.partial(parse, program=program))


def define_flags(default_config: str | os.PathLike) -> None:
  """Defines --config, --workdir and --data_dir."""
  with _told(sys.argv, TRAIN):  # Reads the overrides at once, where no --config comes first.
    config_flags.DEFINE_config_file(
        'config', str(default_config), 'The experiment; --config.<name>=<value> changes it.')
  flags.DEFINE_string('workdir', None, f'Where the run is, or goes on; without: {_RUNS}/<config>-'
                      '<rule>-seed<seed>, or the next free one.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def parse(argv: Sequence[str], program: Program = TRAIN) -> list[str]:
  """Parses the command line for `absl.app.run`; a mistake ends the program with status 1.

  --help prints the program's docstring, flags, configurations and rules, and ends it.
  """
  app.define_help_flags()
  if usage.is_asked(argv[1:]):
    settings = program.base() if program.base else None
    print(usage.text(sys.modules['__main__'].__doc__, program.configs, program.rules, settings))
    sys.exit(0)
  with _told(argv, program):
    rest = flags.FLAGS(argv)
    config = flags.FLAGS.config if program.base else None
    _ = config and config.keys()  # A file that could not be loaded is reported when it is used.
  if program.base:
    if config is None:
      raise _ending(f'there is no configuration. Type for instance --config={program.example}.')
    with reported():
      program.check(config)
  if rest[1:] and not program.arguments:
    raise _ending(f'there is no use for {" ".join(rest[1:])!r}: everything is a flag. '
                  f'{_flag_names(program)}')
  return rest


def arguments() -> tuple[ml_collections.ConfigDict, pathlib.Path, str | None]:
  """Returns the configuration, the run's directory and the data's, from the parsed flags.

  The processes of config.distributed, if there are others, have then met.
  """
  logging.set_verbosity(logging.WARNING)  # app.run raises it, and orbax tells of every file.
  config = flags.FLAGS.config
  path = flags.FLAGS.workdir
  with reported():
    distributed.join(config)  # Before anything computes.
  if path is None:
    stem = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    name = f'{stem}-{config.rule}-seed{config.seed}'
    path = distributed.from_first(lambda: workdir.fresh(_RUNS, name, config))
  return config, pathlib.Path(path), flags.FLAGS.data_dir


@contextlib.contextmanager
def reported(path: pathlib.Path | None = None) -> Iterator[None]:
  """Ends the program with one paragraph on an error of ours (status 1) or on Ctrl-C (130)."""
  try:
    yield
  except LostProcessError as error:
    print(_ending(str(error)), file=sys.stderr)
    distributed.leave(1)
  except BiopropError as error:
    raise _ending(str(error)) from error
  except KeyboardInterrupt:
    where = f' in {path}' if path else ''
    print(f'\ninterrupted. The same command goes on from the last checkpoint{where}.',
          file=sys.stderr)
    sys.exit(130)


@contextlib.contextmanager
def _told(argv, program):
  """Ends the program with one paragraph on any mistake in the flags or the configuration's file."""
  file = next((arg.split('=', 1)[1] for arg in argv if re.match('--?config=', arg)), '')
  try:
    yield
  except flags.UnrecognizedFlagError as error:
    raise _ending(f'there is no flag --{error.flagname}.{_guess(error.flagname, argv, program)} '
                  f'{_flag_names(program)}') from error
  except flags.Error as error:
    raise _ending(str(error)) from error
  except OSError:
    raise _ending(usage.no_configuration(file, '--config=')) from None
  except Exception as error:  # An unknown key, or whatever a file of the user's raises.
    names = [match[1] for match in (re.match(r'--?(?:no)?config\.([^=]+)', arg) for arg in argv)
             if match]
    unknown = (_unknown_key(name, program.base()) for name in names if program.base)
    raise _ending(next(filter(None, unknown),
                       f'the configuration {file} cannot be loaded: {type(error).__name__}: '
                       f'{error}')) from error


def _guess(name, argv, program):
  """' Did you mean --config.rule=dfa?' for --rule=dfa and the like, '' if nothing is near."""
  names = [flag.name for flag in usage.own()]
  if program.base:
    names += [f'config.{key}' for key in program.base()]
  by_end = {known.removeprefix('config.'): known for known in names}
  close = config_lib.nearest(name, by_end)
  value = next((f'={arg.split("=", 1)[1]}' for arg in argv
                if re.match(f'--?{re.escape(name)}=', arg)), '')
  return f' Did you mean --{by_end[close]}{value}?' if close else ''


def _flag_names(program):
  *names, last = [f'--{flag.name}' for flag in usage.own()] or ['--help']
  if program.base:
    names.insert(1, '--config.<name>')
  return f'The flags are {", ".join(names)}{" and " if names else ""}{last}; --help says more.'


def _unknown_key(name, node):
  """The error for an override of a key that is not there, None if it is."""
  prefix = 'config'
  for part in name.split('.'):
    if not isinstance(node, ml_collections.ConfigDict):
      return f'there is no --{prefix}.{part}: {prefix} is one value, set by --{prefix}=...'
    if part not in node:
      close = config_lib.nearest(part, node)
      guess = f' Did you mean --{prefix}.{close}?' if close else ''
      return f'there is no --{prefix}.{part}.{guess} Valid under {prefix}: {", ".join(node)}.'
    node, prefix = node[part], f'{prefix}.{part}'
  return None


def _ending(message):
  """Status 1, and the message as one paragraph, whatever line breaks it came with."""
  path = pathlib.Path(sys.argv[0])
  name = path.parent.name if path.stem == '__main__' else path.name
  return SystemExit(f'{name}: {" ".join(message.split())}')
