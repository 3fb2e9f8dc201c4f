"""Characters (a novel, embedded: needs no files), a transformer of two layers.
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'characters'
  config.model = 'transformer'
  config.model_options.layers = 2
  config.model_options.width = 64
  config.model_options.heads = 4
  config.validation = 300
  config.batch_size = 16
  config.eval_batch_size = 50
  config.optimizer = 'adam'
  config.learning_rate = 3e-3
  config.warmup_epochs = 1.0
  config.epochs = 12
  return config
