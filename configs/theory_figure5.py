r"""Figure 5 of Bordelon & Pehlevan 2023 (arXiv 2210.02157): two linear layers, whitened data.

    bioprop theory --config=configs/theory_figure5.py

Hebb's features move as gamma_0, and it has a smaller one. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('two_layer')
  config.samples, config.features, config.whitened = 4, 4, True
  config.activation, config.gamma0 = 'linear', 1.5
  config.learning_rate, config.steps = 0.01, 400
  config.cases = ({'rule': 'bp'}, *({'rule': 'fa', 'rho': rho} for rho in (0.0, 0.5, 1.0)),
                  {'rule': 'hebb', 'gamma0': 0.3})
  config.gammas = (0.15, 1.0, 6.0)
  config.widths, config.seeds = (8000,), 4
  return config
