"""Trains a model by a learning rule: `bioprop train` from the sources, where nothing is installed.

    python train.py --config=mnist_lenet --data_dir=... --config.rule=dfa
"""
from bioprop.__main__ import require

if __name__ == '__main__':
  require('train.py')
  from bioprop.bench import train
  from bioprop.training import cli
  train.define_flags()
  cli.start(train.main, train.PROGRAM)
