"""The programs of flax's examples: imported as they are, or with the diffs of docs/pages/use.md."""
import contextlib
import importlib
import pathlib
import re
import shutil
import sys

from absl import flags

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'pages' / 'use.md'

# What the examples read data, write logs and export with. The models and the train steps do not use
# any of it; it is replaced so that `train.py` can be imported where it is not installed, and the
# replacement fails as soon as anything of it is called after the import.
_ABSENT = (
    'clu', 'flax.metrics.tensorboard', 'sentencepiece', 'tensorflow', 'tensorflow_datasets',
    'tensorflow_text',
)
_importing = False


class Absent(type):
  """A name of a library that is not there."""

  def __getattr__(cls, name: str):
    if name.startswith('__'):
      raise AttributeError(name)
    return Absent(f'{cls.__name__}.{name}', (), {})

  def __call__(cls, *args, **kwargs):
    if _importing:  # Decorators and settings at the top of a file.
      return Absent(f'{cls.__name__}()', (), {})
    raise AssertionError(f'the example called {cls.__name__}, which these tests do not have')


def patch(folder: pathlib.Path, example: str) -> None:
  """Applies the diffs of docs/pages/use.md to a copy of one example.

  Raises:
    AssertionError: if a diff's old lines are not in the file, or are there more than once.
  """
  blocks = re.findall(r'^```diff\n(.*?)^```', DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
  blocks = [block for block in blocks if block.startswith(f'--- {example}/')]
  assert blocks, f'docs/pages/use.md has no diff for {example}'
  for block in blocks:
    first, _, body = block.partition('\n')
    path = folder / first.removeprefix(f'--- {example}/')
    for hunk in body.split('@@\n'):
      lines = hunk.splitlines()
      assert all(line[:1] in ('', ' ', '+', '-') for line in lines), hunk
      old, new = ('\n'.join(line[1:] for line in lines if line[:1] in ('', ' ', sign))
                  for sign in '-+')
      text = path.read_text()
      assert text.count(f'\n{old}\n') == 1, f'{first} has not once:\n{old}'
      path.write_text(text.replace(f'\n{old}\n', f'\n{new}\n'))


def copy(source: pathlib.Path, folder: pathlib.Path, patched: bool) -> pathlib.Path:
  """A copy of an example in `folder`, with the document's diffs or without."""
  target = folder / f'{source.name}-{"patched" if patched else "plain"}'
  shutil.copytree(source, target)
  if patched:
    patch(target, source.name)
  return target


def load(folder: pathlib.Path, module: str):
  """Imports a module of an example, whose imports of its neighbours have no package in front."""
  global _importing
  importlib.import_module('flax.training.checkpoints')  # Looks for tensorflow: the real one.
  own = {path.stem for path in folder.glob('*.py')} | {'configs'}
  hidden = {name: sys.modules.pop(name) for name in list(sys.modules)
            if name.partition('.')[0] in own or name.startswith(_ABSENT)}
  sys.modules.update({name: Absent(name, (), {}) for name in _ABSENT})
  sys.path.insert(0, str(folder))
  _importing = True
  try:
    return importlib.import_module(module)
  finally:
    _importing = False
    sys.path.remove(str(folder))
    for name in list(sys.modules):
      if name.partition('.')[0] in own or name in _ABSENT:
        del sys.modules[name]
    sys.modules.update(hidden)


@contextlib.contextmanager
def own_flags():
  """Whatever flags are defined inside, absl forgets afterwards."""
  before = set(flags.FLAGS)
  try:
    yield flags.FLAGS
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
