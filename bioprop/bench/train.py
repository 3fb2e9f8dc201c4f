"""Trains a model by a learning rule.

    bioprop train                                                  # digits, fa, no files needed
    bioprop train --config=mnist_lenet --data_dir=... --config.rule=dfa
    bioprop train --config.rule=fa --config.rule_options.rho=0.5 --workdir=runs/half

The same command goes on with a run that was interrupted.
"""
from bioprop.bench import pictures, plots
from bioprop.training import cli, distributed, run

PROGRAM = cli.TRAIN


def define_flags() -> None:
  """Defines --config, --workdir and --data_dir."""
  cli.define_flags()


def main(argv):
  """Trains, prints the results, draws the curves."""
  del argv  # Parsed.
  config, workdir, data_dir = cli.arguments()
  with cli.reported(workdir):
    results = run(config, workdir, data_dir)
    distributed.on_first(lambda: plots.curves(workdir, workdir / 'curves.png'))
    distributed.on_first(lambda: pictures.draw(workdir, workdir))
  if distributed.is_first():
    print(f'{results.table()}\nin {workdir}')


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
