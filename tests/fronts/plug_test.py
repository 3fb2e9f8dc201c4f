"""plug and unplug: one verb for linen modules, NNX modules and functions."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

X = jax.random.normal(jax.random.key(2), (4, 6))
KEY = jax.random.key(0)


def function(params, x):
  return jnp.tanh(x @ params['in']) @ params['out']


PARAMS = {'in': jnp.full((6, 5), 0.1), 'out': jnp.full((5, 3), 0.2)}


class Linen(nn.Module):

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(jnp.tanh(nn.Dense(5)(x)))


class NNX(nnx.Module):

  def __init__(self):
    self.a, self.b = (nnx.Linear(*size, rngs=nnx.Rngs(0)) for size in ((6, 5), (5, 3)))

  def __call__(self, x):
    return self.b(jnp.tanh(self.a(x)))


def gradients(model):
  """Of a loss, as a vector; plain and plugged models of each kind alike."""
  if isinstance(model, nnx.Module):
    grads = nnx.grad(lambda model: jnp.sum(model(X)**2))(model)
  elif isinstance(model, nn.Module):
    variables = model.init(KEY, X)
    grads = jax.grad(lambda params: jnp.sum(
        model.apply({**variables, 'params': params}, X)**2))(variables['params'])
  elif model is function:
    grads = jax.grad(lambda params: jnp.sum(function(params, X)**2))(PARAMS)
  else:
    feedback = model.init_feedback(KEY, PARAMS, X)
    grads = jax.grad(lambda params: jnp.sum(model.apply(params, feedback, X)**2))(PARAMS)
  return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(grads)])


KINDS = {'linen': (Linen, ()), 'nnx': (NNX, (nnx.Rngs(1), X)), 'function': (lambda: function, ())}


@pytest.mark.parametrize('kind', KINDS)
def test_one_verb_for_every_kind_and_back(kind):
  make, args = KINDS[kind]
  exact = gradients(make())
  plugged = bioprop.plug(make(), 'last_layer', *args)
  assert np.count_nonzero(np.asarray(gradients(plugged))) < np.count_nonzero(np.asarray(exact))
  plain = bioprop.unplug(plugged)
  assert type(plain) is type(make())
  np.testing.assert_array_equal(gradients(plain), exact)
  assert bioprop.unplug(plain) is plain or kind == 'linen' and bioprop.unplug(plain) == plain


@pytest.mark.parametrize('what', [Linen, NNX, 'model', None, PARAMS])
def test_what_is_no_model(what):
  """A class is not an instance."""
  with pytest.raises(TypeError, match=r"bioprop\.plug\(MyModel\(\), 'fa'\)"):
    bioprop.plug(what, 'fa')


@pytest.mark.parametrize('model, args, kwargs, match', [
    (Linen(), (KEY, X), {}, r'shape \(\), an array of shape \(4, 6\).*variables = bioprop\.plug'),
    (Linen(), (), {'init': None}, 'init=.*can be given is variables= and output='),
    (function, (X,), {}, r'shape \(4, 6\).*plugged\.init_feedback'),
    (function, (nnx.Rngs(0), X), {}, r'was given Rngs, an array of shape \(4, 6\)'),
    (function, (), {'variables': {}}, 'variables=.*can be given is output= and init=')])
def test_what_is_meant_for_another_kind(model, args, kwargs, match):
  with pytest.raises(TypeError, match=match):
    bioprop.plug(model, 'fa', *args, **kwargs)


def test_a_function_that_is_given_no_feedback_and_described():
  """What stands second is told by its shape; functions have no table."""
  with pytest.raises(errors.FeedbackMissingError, match=(
      r'given float32\[4, 6\] for the feedback, its second.*plugged\.init_feedback\(key')):
    bioprop.plug(function, 'fa').apply(PARAMS, X)
  for what in (function, bioprop.plug(function, 'fa')):
    with pytest.raises(TypeError, match='takes a flax.linen or an nnx module, and got <class'):
      bioprop.describe(what, 'fa', PARAMS, X)
