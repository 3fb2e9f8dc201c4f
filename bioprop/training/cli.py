"""The command line: flags, their errors, and how a run ends. Every mistake is one paragraph."""
import contextlib
import functools
import logging as std_logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from bioprop.errors import BiopropError, ConfigError, LostProcessError
from bioprop.training import config as config_lib
from bioprop.training import configs, distributed, usage, workdir

_RUNS = 'runs'
_RAISED = 'Error whilst parsing config file:'  # ml_collections', before the traceback of a file.


class Program(NamedTuple):
  """What a program takes, which its help and the mistakes of a command line are told by.

  Attributes:
    configs: pattern of the names of its configurations; '': it takes none.
    rules: whether it takes rules.
    arguments: whether it takes anything but flags.
    example: the name of a configuration to type, where there is a --config.
    base: makes a configuration with all keys that there are; None: there is no --config.
    check: raises ConfigError for a configuration of something else.
  """
  configs: str = ''
  rules: bool = False
  arguments: bool = True
  example: str = ''
  base: Callable[[], ml_collections.ConfigDict] | None = None
  check: Callable[[ml_collections.ConfigDict], None] = config_lib.check_kind


TRAIN = Program('(?!theory_)', rules=True, arguments=False, example='mnist_lenet',
                base=config_lib.base)
PLAIN = Program()


def start(main: Callable[[list[str]], None], program: Program = PLAIN) -> None:
  """Runs a program, whose flags are defined, as `absl.app.run`; our errors are one paragraph.

  Args:
    main: takes what is left of the command line; the docstring of its module is the help.
    program: what it takes.
  """
  doc = sys.modules[main.__module__].__doc__

  def told(argv):
    try:
      main(argv)
    except (app.UsageError, BiopropError) as error:
      raise _ending(str(error)) from error

  # Without absl's time, thread and line of our source, which say nothing to who typed a command.
  logging.get_absl_handler().setFormatter(std_logging.Formatter('%(levelname)s: %(message)s'))
  app.run(told, flags_parser=functools.partial(parse, program=program, doc=doc))


def define_config(default: str | None, meaning: str, program: Program = TRAIN) -> None:
  """Defines --config: a path or a name, and --config.<name>=<value>, before it or after it.

  Args:
    default: what holds if none is typed, a path or a name.
    meaning: for the help.
    program: whose it is.
  """
  sys.argv[1:] = _config_first(sys.argv[1:])
  with _told(sys.argv, program):  # Reads the overrides at once, where no --config comes first.
    config_flags.DEFINE_config_file('config', default and configs.find(default), meaning)


def define_flags(default_config: str = 'digits_mlp') -> None:
  """Defines --config, --workdir and --data_dir."""
  define_config(default_config, 'The experiment, by name or as a file; --config.<name>=<value> '
                'changes it.')
  flags.DEFINE_string('workdir', None, f'Where the run is, or goes on; without: {_RUNS}/<config>-'
                      '<rule>-seed<seed>, or the next free one.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def parse(argv: Sequence[str], program: Program = TRAIN, doc: str = '') -> list[str]:
  """Parses the command line for `absl.app.run`; a mistake ends the program with status 1.

  --help prints `doc`, the program's flags, configurations and rules, and ends it.
  """
  app.define_help_flags()
  if usage.is_asked(argv[1:]):
    settings = program.base() if program.base else None
    print(usage.text(doc, program.configs, program.rules, settings))
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
    guess = ''
    with contextlib.suppress(ConfigError):
      guess = f' Did you mean --config={rest[1]}?' if program.base and configs.find(rest[1]) else ''
    raise _ending(f'there is no use for {" ".join(rest[1:])!r}: everything is a flag.{guess} '
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
    name = f'{config_name()}-{config.rule}-seed{config.seed}'
    path = distributed.from_first(lambda: workdir.fresh(_RUNS, name, config))
  return config, pathlib.Path(path), flags.FLAGS.data_dir


def config_name() -> str:
  """Returns the name of the configuration's file, from the parsed flags."""
  return configs.stem(config_flags.get_config_filename(flags.FLAGS['config']))


@contextlib.contextmanager
def reported(path: pathlib.Path | None = None, resumes: bool = True) -> Iterator[None]:
  """Ends the program with one paragraph on an error of ours (status 1) or on Ctrl-C (130).

  Args:
    path: the run's directory.
    resumes: whether the same command goes on where it was interrupted.
  """
  try:
    yield
  except LostProcessError as error:
    print(_ending(str(error)), file=sys.stderr)
    distributed.leave(1)
  except BiopropError as error:
    raise _ending(str(error)) from error
  except KeyboardInterrupt:
    where = f' in {path}' if path else ''
    again = f' The same command goes on from the last checkpoint{where}.' if resumes else ''
    print(f'\ninterrupted.{again}', file=sys.stderr)
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
    raised = str(error).partition(_RAISED)[2].strip()
    raise _ending(_unloaded(file, raised.splitlines()[-1]) if raised else str(error)) from error
  except OSError as error:
    raise _ending(_unopened(file, program, error)) from None
  except Exception as error:  # An unknown key, or whatever a file of the user's raises.
    names = [match[1] for match in (re.match(r'--?(?:no)?config\.([^=]+)', arg) for arg in argv)
             if match]
    unknown = (_unknown_key(name, program.base()) for name in names if program.base)
    raise _ending(next(filter(None, unknown),
                       _unloaded(file, f'{type(error).__name__}: {error}'))) from error


def _config_first(argv):
  """The command line with each --config in front, and of a name the file: absl reads in order."""
  end = argv.index('--') if '--' in argv else len(argv)
  front, rest, words = [], [], iter(argv[:end])
  for word in words:
    dashes, name, value = re.fullmatch(r'(-{0,2})([^=]*)(?:=(.*))?', word, re.DOTALL).groups()
    if not dashes or name != 'config':
      rest.append(word)
      continue
    if value is None:
      value = next(words, None)
    with contextlib.suppress(ConfigError):  # Told when it is opened.
      value = value and configs.find(value)
    front.append('--config' if value is None else f'--config={value}')
  return [*front, *rest, *argv[end:]]


def _unloaded(file, raised):
  return f'the configuration {file} cannot be loaded: {raised}'


def _unopened(file, program, error):
  """Of a configuration's file that is not there, or cannot be read."""
  try:
    configs.find(file, '--config=', program.example)
  except ConfigError as missing:
    return str(missing)
  return f'the configuration {file} cannot be read: {error.strerror or error}.'


def _guess(name, argv, program):
  """' Did you mean --config.rule=dfa?' for --rule=dfa and the like, '' if nothing is near."""
  names = [flag.name for flag in usage.own()]
  value = next((f'={arg.split("=", 1)[1]}' for arg in argv
                if re.match(f'--?{re.escape(name)}=', arg)), '')
  field = name.removeprefix('config.')
  if f'{field}s' in names:
    return f' Did you mean --{field}s{value}?'
  if field != name and 'over' in names:
    return (f' Did you mean --over={field}{value.replace("=", ":", 1)}, the field of all '
            'configurations?')
  if program.base:
    names += [f'config.{key}' for key in program.base()]
  by_end = {known.removeprefix('config.'): known for known in names}
  close = config_lib.nearest(name, by_end)
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
