"""Advice: said where it is meant, once, and nowhere else."""
import pytest
from absl import logging

from bioprop.rules import OF_TIME, RULES, make
from bioprop.training import advice, base, run
from bioprop.training.trainer import Trainer


@pytest.fixture
def told(monkeypatch):
  """What was logged."""
  found = []
  monkeypatch.setattr(logging, 'warning', lambda form, *args: found.append(form % args))
  return found


@pytest.mark.slow
def test_kp_without_decay(config, tmp_path, told):
  """Before the first step, and not again where a run goes on."""
  config.rule, config.epochs = 'kp', 1
  run(config, tmp_path / 'run', progress=False)
  run(config, tmp_path / 'run', progress=False)
  assert len(told) == 1 and 'kp runs without weight decay' in told[0]
  assert '--config.weight_decay=1e-4' in told[0]
  config.weight_decay = 1e-4  # What it says to type.
  assert not Trainer(config).advice


@pytest.mark.parametrize('rule, fixed', [('kp', 'fa'), ('pfa', 'fa'), ('dkp', 'dfa')])
def test_learned_feedback_without_decay(rule, fixed):
  config = base()
  (paragraph,) = advice.before(make(rule), config, quantities=False)
  assert paragraph.startswith(f'{rule} runs without') and f'--config.rule={fixed} ' in paragraph
  config.weight_decay = 1e-4
  assert not advice.before(make(rule), config, quantities=False)


def test_drtp_of_quantities():
  config = base()
  config.dataset = 'add'
  (paragraph,) = advice.before(make('drtp'), config, quantities=True)
  assert 'labels of add are quantities' in paragraph and '--config.rule=dfa' in paragraph
  assert not advice.before(make('drtp'), config, quantities=False)


@pytest.mark.parametrize('rule', [
    name for name in RULES if name not in ('kp', 'dkp', 'pfa', 'drtp', *OF_TIME)])
def test_others_need_no_advice(rule):
  for quantities in (False, True):
    assert not advice.before(make(rule), base(), quantities)


@pytest.mark.slow
def test_feedback_that_is_too_large(config, tmp_path, told):
  """At scale 1 a ReLU network of three layers blows up, as the table in feedback.py has it."""
  config.epochs, config.learning_rate, config.batch_size = 1, 0.1, 20
  config.model_options.activation, config.model_options.hidden = 'relu', (200, 200, 200)
  config.rule_options.scale = 3.0
  run(config, tmp_path / 'large', progress=False)
  assert len(told) == 1 and 'a smaller --config.rule_options.scale (it is 3)' in told[0]
  config.rule_options.scale = None
  run(config, tmp_path / 'default', progress=False)
  assert len(told) == 1


def test_a_loss_that_grew():
  assert not advice.after(make('bp'), 2.0, 3.9)
  (paragraph,) = advice.after(make('bp'), 2.0, 4.1)
  assert '4.1' in paragraph and paragraph.endswith('or --config.clip_norm=1.')
  (paragraph,) = advice.after(make('dfa'), 2.0, 8e3)
  assert '8e+03' in paragraph and '(it is its default)' in paragraph
