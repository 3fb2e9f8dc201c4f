"""Trains a model by a learning rule.

    python train.py                                                  # digits, fa, no files needed
    python train.py --config=configs/mnist_lenet.py --data_dir=... --config.rule=dfa
    python train.py --config.rule=fa --config.rule_options.rho=0.5 --workdir=runs/half

The same command goes on with a run that was interrupted.
"""
import pathlib

from bioprop.bench import pictures, plots
from bioprop.training import cli, distributed, run


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
  cli.define_flags(pathlib.Path(__file__).parent / 'configs' / 'digits_mlp.py')
  cli.start(main, cli.TRAIN)
