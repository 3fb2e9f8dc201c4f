"""CIFAR-10, ResNet-20 (He et al., 2016, section 4.2), with shifts and flips.

    python train.py --config=configs/cifar10_resnet20.py --data_dir=... --config.rule=fa

Cost: 200 epochs of 351 steps; an epoch takes some 7 minutes of one CPU core, so that an accelerator
is advisable.

No accuracy has been measured yet.
"""
from bioprop.training import base


def get_config():
  config = base()
  config.dataset = 'cifar10'
  config.model = 'resnet20'
  config.augment = 'shift_flip'
  config.batch_size = 128
  config.learning_rate = 0.1
  config.weight_decay = 1e-4
  config.warmup_epochs = 1.0
  config.steps_per_call = 50
  config.epochs = 200
  return config
