r"""Feedback alignment at three correlations with the weights, beside networks of four widths.

    bioprop theory --config=configs/theory_fa.py

Two hidden layers of tanh units, far from the lazy limit (gamma_0 = 2). Results:
docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('dynamics')
  config.claims = ('outputs_agree', 'kernels_converge')
  config.samples, config.features = 4, 8
  config.depth, config.activation, config.gamma0 = 2, 'tanh', 2.0
  config.learning_rate, config.steps = 0.1, 30
  config.cases = tuple({'rule': 'fa', 'rho': rho} for rho in (0.0, 0.5, 1.0))
  config.seeds, config.copies = 12, 4000
  return config
