r"""CIFAR-10, three strided convolutions at the scale of feature learning, with all probes.

    python -m bioprop.bench.sweep runs/ntk configs/cifar10_cnn_ntk.py \
        --rules=bp,fa,dfa,hebb,gln,align_ada --seeds=0 --data_dir=...

After a colon may stand the richness gamma_0, as in configs/mnist_mlp_ntk.py.

Results: docs/results/representation.md.
"""
from bioprop.training import base

_WIDTH = 32


def get_config(gamma0='1'):
  gamma0 = float(gamma0)
  config = base()
  config.dataset = 'cifar10'
  config.model = 'cnn'
  config.model_options.width = _WIDTH
  config.model_options.strides = (2, 2, 2)
  config.model_options.normalised = False  # A sample's output is to be its own.
  config.model_options.parametrization = 'mup'
  config.model_options.gamma0 = gamma0
  config.model_options.use_bias = False
  config.loss = 'mse_centred'
  config.epochs = 3
  config.learning_rate = 1.0
  config.momentum = 0.0
  config.schedule = 'constant'
  # As in the equations of the paper; Hebb's, which diverge with ten outputs, are a 40th of that.
  config.rule_defaults = {
      'fa': {'scale': 1.0}, 'dfa': {'scale': 1 / gamma0},
      'hebb': {'scale': 1 / (40 * gamma0 * _WIDTH)}}
  for name in ('entk', 'features', 'angles', 'alignment'):
    config.probes[name] = {'type': name, 'every': 500, 'batch': 50}
  return config
