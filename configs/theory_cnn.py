r"""Images at infinite width, beside convolutional networks of several widths, rule by rule.

    bioprop theory --config=configs/theory_cnn.py --config.data_dir=...

Two 3 x 3 convolutions of sqrt(2) ReLUs with strides 2 and a readout of all positions, trained by
gradient descent on all samples; images are means over 4 x 4 pixels (MNIST 7 x 7, CIFAR-10 8 x 8),
which keeps kernels of 2500 samples and networks in minutes. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('infinite')
  config.problems = (
      {'dataset': 'mnist', 'samples': 500},
      {'dataset': 'mnist', 'samples': 500, 'loss': 'cross_entropy'},
      {'dataset': 'mnist', 'samples': 2000, 'seeds': 1},
      {'dataset': 'cifar10', 'samples': 500},
      {'dataset': 'cifar10', 'samples': 2000, 'seeds': 1})
  config.cases = (
      {'rule': 'bp'}, *({'rule': 'fa', 'rho': rho} for rho in (0.0, 0.5, 1.0)), {'rule': 'dfa'})
  config.widths, config.seeds = (32, 64, 128), 2
  config.steps, config.rate = 25, 0.5
  config.close = 0.03
  return config
