r"""Cue accumulation with a leaky tanh network: more cues on the left, or on the right?

    python train.py --config=configs/cue_accumulation_rnn.py --config.rule=bp

After a colon stands another cell: configs/cue_accumulation_rnn.py:gru.

The evidence accumulation of e-prop (Bellec et al. 2020), in steps of 50 ms: seven cues, a delay of
0.5 to 1.5 s, and the decision when asked (bioprop/data/tasks/cue_accumulation.py). Loss and
accuracy are those of the recall; one of two is right by chance.

bp: 99.96 ± 0.08 % of the test decisions over seeds 0 to 2, in 5 s on two cores; last_layer:
93.7 ± 1.5 %. The longer tau, the more the units remember by themselves: with 10, last_layer is
right in 98.6 ± 1.3 %, with 2 in 83 % (seed 0).
"""
from bioprop.training import base


def get_config(cell='leaky'):
  config = base()
  config.dataset = 'cue_accumulation'
  config.validation = 200
  config.model = 'rnn'
  config.model_options.cell = cell
  if cell == 'leaky':
    config.model_options.tau = 4.0
  config.model_options.width = 64
  config.batch_size = 50
  config.optimizer = 'adam'
  config.learning_rate = 0.003
  config.epochs = 20
  config.checkpoint_every = 20
  return config
