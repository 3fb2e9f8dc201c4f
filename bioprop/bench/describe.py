"""Which parameter learns by which rule, before anything is trained, and the memory of it.

    bioprop describe --config=mnist_lenet --config.rule=dfa
    bioprop describe --config=mnist_align_mlp:512 --config.rule=fa --data_dir=DIR

A row for each parameter: its shape, layer and rule, and the shape of the feedback that stands for
it. Then how many numbers there are, and their memory: of the parameters, of feedback that learns
(kp, mirror) and of feedback that does not. A dataset need not be there: where its files are not,
shapes are those that TFDS knows it by.
"""
import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags, logging

from bioprop import data
from bioprop.fronts.describe import Report, describe
from bioprop.training import cli, untrained
from bioprop.training import config as config_lib
from bioprop.training.state import State

PROGRAM = cli.TRAIN
_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')


def described(config: ml_collections.ConfigDict,
              data_dir: str | None = None) -> tuple[Report, State, list[int]]:
  """Describes a configuration's model under its rule; computes nothing.

  Args:
    config: of a run.
    data_dir: folder of prepared datasets, which need not be there.

  Returns:
    The report; the first state, in shapes; the shape of an input.

  Raises:
    ConfigError, UnknownRuleError, RuleOptionError, DataError: as `Trainer`.
    FeedbackMemoryError: if feedback would be too large.
  """
  config_lib.check(config)
  trainer = untrained.on(config, data.outline(config.dataset, data_dir))
  state = jax.eval_shape(trainer.init)
  inputs = jax.eval_shape(trainer.task.normalise, trainer.train_data.images)
  return describe(trainer.task.model, None, inputs, train=False), state, list(inputs.shape[1:])


def sizes(report: Report, state: State) -> list[tuple[str, int, int]]:
  """Returns (what, numbers, bytes) of parameters, feedback that learns, and frozen feedback."""
  learned = {row.path for row in report if row.note == 'learned feedback'}
  leaves = {'/'.join(str(part.key) for part in path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
  of = lambda what, arrays: (what, *_size(arrays))
  return [of('parameters', [leaf for path, leaf in leaves.items() if path not in learned]),
          of('feedback that learns', [leaves[path] for path in learned]),
          of('frozen feedback', jax.tree.leaves(state.model_state.get('feedback', {})))]


def _size(arrays: Sequence[Any]) -> tuple[int, int]:
  numbers = [math.prod(array.shape) for array in arrays]
  return sum(numbers), sum(n * array.dtype.itemsize for n, array in zip(numbers, arrays))


def _bytes(number: int) -> str:
  power = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
  return f'{number / 1024**power:.{1 if power else 0}f} {_UNITS[power]}'


def define_flags() -> None:
  """Defines --config and --data_dir."""
  cli.define_config('digits_mlp', 'The experiment, by name or as a file; --config.<name>=<value> '
                    'changes it.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def main(argv):
  """Prints the report and the sizes."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  config = flags.FLAGS.config
  with cli.reported(resumes=False):
    report, state, shape = described(config, flags.FLAGS.data_dir)
  print(f'{cli.config_name()}: {config.model} on {config.dataset}, inputs '
        f'{"x".join(map(str, shape))}, {config.rule}\n\n{report}\n')
  for what, numbers, taken in sizes(report, state):
    print(f'{what:<20}  {numbers:>13,}  {_bytes(taken):>10}')


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
