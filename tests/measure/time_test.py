"""Measurements of recurrent networks under rules of time."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.measure import weight_alignment

N, T, WIDTH = 4, 6, 5
X = jax.random.normal(jax.random.key(0), (N, T, 3))


class Net(nn.Module):
  """A recurrent layer and a readout."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name='readout')(nn.RNN(nn.SimpleCell(WIDTH))(x))


@pytest.mark.parametrize('rule', ['rflo', 'eprop', 'tbptt'])
def test_feedback_is_found_where_something_is_sent_through(rule):
  """Of the readout; recurrent weights send through none, and the input sends nowhere."""
  model = bioprop.plug(Net(), rule)
  variables = model.init(jax.random.key(1), X)
  found = bioprop.measure.feedback_weights(model, variables, X)
  assert {'readout/kernel'} <= set(found.sent)
  if rule != 'tbptt':
    assert set(found.sent) == {'readout/kernel'}
    np.testing.assert_array_equal(found.sent['readout/kernel'],
                                  variables['feedback']['readout']['kernel'])
  cosine = weight_alignment(found.weights, found.sent)['readout/kernel']
  assert (abs(cosine - 1) < 1e-6) == (rule == 'tbptt')


@pytest.mark.slow
@pytest.mark.parametrize('rule', [bioprop.make('rflo', feedback='symmetric'), 'eprop'], ids=str)
def test_angles_are_those_of_the_gradients(rule):
  """Weight by weight, as two gradients of the same loss have them."""
  labels = jnp.zeros((N, T), int)
  model, plain = bioprop.plug(Net(), rule), Net()
  variables = model.init(jax.random.key(1), X)
  probe = bioprop.measure.Probe(model, None, (X, labels), types=('angles', 'alignment'))
  found = probe.measure(variables)

  def gradient(model):
    out = lambda p: model.apply({**variables, 'params': p}, X)
    loss = lambda p: -jnp.sum(jax.nn.log_softmax(out(p))[..., 0])
    return jax.grad(loss)(variables['params'])

  for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(gradient(model)),
                                jax.tree.leaves(gradient(plain))):
    cosine = jnp.vdot(one, other) / jnp.linalg.norm(one) / jnp.linalg.norm(other)
    name = '/'.join(entry.key for entry in path)
    np.testing.assert_allclose(found[f'angles/cosine/{name}'], cosine, rtol=1e-4)
  assert 'alignment/cosine/readout/kernel' in found
