r"""Figure 2 of Bordelon & Pehlevan 2023 (arXiv 2210.02157): the kernel before training.

    bioprop theory --config=configs/theory_figure2.py

Networks of sqrt(2) ReLUs, none of them trained. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('lazy')
  config.samples, config.features = 9, 16
  config.depth, config.activation = 3, 'scaled_relu'
  config.widths, config.seeds = (128, 362, 1024), 24
  config.cases = (
      {'rule': 'fa', 'rho': (0.0, 0.25, 0.5, 1.0), 'depth': 3},
      {'rule': 'fa', 'rho': (0.0, 1.0), 'depth': 2},
      {'rule': 'fa', 'rho': (0.0, 1.0), 'depth': 1},
      {'rule': 'gln', 'depth': 3, 'widths': (1024,)})
  return config
