r"""Flip-flop with a leaky tanh network: three bits, each held till its next pulse.

    python train.py --config=configs/flip_flop_rnn.py --config.rule=bp

After a colon stands another cell: configs/flip_flop_rnn.py:gru.

The task of Sussillo & Barak (2013), three outputs to be +1, -1 or, before the first pulse, 0
(bioprop/data/tasks/flip_flop.py).

bp: R^2 0.9965 ± 0.0001 over seeds 0 to 2, in 5 s on two cores; last_layer: 0.632 ± 0.005.
"""
from bioprop.training import base


def get_config(cell='leaky'):
  config = base()
  config.dataset = 'flip_flop'
  config.validation = 200
  config.model = 'rnn'
  config.model_options.cell = cell
  if cell == 'leaky':
    config.model_options.tau = 2.0
  config.model_options.width = 64
  config.loss = 'mse'
  config.batch_size = 50
  config.optimizer = 'adam'
  config.learning_rate = 0.01
  config.epochs = 30
  config.checkpoint_every = 30
  return config
