r"""Rules side by side: every rule on every configuration with every seed, and one table.

    bioprop sweep RUNS CONFIG ... --rules=bp,fa,dfa --seeds=0,1,2 --data_dir=...
    bioprop sweep runs/widths mnist_mlp --over='model_options.hidden:(64,),(256,),(1024,)'
    bioprop sweep runs/tuned mnist_lenet --rules='fa,fa(rho=0.5)' --tune=learning_rate:.1,.03

Runs are RUNS/<config>/<rule>-seed<seed>, as bioprop train makes them. The same command goes on
where it was interrupted, and trains nothing twice. Runs that differ in nothing but the seed and
numbers are trained by one program. Several processes, on machines that see the directory, share the
runs: start the same command in each. RUNS/table.md has mean and standard deviation (of a sample)
over seeds, and how many diverged; with --tune, of the value with the best mean score on the
validation split, for each rule. `bioprop report RUNS` makes figures and pages of it.
"""
import math
import pathlib
import sys

from absl import flags, logging

from bioprop.bench.sweep import asked, saved, table, work
from bioprop.bench.sweep.board import Board, LiveBoard
from bioprop.errors import ConfigError
from bioprop.training import cli, together

PROGRAM = cli.Program(cli.TRAIN.configs, rules=True)


def define_flags() -> None:
  """Defines the flags."""
  asked.define_runs()
  flags.DEFINE_multi_string('over', [], 'A field of the configuration and its values, '
                            'model_options.gamma0:.5,1,2; may be given several times.')
  flags.DEFINE_multi_string('tune', [], 'A field and its values, learning_rate:.3,.1,.03, of which '
                            'the validation split chooses for each rule.')
  flags.DEFINE_integer('replicas', None, 'At most so many runs in one program; without: as many as '
                       'memory holds.', lower_bound=1)
  flags.DEFINE_float('max_gib', None, 'Memory that one program may take on a device, in GiB; '
                     'without: most of what there is.')
  flags.DEFINE_enum('metric', 'test_accuracy', list(table.UNITS), 'What the table shows.')


def main(argv):
  """Trains, and prints the table."""
  logging.set_verbosity(logging.WARNING)
  together.use_all_cores()
  with cli.reported():
    if len(argv) < 3:
      one = argv[1] if argv[1:] else 'digits_mlp'
      raise ConfigError(
          'there is nothing to compare: a sweep takes the directory of its runs, and then '
          f'configurations. Type for instance: bioprop sweep runs/{pathlib.Path(one).stem} {one} '
          '--rules=bp,fa')
    values = flags.FLAGS
    limit = values.max_gib
    if limit is not None and not 0 < limit < math.inf:
      raise ConfigError(f'--max_gib is {limit}, which is no limit: it is the memory that one '
                        'program may take on a device, in GiB, a finite number above 0. Type for '
                        'instance --max_gib=8, or leave it out for most of what there is.')
    runs = asked.planned(argv[1], argv[2:], values.over, values.tune)
    saved.write(argv[1], runs, values.metric)
    options = {'replicas': values.replicas, 'limit_gib': limit}
    if sys.stdout.isatty():
      with LiveBoard(runs) as board:
        failed = work.train(runs, values.data_dir, board=board, **options)
    else:
      failed = work.train(runs, values.data_dir, board=Board(runs), **options)
    path = table.write(argv[1], runs, values.metric)
    print(f'{path.read_text("utf-8")}\nin {path}')
    reasons = [(one, (one.path / table.DIVERGED).read_text('utf-8')) for one in runs
               if (one.path / table.DIVERGED).exists()]
    for one, reason in reasons:
      print(f'\n{one.path} diverged: {" ".join(reason.split())}')
    for reason in dict.fromkeys(failed.values()):  # Seeds fail alike.
      where = ', '.join(str(path) for path, other in failed.items() if other == reason)
      print(f'\n{where} failed: {reason}')
  if failed:
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
