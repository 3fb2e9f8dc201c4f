r"""Theorem 1 of Robertson & Koyejo 2023 (arXiv 2306.01870): what feedback alignment conserves.

    bioprop theory --config=configs/theory_conservation.py

Three hidden layers, of ReLU and of tanh units, for the same time in steps of several sizes.
Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('conservation')
  config.samples, config.features = 10, 10
  config.depth, config.widths, config.seeds = 3, (30,), 8
  config.learning_rate, config.steps = 0.01, 1200
  config.cases = tuple({'activation': activation, 'learning_rate': rate}
                       for activation in ('relu', 'tanh') for rate in (0.01, 0.003, 0.001))
  return config
