"""The configurations with all probes: an epoch of each, narrower, on images of noise."""
import pathlib
import runpy

import numpy as np
import pytest

import bioprop
from bioprop.bench.epochs import random_images
from bioprop.probes import TYPES
from bioprop.training import config as config_lib
from bioprop.training.trainer import Trainer

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'
SWEPT = ('bp', 'fa', 'dfa', 'hebb', 'gln', 'align_ada')  # As their docstrings say.
# File, its argument, the shape of an image, and what makes the model small.
CASES = {
    'mnist_mlp_ntk': (('0.3',), (28, 28, 1), {'hidden': (8, 8, 8)}),
    'cifar10_cnn_ntk': ((), (32, 32, 3), {'features': (3, 4, 5), 'dense': 6}),
}


def load(name, arguments=None):
  """The configuration with the argument, the model small, and nothing to validate on."""
  _, _, small = CASES[name]
  make = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']
  config = make(*(CASES[name][0] if arguments is None else arguments))
  config.model_options.update(small)
  config.validation = 0
  return config


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_an_epoch(name):
  """It trains, and every probe finds numbers, at the first step and after it."""
  config = load(name)
  assert sorted(options.type for options in config.probes.values()) == sorted(TYPES)
  config.batch_size = 16
  for options in config.probes.values():
    options.update(every=1, batch=4)
  trainer = Trainer(config, data=random_images(32, CASES[name][1]))
  seen = []
  state, train = trainer.epoch(trainer.init(), 1, see=seen.append)
  assert np.isfinite(train.loss) and int(state.step) == 2
  assert [(one.name, one.step) for one in seen] == [
      (probe, step) for step in (0, 1) for probe in config.probes]
  for one in seen:
    assert one.found and all(np.isfinite(value).all() for value in one.found.values()), one.name
  kernels = [one.found['kernel'] for one in seen if one.name == 'entk']
  assert kernels[0].shape == (4, 4) and np.abs(kernels[1] - kernels[0]).max() > 0


@pytest.mark.parametrize('name', CASES)
def test_the_rules_that_it_is_for(name):
  """Each takes the defaults that the experiment gives it."""
  config = load(name)
  config_lib.check(config)
  for rule in SWEPT:
    config.rule = rule
    options = config_lib.rule_options(config)
    made = bioprop.make(rule, **options)
    assert {key: getattr(made, key) for key in options} == options


def test_the_argument_is_the_richness():
  """Of the output's scale, the learning rate (by gamma_0^2 N) and direct feedback; 1 without it."""
  config, plain = load('mnist_mlp_ntk'), load('mnist_mlp_ntk', ())
  assert config.model_options.gamma0 == 0.3
  assert config.rule_defaults.dfa.scale == pytest.approx(1 / 0.3)
  assert plain.model_options.gamma0 == 1
  rates = []
  for one in (config, plain):
    rates.append(float(Trainer(one, data=random_images(100, (28, 28, 1))).schedule(0)))
  np.testing.assert_allclose(rates, [0.2 * 0.09 * 8, 0.2 * 8], rtol=1e-6)
