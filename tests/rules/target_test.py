"""Direct random target projection reads the target from the error."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bioprop

LABELS = np.asarray([[2, 0, 1], [1, 1, 3]])
RNG = np.random.RandomState(0)


class Net(nn.Module):
  """A layer for each position, and a readout."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(4, name='readout')(nn.Dense(5, name='hidden')(x))


def hidden_bias(loss, **options):
  """The pseudogradient of the hidden bias, and the readout's feedback [4, 5]."""
  x = jnp.asarray(RNG.randn(2, 3, 6), jnp.float32)
  model = bioprop.plug(Net(), bioprop.make('drtp', **options))
  variables = model.init(jax.random.key(0), x)
  grads = jax.grad(lambda p: loss(model.apply({**variables, 'params': p}, x)))(variables['params'])
  return grads['hidden']['bias'], np.asarray(variables['feedback']['readout']['error'])


def one_hot(labels):
  return np.eye(4, dtype=np.float32)[labels]


LOSSES = {
    'softmax': lambda out: optax.softmax_cross_entropy_with_integer_labels(out, LABELS),
    'smoothed': lambda out: optax.softmax_cross_entropy(
        out, optax.smooth_labels(jnp.asarray(one_hot(LABELS)), 0.1)),
    'sigmoid': lambda out: optax.sigmoid_binary_cross_entropy(
        out, jnp.asarray(one_hot(LABELS))).sum(-1),
}


@pytest.mark.slow
@pytest.mark.parametrize('loss', LOSSES)
def test_the_target_whatever_the_network_says(loss):
  """The layer above is linear, so the hidden bias gets the sum of what its input is sent."""
  got, b = hidden_bias(lambda out: jnp.mean(LOSSES[loss](out)))
  np.testing.assert_allclose(got, -(one_hot(LABELS) @ b).sum((0, 1)) / 6, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_sum_is_not_divided():
  """reduction='sum' goes with a loss that is a sum."""
  got, b = hidden_bias(lambda out: jnp.sum(LOSSES['softmax'](out)), reduction='sum')
  np.testing.assert_allclose(got, -(one_hot(LABELS) @ b).sum((0, 1)), rtol=1e-5, atol=1e-7)


def test_masked_positions_have_no_target():
  """Padding sends nothing."""
  mask = np.asarray([[1, 1, 0], [1, 0, 0]], np.float32)
  got, b = hidden_bias(lambda out: jnp.mean(LOSSES['softmax'](out) * mask))
  want = -(one_hot(LABELS) * mask[..., None] @ b).sum((0, 1)) / 6
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_reduction_is_checked():
  """As everywhere."""
  with pytest.raises(bioprop.errors.RuleOptionError, match="reduction='max'"):
    bioprop.make('drtp', reduction='max')
