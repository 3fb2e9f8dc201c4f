"""The flags that say which runs there are."""
from collections.abc import Sequence

from absl import flags

from bioprop.bench.sweep import plan
from bioprop.errors import ConfigError


def define_runs() -> None:
  """Defines --rules, --seeds and --data_dir."""
  flags.DEFINE_string('rules', 'bp,fa,dfa', 'Names, perhaps with options in brackets.')
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def planned(root: str, configs: Sequence[str], over: Sequence[str] = (),
            tune: Sequence[str] = ()) -> list[plan.Run]:
  """The runs that the flags ask for; see `plan.plan`.

  Raises:
    ConfigError: also if --seeds are no numbers, or none.
  """
  return plan.plan(root, configs, *rules_and_seeds(), plan.parse_fields(over, 'over'),
                   plan.parse_fields(tune, 'tune'))


def rules_and_seeds() -> tuple[list[str], list[int]]:
  """What --rules and --seeds say.

  Raises:
    ConfigError: if --seeds are no numbers, or none.
  """
  if not flags.FLAGS.seeds:
    raise ConfigError('--seeds is empty, and without a seed there is nothing to run. Type for '
                      'instance --seeds=0,1,2.')
  try:
    seeds = [int(seed) for seed in flags.FLAGS.seeds]
  except ValueError:
    raise ConfigError(f'--seeds is {",".join(flags.FLAGS.seeds)}, and must be whole numbers, such '
                      'as --seeds=0,1,2.') from None
  return plan.parse_rules(flags.FLAGS.rules), seeds
