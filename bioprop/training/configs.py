"""Configurations: files with a get_config(), by path or, of those that bioprop brings, by name.

    mnist_lenet    mnist_lenet.py    mnist_align_mlp:512    configs/mnist_lenet.py    my/own.py:3

What stands after a colon is given to get_config.
"""
import pathlib
import re
import runpy

import ml_collections

from bioprop.errors import ConfigError
from bioprop.training.config import nearest

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# An installed package has them inside; in the sources they lie beside it.
FOLDER = next((folder for folder in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')
               if folder.is_dir()), _PACKAGE / 'configs')


def shipped(pattern: str = '') -> list[pathlib.Path]:
  """Returns the files that bioprop brings whose name matches, in alphabetical order."""
  return sorted(path for path in FOLDER.glob('*.py')
                if re.match(pattern, path.name) and not path.name.startswith('_'))


def find(name: str, flag: str = '', example: str = 'digits_mlp') -> str:
  """Returns the path of a configuration, with the argument that it was named with.

  Args:
    name: a path, or a name; a path that is there comes first.
    flag: what to type before a name, '--config=', for the message.
    example: what to type where no name is near.

  Raises:
    ConfigError: if there is none.
  """
  file, *argument = name.split(':', 1)
  if not pathlib.Path(file).is_file():
    named = {path.stem: path for path in shipped()}
    if file.removesuffix('.py') not in named:
      near = nearest(pathlib.Path(file).stem, named)
      where = '' if pathlib.Path(file).is_absolute() else f', seen from {pathlib.Path.cwd()}'
      what = (f'Did you mean {flag}{near}? --help lists those that there are' if near else
              f'Type for instance {flag}{example}, of {", ".join(named)}')
      raise ConfigError(f'there is no configuration {file}{where}. {what}; or give a file with a '
                        'get_config().')
    file = str(named[file.removesuffix('.py')])
  return ':'.join([file, *argument])


def load(name: str) -> ml_collections.ConfigDict:
  """Runs the configuration of a path or name.

  Raises:
    ConfigError: if there is no such file, or it cannot be run.
  """
  file, *argument = find(name).split(':', 1)
  try:
    return runpy.run_path(file)['get_config'](*argument)
  except Exception as error:  # Whatever a file of the user's raises.
    raise ConfigError(f'the configuration {name} cannot be loaded: {type(error).__name__}: '
                      f'{error}') from error


def stem(name: str) -> str:
  """'mnist_align_mlp' of 'configs/mnist_align_mlp.py:512'."""
  return pathlib.Path(name.split(':', 1)[0]).stem
