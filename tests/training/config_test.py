"""The default configuration: every option of every rule and model is there, with its type."""
import dataclasses

import pytest

from bioprop.errors import ConfigError
from bioprop.models import MODELS
from bioprop.rules import RULES
from bioprop.training import augment, base, config, loss


def test_every_option_of_every_rule_is_a_typed_placeholder():
  options = base().lock().rule_options
  names = {field.name for rule in RULES.values() for field in dataclasses.fields(rule)}
  assert set(options) == names and 'rho' in names
  assert all(value is None for value in options.values())
  options.rho = 0.5
  options.max_gib = 2  # A whole number is a number.
  with pytest.raises(TypeError):
    options.rho = 'half'
  with pytest.raises(AttributeError):
    options.roh = 0.5


def test_every_option_of_every_model_but_the_classes():
  options = base().lock().model_options
  assert {'hidden', 'activation', 'features', 'dense', 'width', 'stages'} <= set(options)
  assert not {'classes', 'parent', 'name'} & set(options)
  options.hidden = (3, 4)
  assert config.chosen(options) == {'hidden': (3, 4)}


def test_the_names_that_are_checked_are_those_that_can_be_made():
  for name in config.CHOICES['loss']:
    loss.make_loss(name)
  for name in config.CHOICES['augment']:
    augment.make_augment(name)
  assert set(config.CHOICES['model']) == set(MODELS)
  for make in (loss.make_loss, augment.make_augment):
    with pytest.raises(ConfigError, match='Valid'):
      make('nothing')


@pytest.mark.parametrize('values', [
    {'loss': 'ce'}, {'epochs': 0}, {'batch_size': 0}, {'keep': 0}, {'checkpoint_every': 0},
    {'learning_rate': float('nan')}, {'weight_decay': -1.}, {'clip_norm': 0.},
    {'clip_norm': 1e39},
    {'steps_per_call': 0}, {'examples': 0}, {'examples': -5}, {'warmup_epochs': 10.}, {'seed': -1},
    *({name: float('inf')} for name in ('learning_rate', 'momentum', 'weight_decay')),
    {'seed': 2**32}, {'epochs': 10**20}, {'learning_rate': 1e39},
    {'momentum': 2.}, {'momentum': 1.},
    *({'step_epochs': epochs, 'schedule': 'step'} for epochs in (
        (), (-1,), (0,), ('a',), (True,), (float('nan'),), (5, 3), (3, 3))),
    *({'step_factor': factor, 'schedule': 'step'} for factor in (
        -1., 0., float('nan'), float('inf')))])
def test_values_that_cannot_work_are_named(values):
  bad = base()
  bad.update(values)
  with pytest.raises(ConfigError, match=f'{next(iter(values))}'):
    config.check(bad)
  config.check(base())


def test_what_the_schedule_does_not_use_is_not_asked_of_it():
  good = base()
  good.update({'step_epochs': (), 'step_factor': 0.})
  config.check(good)
  good.update({'step_epochs': (2, 3.5), 'step_factor': 2., 'schedule': 'step'})
  config.check(good)


def test_names_are_guessed_in_any_case():
  assert config.nearest('SGD', config.CHOICES['optimizer']) == 'sgd'
  assert config.nearest('adamW', ('sgd', 'AdamW')) == 'AdamW'
  assert config.nearest(None, ('sgd',)) is None


def test_a_configuration_that_lacks_a_key_is_told_which():
  bad = base()
  del bad.keep
  with pytest.raises(ConfigError, match='lacks keep'):
    config.check(bad)
