r"""Cue accumulation with a leaky tanh network: more cues on the left, or on the right?

    python train.py --config=configs/cue_accumulation_rnn.py --config.rule=bp

The evidence accumulation of e-prop (Bellec et al. 2020), in steps of 50 ms: seven cues, a delay of
0.5 to 1.5 s, and the decision when asked (bioprop/data/tasks/cue_accumulation.py). Loss and
accuracy are those of the recall; one of two is right by chance.

bp: RESULT
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'cue_accumulation'
  config.validation = 200
  config.model = 'rnn'
  config.model_options.cell = 'leaky'
  config.model_options.width = 64
  config.model_options.tau = 10.0
  config.batch_size = 50
  config.optimizer = 'adam'
  config.learning_rate = 0.003
  config.epochs = 20
  config.checkpoint_every = 20
  return config
