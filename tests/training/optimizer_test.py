"""The optimiser against a numpy reference of what PyTorch documents for SGD, Adam and AdamW."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.errors import ConfigError
from bioprop.training import base, optimizer


def _config(**values):
  config = base()
  config.update(dict(epochs=10, schedule='constant', **values))
  return config


def _trajectory(config, steps=4):
  """Parameters after each step; the gradient is a fixed function of the step."""
  tx, _ = optimizer.make_optimizer(config, steps_per_epoch=1)
  params = {'kernel': jnp.full((2, 2), 2.), 'bias': jnp.full((2,), -1.)}
  state = tx.init(params)
  seen = []
  for step in range(steps):
    grads = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, math.sin(step + 1)), params)
    updates, state = tx.update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    seen.append((float(params['kernel'][0, 0]), float(params['bias'][0])))
  return np.array(seen)


def _torch_sgd(weight, rate, momentum, decay, nesterov, steps=4):
  """torch.optim.SGD as its documentation writes it, for one weight."""
  buffer, seen = None, []
  for step in range(steps):
    g = math.sin(step + 1) + decay * weight
    if momentum:
      buffer = g if buffer is None else momentum * buffer + g
      g = g + momentum * buffer if nesterov else buffer
    weight -= rate * g
    seen.append(weight)
  return seen


@pytest.mark.parametrize('momentum', [0., 0.9])
@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('kernels_only', [False, True])
def test_sgd_is_that_of_pytorch(momentum, nesterov, kernels_only):
  seen = _trajectory(_config(
      learning_rate=0.3, momentum=momentum, nesterov=nesterov, weight_decay=0.1,
      decay_kernels_only=kernels_only))
  nesterov = nesterov and momentum > 0
  np.testing.assert_allclose(
      seen[:, 0], _torch_sgd(2., 0.3, momentum, 0.1, nesterov), rtol=1e-5)
  decay = 0. if kernels_only else 0.1
  np.testing.assert_allclose(
      seen[:, 1], _torch_sgd(-1., 0.3, momentum, decay, nesterov), rtol=1e-5)


@pytest.mark.parametrize('decoupled', [False, True])
def test_adam_decays_through_the_gradient_and_adamw_beside_it(decoupled):
  rate, decay = 0.1, 0.5
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an int power.
    seen = _trajectory(_config(
        optimizer='adamw' if decoupled else 'adam', learning_rate=rate, weight_decay=decay))
  weight, m, v, expected = 2., 0., 0., []
  for step in range(4):
    g = math.sin(step + 1) + (0 if decoupled else decay * weight)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    ratio = m / (1 - 0.9**(step + 1)) / (math.sqrt(v / (1 - 0.999**(step + 1))) + 1e-8)
    weight -= rate * (ratio + (decay * weight if decoupled else 0))
    expected.append(weight)
  np.testing.assert_allclose(seen[:, 0], expected, rtol=1e-5)


def test_clipping_bounds_the_norm_over_all_parameters_before_the_decay():
  seen = _trajectory(_config(
      learning_rate=1., momentum=0., clip_norm=0.5, weight_decay=0.1), steps=1)
  # Six entries of sin(1): their norm is sqrt(6) sin(1) > 0.5, so each becomes 0.5 / sqrt(6).
  np.testing.assert_allclose(seen[0], [2 - (0.5 / math.sqrt(6) + 0.2),
                                       -1 - (0.5 / math.sqrt(6) - 0.1)], rtol=1e-5)


def test_schedules_by_hand():
  rates = lambda **values: [float(optimizer.make_schedule(_config(**values), 2)(step))
                            for step in range(20)]
  base_rates = lambda **values: rates(learning_rate=0.4, **values)
  assert base_rates() == pytest.approx([0.4] * 20)
  config = _config(learning_rate=0.4)
  config.schedule = 'cosine'
  cosine = optimizer.make_schedule(config, 2)
  assert [float(cosine(step)) for step in range(20)] == pytest.approx(
      [0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(20)], abs=1e-6)
  config.schedule, config.step_epochs, config.step_factor = 'step', (3, 5), 0.1
  config.warmup_epochs = 2.
  step = optimizer.make_schedule(config, 2)
  assert [float(step(number)) for number in range(20)] == pytest.approx(
      [0.1, 0.2, 0.3, 0.4, 0.4, 0.4] + [0.04] * 4 + [0.004] * 10, rel=1e-5)
  config.schedule = 'cosine'
  cosine = optimizer.make_schedule(config, 2)
  assert [float(cosine(number)) for number in (0, 3, 4, 12)] == pytest.approx(
      [0.1, 0.4, 0.4, 0.2], rel=1e-5)


@pytest.mark.parametrize('name', ['optimizer', 'schedule'])
def test_unknown_names_list_the_valid_ones(name):
  config = _config()
  config[name] = 'sdg'
  with pytest.raises(ConfigError, match='adamw' if name == 'optimizer' else 'cosine'):
    optimizer.make_optimizer(config, 1)


@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'step'])
def test_a_warm_up_that_rounds_to_all_steps_is_told(schedule):
  config = _config(warmup_epochs=9.99)
  config.schedule = schedule
  with pytest.raises(ConfigError, match='warmup_epochs is 9.99.*epochs=10.*warmup_epochs=1[.]'):
    optimizer.make_schedule(config, 2)
  optimizer.make_schedule(config, 100)
