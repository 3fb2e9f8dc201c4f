r"""Hidden layers of sqrt(2) ReLUs under every rule, beside networks of four widths.

    bioprop theory --config=configs/theory_relu.py:DEPTH --out=DIR

DEPTH is 2 (also without it), 3 or another. Backprop and gated linear networks at gamma_0 = 1,
feedback alignment and direct feedback alignment at gamma_0 = 2, and 1.5 where there are more than
two layers. Backprop at gamma_0 = 2 is left out: the learning rate times the largest eigenvalue of
its kernel passes 2 there, where fluctuations decide what comes after, and networks of a width have
others than copies. Results: docs/pages/results/theory.md.
"""
from bioprop.bench.theory.config import base
from bioprop.errors import ConfigError


def get_config(depth: str | None = None):
  if depth is not None and (not depth.isdigit() or int(depth) < 1):
    raise ConfigError(f'the depth {depth!r} is no number of hidden layers. Type for instance '
                      f'--config=configs/theory_relu.py:3.')
  config = base('dynamics')
  config.claims = ('outputs_agree', 'kernels_converge')
  config.samples, config.features = 4, 8
  config.depth, config.activation = int(depth or 2), 'scaled_relu'
  config.gamma0 = 2.0 if config.depth < 3 else 1.5
  config.learning_rate, config.steps = 0.05, 30
  config.cases = (
      {'rule': 'bp', 'gamma0': 1.0}, *({'rule': 'fa', 'rho': rho} for rho in (0.0, 0.5, 1.0)),
      {'rule': 'dfa'}, {'rule': 'hebb', 'gamma0': 0.1}, {'rule': 'gln', 'gamma0': 1.0})
  config.widths, config.seeds = (125, 250, 500, 1000), 12
  config.copies, config.replicas = 16000, 8
  return config
