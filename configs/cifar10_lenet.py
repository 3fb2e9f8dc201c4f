"""CIFAR-10, the LeNet of BioTorch's CIFAR-10 benchmark (convolutions of 32, 64 and 128 channels).

    python train.py --config=configs/cifar10_lenet.py --data_dir=... --config.rule=fa

Cost: 8 epochs of 703 steps, about 6 minutes on one CPU core.

Measured, test accuracy in % of the last epoch's weights, --config.seed=0, on images stored as JPEG
of quality 75; in brackets the error of BioTorch after 250 epochs (SGD):

    fa   8 epochs   52.11   error 47.89 [46.69]
    dfa  8 epochs   52.24         47.76 [54.21]
    pfa  8 epochs   66.31         33.69
    bp   3 epochs (--config.epochs=3)   65.23   error 34.77

Validation accuracy in % after --config.epochs=2 --config.examples=12800: pfa 35.16, fa 33.42,
dfa 29.90, dkp 28.34. usf, kp and dkp were not measured on all images; pfa was after convolutions
were rewritten for speed.
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'cifar10'
  config.model = 'lenet'
  config.model_options.features = (32, 64, 128)
  config.model_options.dense = 84
  config.batch_size = 64
  config.learning_rate = 0.02
  config.weight_decay = 1e-4
  config.steps_per_call = 100
  config.epochs = 8
  config.clip_norm = 1.0
  config.rule_defaults = {'fa': {'scale': 0.5}, 'dfa': {'scale': 0.3}}
  return config
