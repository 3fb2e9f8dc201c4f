r"""Theorem 2 of Robertson & Koyejo 2023 (arXiv 2306.01870): which solution, and how soon.

    bioprop theory --config=configs/theory_minimum_norm.py

Two linear layers, and fewer samples than inputs. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('minimum_norm')
  config.samples, config.features = 6, 15
  config.depth, config.activation, config.widths = 1, 'linear', (12,)
  config.learning_rate, config.steps, config.seeds = 0.02, 4000, 5
  config.cases = tuple({'start': start} for start in ('zero', 'in the span', 'generic'))
  return config
