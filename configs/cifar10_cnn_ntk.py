r"""CIFAR-10, three strided convolutions, with all probes.

    python -m bioprop.bench.sweep runs/ntk configs/cifar10_cnn_ntk.py \
        --rules=bp,fa,dfa,hebb,gln,align_ada --seeds=0 --data_dir=...

No layer is normalised over the batch: a sample's output is to be its own. The optimiser is Adam,
under which a rule's own scale matters little.

Results: docs/results/representation.md.
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'cifar10'
  config.model = 'cnn'
  config.model_options.width = 32
  config.model_options.strides = (2, 2, 2)
  config.model_options.normalised = False
  config.epochs = 3
  config.optimizer = 'adam'
  config.learning_rate = 1e-3
  for name in ('entk', 'features', 'angles', 'alignment'):
    config.probes[name] = {'type': name, 'every': 500, 'batch': 50}
  return config
