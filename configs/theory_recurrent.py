r"""Credit in time in linear recurrent networks: Williams, Payeur & Lajoie 2026 (arXiv 2606.00243).

    bioprop theory --config=configs/theory_recurrent.py

Four modes, students of four units (of eight, with two outputs, where ranks are counted), in
float64. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('recurrent')
  config.modes = ((1.0, 1.0, 0.6), (1.0, 1.0, 0.8), (1.0, 1.0, 0.4), (1.0, 1.0, 0.2))
  config.cases = ({'rule': 'bptt'}, {'rule': 'tbptt', 'steps': 1}, {'rule': 'rflo', 'leak': 0.5},
                  {'rule': 'eprop'})
  config.widths, config.seeds = (4, 8), 20
  config.learning_rate, config.steps = 0.01, 4000
  config.level = 0.01  # Share of its first loss at which a start counts as solved.
  return config
