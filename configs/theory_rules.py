r"""Every rule at its own richness, beside networks of four widths.

    bioprop theory --config=configs/theory_rules.py

Two hidden layers of tanh units; gated linear networks have these as gates. Results:
docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('dynamics')
  config.claims = ('outputs_agree', 'kernels_converge')
  config.samples, config.features = 3, 6
  config.depth, config.activation = 2, 'tanh'
  config.learning_rate, config.steps = 0.15, 24
  config.cases = ({'rule': 'bp', 'gamma0': 2.0}, {'rule': 'fa', 'rho': 0.7, 'gamma0': 4.0},
                  {'rule': 'fa', 'rho': 0.0, 'gamma0': 4.0}, {'rule': 'dfa', 'gamma0': 4.0},
                  {'rule': 'hebb', 'gamma0': 0.4})
  config.widths, config.seeds = (125, 250, 500, 1000), 40
  config.copies = 4000
  return config
