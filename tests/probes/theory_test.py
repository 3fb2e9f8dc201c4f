"""Probes of type theory: networks beside their limit of infinite width."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.errors import MeasureError, TheoryError
from bioprop.models import MLP
from bioprop.probes import Descent, Probe, cross_entropy, find_lazy, lazy
from bioprop.probes.point import Batch

RNG = np.random.RandomState(0)
X, LABELS = np.float32(RNG.randn(6, 4)), np.array([0, 0, 0, 1, 1, 2])
MODEL = MLP(classes=3, hidden=(8, 8), activation='relu', parametrization='ntk')
NAMES = ('kernel', 'target_alignment', 'effective_rank')


class Net(nnx.Module):
  """Two layers in NNX."""

  def __init__(self, rngs):
    self.first, self.out = nnx.Linear(4, 64, rngs=rngs), nnx.Linear(64, 3, rngs=rngs)

  def __call__(self, x):
    return self.out(nnx.relu(self.first(x)))


class Pooled(nn.Module):
  """The largest of two positions."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3,))(x[:, :, None]))
    return nn.Dense(3)(nn.max_pool(x, (2,), (2,)).reshape(len(x), -1))


@pytest.fixture(scope='module')
def measured():
  """A probe of fa at some variables, its kernel as the type entk has it, and the variables."""
  model = bioprop.plug(MODEL, bioprop.make('fa', rho=0.5, scale=1.0))
  variables = model.init(jax.random.key(0), X)
  probe = Probe(model, None, (X, LABELS), types=('theory',))
  entk = Probe(model, None, (X, LABELS), types=('entk',), like=probe).measure(variables)
  return model, variables, probe.measure(variables), entk


@pytest.mark.slow
def test_the_network_is_as_measured(measured):
  """By the type entk; the loss by NumPy."""
  model, variables, found, entk = measured
  for name in NAMES:
    np.testing.assert_array_equal(found[name], entk[name])
  outputs = np.asarray(model.apply(variables, X), np.float64)
  logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
  np.testing.assert_allclose(found['loss'], -logs[np.arange(6), LABELS].mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_limit_is_that_of_infinite(measured):
  """Of the plain model under the same rule, and described as the network is."""
  _, _, found, _ = measured
  limit = bioprop.theory.infinite(MODEL, X, rule=bioprop.make('fa', rho=0.5, scale=1.0))
  kernel = np.asarray(limit.entk, np.float64)
  np.testing.assert_array_equal(found['infinite_kernel'], limit.entk)
  np.testing.assert_allclose(found['infinite_error'], limit.error)
  assert 0 < limit.error < 0.01
  centre, targets = np.eye(6) - 1 / 6, np.eye(3)[LABELS]
  own, other = centre @ kernel @ centre, centre @ targets @ targets.T @ centre
  np.testing.assert_allclose(
      found['infinite_target_alignment'],
      (own * other).sum() / np.linalg.norm(own) / np.linalg.norm(other), rtol=1e-4)
  np.testing.assert_allclose(found['distance'], np.linalg.norm(found['kernel'] - kernel)
                             / np.linalg.norm(kernel), rtol=1e-4)
  assert set(found) == {*NAMES, 'loss', 'distance', 'infinite_error',
                        *(f'infinite_{name}' for name in NAMES)}


@pytest.mark.slow
def test_losses_of_gradient_descent(monkeypatch):
  """At rates that change, step by step in NumPy; in several parts."""
  monkeypatch.setattr(lazy, '_AT_ONCE', 3)
  start, rates = RNG.randn(6, 3), 0.3 * RNG.rand(7)
  batch = Batch(X, jnp.asarray(LABELS))
  found = find_lazy(MODEL, batch, cross_entropy, descent=Descent(jnp.asarray(start), rates))
  kernel, f, want = np.asarray(found.kernels.entk, np.float64), start, []
  for rate in (*rates, 0):
    shares = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    want.append(-np.log(shares[np.arange(6), LABELS]).mean())
    f = f - rate / 6 * kernel @ (shares - np.eye(3)[LABELS])
  np.testing.assert_allclose(found.losses, want, rtol=1e-4)
  probe = Probe(MODEL, 'bp', (X, LABELS), types=('theory',), lazy=found)
  variables = MODEL.init(jax.random.key(0), X)
  for step in (0, 4, 7):
    np.testing.assert_array_equal(probe.measure(variables, step)['infinite_loss'],
                                  found.losses[step])
  assert 'infinite_loss' not in probe.measure(variables)
  assert 'infinite_loss' not in probe.measure(variables, 8)
  with pytest.raises(MeasureError, match=r'\(6, 2, 3\)'):
    find_lazy(MODEL, batch, cross_entropy, descent=Descent(jnp.zeros((6, 2, 3)), rates))


def test_nnx_models():
  """Under the rule that they have; beside others, by type."""
  model = bioprop.plug(Net(nnx.Rngs(0)), 'dfa', nnx.Rngs(1), X)
  found = Probe(model, None, (X, LABELS), types=('theory', 'alignment')).measure(model)
  np.testing.assert_array_equal(found['theory/infinite_kernel'], bioprop.theory.infinite(
      Net(nnx.Rngs(0)), X, rule='dfa').entk)
  # The readout's alone, of the 64 features and its bias: 1 + 64 E phi phi' of variances 1 / 4.
  moments = X @ X.T / 4
  norms = np.sqrt(np.outer(np.diag(moments), np.diag(moments)))
  angles = np.arccos(np.clip(moments / norms, -1, 1))
  want = 1 + 64 * norms * (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / (2 * np.pi)
  # Of 256 numbers drawn once, the variance is known to a tenth.
  np.testing.assert_allclose(found['theory/infinite_kernel'], want, rtol=0.3)


def test_no_limit_is_said_before_anything_is_measured():
  """With its place; all other types need none."""
  with pytest.raises(TheoryError, match=r'max pooling.*theory_test.py|theory_test.py.*max pooling'):
    Probe(Pooled(), 'bp', (X, LABELS), types=('theory',))
  Probe(Pooled(), 'bp', (X, LABELS))
