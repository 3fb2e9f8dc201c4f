r"""MNIST, two hidden ReLU layers in NTK parametrisation, learning as in configs/cifar10_align.py.

    python train.py --config=configs/mnist_align_mlp.py:512 --data_dir=... --config.rule=align_ada

After the colon stand the network's width (128 if nothing is said) and, after a comma, how many
training examples to use (all 55000 if nothing is said). 10 epochs of all, 110 of 5000, and 300 of
500 or less. Cost: a minute on two cores at width 512.

Results: docs/pages/results/align.md.
"""
from bioprop.training import base

_STEPS = 5500


def get_config(arguments='128'):
  width, *examples = map(int, arguments.split(','))
  config = base()
  config.dataset = 'mnist'
  config.model = 'mlp'
  config.model_options.hidden = (width, width)
  config.model_options.activation = 'relu'
  config.model_options.parametrization = 'ntk'
  config.examples = examples[0] if examples else None
  config.validation = 0 if examples else 5000  # Takes longer than so short epochs.
  config.loss = 'mse_centred'
  config.batch_size = min(100, *examples) if examples else 100
  config.learning_rate = 0.3
  config.momentum = 0.0
  config.schedule = 'constant'
  per_epoch = (config.examples or 55000) // config.batch_size
  config.epochs = min(_STEPS // per_epoch, 300)
  config.checkpoint_every = max(1, config.epochs // 10)
  # Feedback as large as the weights that it stands for; that of dfa undoes the division by the root
  # of the fan-in.
  config.rule_defaults = {'fa': {'scale': 1.0}, 'dfa': {'scale': width**0.5}}
  return config
