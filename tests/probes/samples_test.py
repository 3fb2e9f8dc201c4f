"""Probes ask for a sample, and say so where there is none or the model cannot be called on it."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

X = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)


class Linen(nn.Module):
  """Refuses what has no 6 features."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x.reshape(-1, 2, 3).reshape(-1, 6))


def make(front):
  """A plugged model, and what it is measured at."""
  if front == 'linen':
    model = bioprop.plug(Linen(), 'fa')
    return model, model.init(jax.random.key(0), X)
  model = bioprop.plug(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), 'fa', nnx.Rngs(1))
  return model, model


ASKING = {
    'measure.jacobians': lambda model, variables, *x: bioprop.measure.jacobians(
        model, *x).true(variables),
    'measure.layers': lambda model, variables, *x: bioprop.measure.layers(model, *x),
    'measure.feedback_weights': lambda model, variables, *x: bioprop.measure.feedback_weights(
        model, variables, *x),
    'theory.aligned_init': lambda model, variables, *x: bioprop.theory.aligned_init(
        model, variables, *x),
}


@pytest.mark.parametrize('front', ['linen', 'nnx'])
@pytest.mark.parametrize('name', ASKING)
def test_samples(name, front):
  """None, no array, and one of another width, which the chained error is about."""
  ask, (model, variables) = ASKING[name], make(front)
  for sample, words in (((), 'given nothing'), ((None,), 'given None')):
    with pytest.raises(errors.SampleError, match=rf'{name} must know.*{words}.*bioprop\.{name}'):
      ask(model, variables, *sample)
  with pytest.raises(errors.SampleError, match=r'called on float32\[\d, 5\]: TypeError') as error:
    ask(model, variables, X[:, :5])
  assert isinstance(error.value.__cause__, TypeError)
  with pytest.raises(errors.SampleError, match='has True in it|TypeError'):
    ask(model, variables, X, True)


@pytest.mark.parametrize('name', ASKING)
def test_no_models(name):
  with pytest.raises(TypeError, match=rf'bioprop\.{name} takes a .* got None'):
    ASKING[name](None, {}, X)


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_layers_that_compute_in_a_dtype_of_their_own(rule):
  """Feedback that is cast with all else is of the layer's dtype where the layer uses it."""

  class Half(nn.Module):

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.tanh(nn.Dense(4, dtype=jnp.float32)(x)).astype(x.dtype))

  model = bioprop.plug(Half(), rule)
  variables = model.init(jax.random.key(0), X)
  shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
  with jax.enable_x64(True):
    found = [bioprop.measure.entk(made.true(variables), made.pseudo(variables), X)
             for made in (bioprop.measure.jacobians(model, shape, dtype=dtype)
                          for dtype in (None, jnp.float64))]
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
