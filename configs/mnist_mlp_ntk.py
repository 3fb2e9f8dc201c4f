r"""MNIST, three hidden ReLU layers at the scale of feature learning, with all probes.

    bioprop sweep runs/ntk configs/mnist_mlp_ntk.py \
        --rules=bp,fa,dfa,hebb,gln,align_ada --seeds=0 --data_dir=...

After a colon may stand the richness gamma_0 (1 if nothing is said): configs/mnist_mlp_ntk.py:0.3.
Features move by O(gamma_0) (Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 1).

Results: docs/pages/results/representation.md, whose pictures are drawn by
`bioprop report RUN`.
"""
from bioprop.training import base

_WIDTH = 256


def get_config(gamma0='1'):
  gamma0 = float(gamma0)
  config = base()
  config.dataset = 'mnist'
  config.model = 'mlp'
  config.model_options.hidden = (_WIDTH,) * 3
  config.model_options.activation = 'relu'
  config.model_options.parametrization = 'mup'
  config.model_options.gamma0 = gamma0
  config.model_options.use_bias = False
  config.loss = 'mse_centred'
  config.epochs = 5
  config.learning_rate = 0.2
  config.momentum = 0.0
  config.schedule = 'constant'
  # As in the equations of the paper; but Hebb's, whose post-synaptic activity is phi(h) / 16 as the
  # next layer sees it, are a 640th of that: with ten outputs they diverge at a 40th.
  config.rule_defaults = {
      'fa': {'scale': 1.0}, 'dfa': {'scale': 1 / gamma0},
      'hebb': {'scale': 1 / (40 * gamma0 * _WIDTH)}}
  for name in ('entk', 'features', 'angles', 'alignment'):
    config.probes[name] = {'type': name, 'every': 500, 'batch': 100}
  return config
