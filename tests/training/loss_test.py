"""Losses and decisions against numpy, in float64 and float32."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.errors import ConfigError
from bioprop.training import loss

CLASSES = 5
VALUES = np.array([-1.0, 0.25, 0.5, 2.0], np.float32)


def _batch(*shape):
  """Logits float32 [*shape, CLASSES] and labels int32 [*shape], each class among them."""
  random = np.random.RandomState(0)
  labels = np.arange(np.prod(shape)).reshape(shape) % CLASSES
  return random.randn(*shape, CLASSES).astype(np.float32), labels.astype(np.int32)


def _quantities(*shape):
  """Outputs float32 [*shape, 1] and labels int32 [*shape] of quantities."""
  random = np.random.RandomState(1)
  out = random.uniform(-2, 3, (*shape, 1)).astype(np.float32)
  return out, random.randint(0, len(VALUES), shape).astype(np.int32)


SHAPES = pytest.mark.parametrize('shape', [(10,), (3, 4)])


@SHAPES
@pytest.mark.parametrize('name, centre', [('mse', 0.0), ('mse_centred', 1 / CLASSES)])
def test_half_the_squared_distance(shape, name, centre):
  """To the one-hot label, less 1 / classes where it is centred; a loss for each label."""
  logits, labels = _batch(*shape)
  target = np.eye(CLASSES)[labels] - centre
  got = loss.make_loss(name)(jnp.asarray(logits), jnp.asarray(labels))
  assert got.shape == shape and got.dtype == jnp.float32
  np.testing.assert_allclose(got, ((logits - target)**2).sum(-1) / 2, rtol=1e-5)


@SHAPES
def test_cross_entropy(shape):
  """Minus the log of the label's share."""
  logits, labels = _batch(*shape)
  shares = np.exp(logits.astype(np.float64))
  shares = np.take_along_axis(shares, labels[..., None], -1)[..., 0] / shares.sum(-1)
  got = loss.make_loss('cross_entropy')(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_allclose(got, -np.log(shares), rtol=1e-5)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('classes', [2, CLASSES, 10])
def test_the_loss_of_boopathy_and_fiete_is_the_centred_one_on_another_scale(classes):
  """Mean over batch and classes of (y - (one hot - 1 / C))^2: 2 / C times ours, gradients too."""
  random = np.random.RandomState(2)
  y, labels = random.randn(7, classes), random.randint(0, classes, 7)
  targets = np.full((7, classes), -1 / classes)
  targets[np.arange(7), labels] += 1
  np.testing.assert_allclose(targets.sum(1), 0, atol=1e-12)
  ours = lambda y: loss.make_loss('mse_centred')(y, jnp.asarray(labels)).mean()
  value, gradient = jax.value_and_grad(ours)(jnp.asarray(y))
  assert 2 / classes * float(value) == pytest.approx(np.mean((y - targets)**2), rel=1e-12)
  np.testing.assert_allclose(2 / classes * gradient, 2 * (y - targets) / y.size, rtol=1e-12)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name, centre', [('mse', 0.0), ('mse_centred', 1 / CLASSES)])
def test_the_error_at_the_output_is_the_distance(name, centre):
  """No factor 2 and none of the classes, so that learning rates mean the same for both."""
  logits, labels = _batch(6)
  logits = logits.astype(np.float64)
  total = lambda y: loss.make_loss(name)(y, jnp.asarray(labels)).sum()
  error = jax.grad(total)(jnp.asarray(logits))
  np.testing.assert_allclose(error, logits - (np.eye(CLASSES)[labels] - centre), rtol=1e-10)


@SHAPES
def test_quantities(shape):
  """Half the squared distance of the one output to the quantity that the label stands for."""
  out, labels = _quantities(*shape)
  got = loss.make_loss('mse', VALUES)(jnp.asarray(out), jnp.asarray(labels))
  assert got.shape == shape and got.dtype == jnp.float32
  np.testing.assert_allclose(got, (out[..., 0] - VALUES[labels])**2 / 2, rtol=1e-5)
  error = jax.grad(lambda out: loss.make_loss('mse', VALUES)(out, jnp.asarray(labels)).sum())(out)
  np.testing.assert_allclose(error[..., 0], out[..., 0] - VALUES[labels], rtol=1e-5)


@SHAPES
def test_the_decision_is_the_nearest_quantity(shape):
  """Also beyond the smallest and the largest."""
  out, _ = _quantities(*shape)
  out.flat[:4] = [-7, 0.37, 0.38, 9]
  want = [min(range(len(VALUES)), key=lambda label: abs(VALUES[label] - y)) for y in out.flat]
  got = loss.make_decision(VALUES)(jnp.asarray(out))
  assert got.shape == shape and got.dtype == jnp.int32
  assert np.ravel(got).tolist() == want
  assert want[:4] == [0, 1, 2, 3]


@SHAPES
def test_the_decision_among_classes_is_the_largest(shape):
  """One label for each place."""
  logits, _ = _batch(*shape)
  got = loss.make_decision()(jnp.asarray(logits))
  assert got.shape == shape and got.dtype == jnp.int32
  np.testing.assert_array_equal(got, logits.argmax(-1))


@pytest.mark.parametrize('name', ['cross_entropy', 'mse_centred'])
def test_losses_of_classes_are_none_of_quantities(name):
  """And the one that is gets named."""
  with pytest.raises(ConfigError, match=f"'{name}'.*quantities.*--config.loss=mse"):
    loss.make_loss(name, VALUES)


def test_an_unknown_loss_is_unknown_with_and_without_quantities():
  """With the names that there are."""
  for values in (None, VALUES):
    with pytest.raises(ConfigError, match="'mes'.*Did you mean 'mse'"):
      loss.make_loss('mes', values)
