r"""Figure 3 of Bordelon & Pehlevan 2023 (arXiv 2210.02157): direct feedback alignment, ever richer.

    bioprop theory --config=configs/theory_figure3.py

Three hidden layers of tanh units. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('dynamics')
  config.claims = ('outputs_agree', 'richer_is_faster', 'richer_is_aligned',
                   'richer_is_correlated')
  config.samples, config.features = 6, 20
  config.depth, config.activation = 3, 'tanh'
  config.learning_rate, config.steps = 0.1, 80
  config.cases = tuple({'rule': 'dfa', 'gamma0': gamma0} for gamma0 in (0.3, 1.0, 2.0, 4.0))
  config.widths, config.copies, config.replicas = (2000,), 4000, 8
  return config
