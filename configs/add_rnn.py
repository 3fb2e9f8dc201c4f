r"""The Add task with a ReLU network in NTK parametrisation (Boopathy & Fiete 2022).

    python train.py --config=configs/add_rnn.py:256 --config.rule=align_ada

After the colon stands the width of the state, 128 if nothing is said. Two bits, seen 2 and 5 steps
ago, are to be weighed and added at each of 100 steps; the loss of the best constant is 0.039.

As in the paper (arXiv 2106.08453): 300 sequences, batches of 50, 200 epochs, SGD without momentum.
The learning rate 0.2 is 0.001 in units of the paper, whose loss is the sum over 100 steps of
squares without the half: the paper's losses are 200 times these. Other than there, the first state
is zero and is not trained.

Results: docs/pages/results/align.md.
"""
from bioprop.training import base


def get_config(width='128'):
  config = base()
  config.dataset = 'add'
  config.validation = 0
  config.model = 'rnn'
  config.model_options.width = int(width)
  config.model_options.parametrization = 'ntk'
  config.loss = 'mse'
  config.batch_size = 50
  config.learning_rate = 0.2
  config.momentum = 0.0
  config.schedule = 'constant'
  config.epochs = 200
  config.checkpoint_every = 50
  config.rule_defaults = {'fa': {'scale': 1.0}}
  return config
