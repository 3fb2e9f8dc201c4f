r"""Figure 1 of Bordelon & Pehlevan 2023 (arXiv 2210.02157): alignment under four rules.

    bioprop theory --config=configs/theory_figure1.py

One hidden layer of sqrt(2) ReLUs at gamma_0 = 2 on ten random vectors in 50 dimensions. Results:
docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base


def get_config():
  config = base('dynamics')
  config.claims = ('outputs_agree', 'feedback_starts_lowest', 'feedback_overtakes', 'hebb_falls',
                   'signals_align')
  config.depth, config.activation, config.gamma0 = 1, 'scaled_relu', 2.0
  config.learning_rate, config.steps = 0.05, 100
  config.cases = ({'rule': 'bp'}, {'rule': 'fa'}, {'rule': 'gln'}, {'rule': 'hebb'})
  config.widths, config.copies = (4000,), 8000
  return config
