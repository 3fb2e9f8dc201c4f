r"""Figure 4 of Bordelon & Pehlevan 2023 (arXiv 2210.02157): feedback that knows of the weights.

    bioprop theory --config=configs/theory_figure4.py

Three hidden layers of linear units on ten random vectors in 50 dimensions. Results:
docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('dynamics')
  config.claims = ('outputs_agree', 'correlated_is_faster', 'correlated_signals',
                   'correlated_is_less_aligned')
  config.depth, config.activation, config.gamma0 = 3, 'linear', 1.0
  config.learning_rate, config.steps = 0.03, 100
  config.cases = tuple({'rule': 'fa', 'rho': rho} for rho in (0.0, 0.5, 1.0))
  config.widths = (2000,)
  return config
