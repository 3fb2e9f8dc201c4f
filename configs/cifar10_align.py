r"""CIFAR-10, the network and the learning of Boopathy & Fiete (2022, arXiv 2106.08453), narrower.

    python train.py --config=configs/cifar10_align.py:64 --data_dir=... --config.rule=align_ada

After the colon stand the network's width (16 if nothing is said) and, after a comma, how many
training examples to use (all 45000 if nothing is said): `:16,450`.

As in the paper: seven 3x3 convolutions in NTK parametrisation, each normalised over the batch,
squares of the distance to the centred one-hot label, SGD without momentum in batches of 100. The
learning rate 1 is 5 in units of the paper, whose loss is a mean over classes of squares without the
half. Other than there: 2 epochs in place of 150, which two CPU cores can do; images, which are
JPEGs of quality 75, are standardised for each channel.

Results: docs/pages/results/align.md.
"""
from bioprop.training import base


def get_config(arguments='16'):
  width, *examples = map(int, arguments.split(','))
  config = base()
  config.dataset = 'cifar10'
  config.model = 'cnn'
  config.model_options.width = width
  config.model_options.parametrization = 'ntk'
  config.examples = examples[0] if examples else None
  config.loss = 'mse_centred'
  config.batch_size = 100
  config.eval_batch_size = 100  # The moments are those of the batch, in evaluation too.
  config.learning_rate = 1.0
  config.momentum = 0.0
  config.schedule = 'constant'
  config.steps_per_call = 50
  config.epochs = 2
  # Feedback as large as the weights that it stands for. B of dfa reaches a layer's output with
  # variance 1 / features there: a factor sqrt(9 width) undoes the division by the fan-in's root.
  config.rule_defaults = {'fa': {'scale': 1.0}, 'dfa': {'scale': 3 * width**0.5}}
  return config
