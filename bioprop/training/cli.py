"""The command line: flags, their errors, and how a run ends. Every mistake is one paragraph."""
import contextlib
import difflib
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
from bioprop.training import distributed, workdir

_RUNS = 'runs'


class Program(NamedTuple):
  """What the mistakes of a command line are told by.

  Attributes:
    flags: its flags, as text.
    example: a configuration to type.
    base: makes a configuration with all keys that there are.
    check: raises ConfigError for a configuration of something else.
  """
  flags: str
  example: str
  base: Callable[[], ml_collections.ConfigDict]
  check: Callable[[ml_collections.ConfigDict], None]


TRAIN = Program('--config, --config.<name>, --workdir and --data_dir', 'configs/mnist_lenet.py',
                config_lib.base, config_lib.check_kind)


def define_flags(default_config: str | os.PathLike) -> None:
  """Defines --config, --workdir and --data_dir."""
  with _told(sys.argv, TRAIN):  # Reads the overrides at once, where no --config comes first.
    config_flags.DEFINE_config_file(
        'config', str(default_config), 'File of the experiment; --config.<name>=<value> overrides.')
  flags.DEFINE_string(
      'workdir', None, f'Directory of the run; one that holds a run with the same configuration '
      f'goes on with it. Default: {_RUNS}/<config>-<rule>-seed<seed>, numbered from 2 on if that '
      'run is finished or differs.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def parse(argv: Sequence[str], program: Program = TRAIN) -> list[str]:
  """Parses the command line for `absl.app.run`; a mistake ends the program with status 1."""
  app.define_help_flags()
  with _told(argv, program):
    rest = flags.FLAGS(argv)
    config = flags.FLAGS.config
    _ = config and config.keys()  # A file that could not be loaded is reported when it is used.
  if config is None:
    raise _ending(f'there is no configuration. Type for instance --config={program.example}.')
  with reported():
    program.check(config)
  if rest[1:]:
    raise _ending(f'there is no use for {" ".join(rest[1:])!r}: everything is a flag, as in '
                  '--config=...')
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
    raise _ending(f'there is no flag --{error.flagname}. The flags are {program.flags}.') from error
  except flags.Error as error:
    raise _ending(str(error)) from error
  except OSError:
    raise _ending(f'there is no configuration {file}. Type for instance '
                  f'--config={program.example}.') from None
  except Exception as error:  # An unknown key, or whatever a file of the user's raises.
    names = [match[1] for match in (re.match(r'--?(?:no)?config\.([^=]+)', arg) for arg in argv)
             if match]
    unknown = (_unknown_key(name, program.base()) for name in names)
    raise _ending(next(filter(None, unknown),
                       f'the configuration {file} cannot be loaded: {type(error).__name__}: '
                       f'{error}')) from error


def _unknown_key(name, node):
  """The error for an override of a key that is not there, None if it is."""
  prefix = 'config'
  for part in name.split('.'):
    if not isinstance(node, ml_collections.ConfigDict):
      return f'there is no --{prefix}.{part}: {prefix} is one value, set by --{prefix}=...'
    if part not in node:
      close = difflib.get_close_matches(part, list(node), n=1)
      guess = f' Did you mean --{prefix}.{close[0]}?' if close else ''
      return f'there is no --{prefix}.{part}.{guess} Valid under {prefix}: {", ".join(node)}.'
    node, prefix = node[part], f'{prefix}.{part}'
  return None


def _ending(message):
  """Status 1, and the message as one paragraph, whatever line breaks it came with."""
  return SystemExit(f'{pathlib.Path(sys.argv[0]).name}: {" ".join(message.split())}')
