r"""A linear network learns from a linear teacher (Williams, Payeur & Lajoie).

    python train.py --config=configs/linear_teacher_rnn.py --config.rule=bp

Four inputs N(0, 1) at each of 20 steps, two outputs, a teacher of four modes
(bioprop/data/tasks/linear_teacher.py); the setting of arXiv 2606.00243, whose students are narrow
and learn from the expectation. Here 32 units and minibatches, SGD without momentum.

bp: R^2 0.9996 ± 0.0001 over seeds 0 to 2, in 3 s on two cores; last_layer: 0.70 ± 0.05.
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'linear_teacher'
  config.validation = 200
  config.model = 'rnn'
  config.model_options.cell = 'linear'
  config.model_options.width = 32
  config.model_options.gain = 0.5
  config.model_options.use_bias = False
  config.loss = 'mse'
  config.batch_size = 50
  config.learning_rate = 0.015
  config.momentum = 0.0
  config.schedule = 'constant'
  config.epochs = 20
  config.checkpoint_every = 20
  return config
