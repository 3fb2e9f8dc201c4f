"""What is not finite first, in a model where it is known."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bioprop.fronts.plug import plug
from bioprop.training import diagnose, loss, step
from bioprop.training.state import make_init, make_state


class Chain(nn.Module):
  """Two Dense layers whose automatic names run against the order of their calls."""

  @nn.compact
  def __call__(self, x, train=False):
    readout = nn.Dense(3)
    return readout(jnp.tanh(nn.Dense(4)(x.reshape((x.shape[0], -1)))))


def _examine(poison, rate=0.1, rule='bp', scale=1.):
  cross_entropy = lambda *args: scale * loss.make_loss('cross_entropy')(*args)
  task = step.Task(plug(Chain(), rule), optax.sgd(rate), cross_entropy, loss.make_decision(), None,
                   np.zeros(1, np.float32), np.ones(1, np.float32), 0, 2)
  state = make_state(make_init(task.model), task.tx, task.key('init'), jnp.zeros((1, 2, 2, 1)))
  state = state.replace(params=poison(state.params))
  batch = step.Examples(jnp.ones((2, 2, 2, 1), jnp.uint8), jnp.array([0, 1]))
  return diagnose.examine(task, state, batch)[0]


def _with(params, layer, leaf, value):
  return {**params, layer: {**params[layer], leaf: jnp.full_like(params[layer][leaf], value)}}


@pytest.mark.parametrize('rule', ['bp', 'fa', 'dfa'])
@pytest.mark.some(2)
def test_the_first_layer_in_the_order_of_calls(rule):
  # Dense_1 is called first; NaN then goes through everything.
  assert _examine(lambda p: _with(p, 'Dense_1', 'bias', np.nan), rule=rule) == (
      'the output', 'Dense_1')
  assert _examine(lambda p: _with(p, 'Dense_0', 'bias', np.inf), rule=rule) == (
      'the output', 'Dense_0')


def test_an_update_that_overflows():
  # Logits, loss and gradients are finite, and the readout's bias moves by a quarter of 3e38: from
  # -3e38 it goes beyond what float32 holds. (Both classes have the same bias: softmax is as ever.)
  assert _examine(lambda p: _with(p, 'Dense_0', 'bias', -3e38), rate=3e38) == (
      'the new parameters', 'Dense_0')


def test_gradients_that_overflow_below_finite_activations():
  # The first layer's output is zero, so that the logits are; the error on its way down meets a
  # kernel of 3e38 three times, with signs that add up.
  def poison(params):
    params = _with(_with(params, 'Dense_1', 'kernel', 0), 'Dense_1', 'bias', 0)
    kernel = jnp.array([[-3e38, -3e38, 3e38]] * 4, jnp.float32)
    return {**params, 'Dense_0': {**params['Dense_0'], 'kernel': kernel}}

  assert _examine(poison, scale=4.) == ("the rule's update", 'Dense_1')


def test_all_finite_finds_nothing():
  assert _examine(lambda p: p) is None


def test_the_paragraph():
  text = diagnose.describe(
      float('nan'), diagnose.Finding('the output', 'Dense_1'), 2, 3, 6, 9, 0.5, 'And so.')
  assert text.endswith('--config.clip_norm=1. And so.')
  for part in ('epoch 2, step 3 of 6 (step 9', 'rate 0.5', 'the output of Dense_1',
               '--config.learning_rate=0.05'):
    assert part in text
