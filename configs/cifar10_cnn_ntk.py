r"""CIFAR-10, the LeNet of configs/cifar10_lenet.py at half the width, with all probes.

    bioprop sweep runs/ntk configs/cifar10_cnn_ntk.py \
        --rules=bp,fa,dfa,hebb,gln,align_ada --seeds=0 --data_dir=...

Results: docs/pages/results/representation.md.
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'cifar10'
  config.model = 'lenet'
  config.model_options.features = (16, 32, 64)
  config.model_options.dense = 84
  config.learning_rate = 0.02
  config.weight_decay = 1e-4
  config.epochs = 4
  config.clip_norm = 1.0
  # Hebb's update, which is not small where the gradient is, is not to be all that is left of both.
  config.rule_defaults = {'fa': {'scale': 0.5}, 'dfa': {'scale': 0.3}, 'hebb': {'scale': 1e-3}}
  for name in ('entk', 'features', 'angles', 'alignment'):
    config.probes[name] = {'type': name, 'every': 500, 'batch': 50}
  return config
