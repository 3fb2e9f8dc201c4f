"""What `jacobians` finds out about a model before it trusts factors, and what it refuses."""
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import measure
from bioprop.errors import MeasureError
from bioprop.models import CNN, MLP
from bioprop.models.resnet import ResNet

RNG = np.random.RandomState(0)
KEY = jax.random.key(0)


def test_nothing_is_compiled_twice():
  """New parameters, the same program."""
  model, x = MLP(classes=3, hidden=(6,)), jnp.ones((4, 7))
  variables = model.init(KEY, x)
  jacobians = bioprop.measure.jacobians(model, x)
  traces = []

  def counted(true):
    traces.append(1)
    return true(x)

  run = jax.jit(counted)
  run(jacobians.true(variables))
  run(jacobians.true(jax.tree.map(lambda w: w + 1, variables)))
  assert len(traces) == 1


def naive_plain(model, variables, x):
  """As `naive`, of a plain model without train."""
  def one(x):
    f = lambda p: model.apply({**variables, 'params': p}, x[None]).reshape(-1)
    leaves = jax.tree.leaves(jax.jacrev(f)(variables['params']))
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)

  return jnp.stack([jax.jit(one)(sample) for sample in x])


class Masked(nn.Module):
  """A convolution of one location, whose mask is no parameter."""

  @nn.compact
  def __call__(self, x):
    mask = jnp.asarray(np.random.RandomState(3).rand(3, 3, 2, 4) < 0.5, jnp.float32)
    x = nn.tanh(nn.Conv(4, (3, 3), padding='VALID', mask=mask)(x))
    return nn.Dense(2)(x.reshape(x.shape[0], -1))


class Tied(nn.Module):
  """A weight that is read behind its layer's back."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(5, use_bias=False)
    return nn.tanh(layer(x)) @ layer.variables['params']['kernel'].T


class Normed(nn.Module):
  """A layer whose weight is not its parameter."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(nn.tanh(nn.WeightNorm(nn.Dense(5))(x)))


@pytest.mark.slow
@pytest.mark.parametrize('model, shape', [
    (Masked(), (3, 3, 3, 2)), (Tied(), (3, 6)), (Normed(), (3, 6)), (nn.Dense(3), (3, 6))],
                         ids=['mask', 'tied', 'weight norm', 'a layer'])
def test_layers_that_are_not_what_they_seem(model, shape):
  """Their factors are not their gradient, which a check at first use finds."""
  x = jnp.asarray(RNG.randn(*shape), jnp.float32)
  variables = model.init(KEY, x)
  jacobians = bioprop.measure.jacobians(model, x)
  rows = naive_plain(model, variables, x)
  want = jnp.einsum('ncp,mdp->nmcd', rows, rows)
  got = measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * jnp.abs(want).max())


class Written(nn.Module):
  """Products by hand, with weights whose axes stand in all orders."""

  @nn.compact
  def __call__(self, x):
    weight = lambda name, *shape: self.param(name, nn.initializers.normal(), shape)
    x = nn.tanh(x @ weight('transposed', 5, 6).T)
    x = nn.tanh(jnp.einsum('nd,hdk->nhk', x, weight('heads', 2, 5, 4)))
    x = jnp.einsum('oh,nhk->nok', weight('channels', 3, 2), x)
    x = nn.tanh(x * 2 + weight('bias', 1, 3, 1))
    x = nn.tanh(jax.lax.conv_general_dilated(
        x, jnp.flip(weight('flipped', 2, 3, 2), 2), (1,), 'VALID',
        dimension_numbers=('NCW', 'OIW', 'NCW')))
    return jnp.einsum('nok,kor->nr', x, weight('last', 3, 2, 2).astype(x.dtype))


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['bp', 'fa'])
@pytest.mark.usefixtures('x64')
def test_products_that_no_layer_makes(rule):
  """All give factors, of the parameter as it is kept."""
  model, x = bioprop.plug(Written(), rule), jnp.asarray(RNG.randn(3, 6))
  shapes = jax.eval_shape(model.init, KEY, x)
  variables = jax.tree.map(lambda a: jnp.asarray(0.7 * RNG.randn(*a.shape)), shapes)
  jacobians = bioprop.measure.jacobians(model, x)
  with jax.numpy_dtype_promotion('standard'):
    true, pseudo = jacobians.true(variables), jacobians.pseudo(variables)
  for made in (true(x), pseudo(x)):
    assert set(made.outer) == {'transposed', 'heads', 'channels', 'flipped', 'last'}
    assert not made.biases and set(made.full) == {'bias'}  # To its product a factor is given.
  want = [naive_plain(one, variables, x) for one in (Written(), model)]
  got = measure.entk(true, pseudo, x)
  want = jnp.einsum('ncp,mdp->nmcd', *want)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10 * jnp.abs(want).max())


class Heads(nn.Module):
  """Two outputs."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(4, param_dtype=jnp.float64)(x))
    return [nn.Dense(width, param_dtype=jnp.float64)(x) for width in (2, 3)]


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_an_output_that_is_not_the_rules():
  """The rule broadcasts the error of the one, and the other is differentiated."""
  model, x = bioprop.plug(Heads(), 'dfa', output=0), jnp.asarray(RNG.randn(3, 6))
  variables = jax.jit(model.init)(KEY, x)
  made = bioprop.measure.jacobians(model, x, output=1).pseudo(variables)(x).by_path()
  assert jnp.abs(made['Dense_0/bias']).max() == 0 == jnp.abs(made['Dense_1/bias']).max()
  np.testing.assert_array_equal(made['Dense_2/bias'], jnp.broadcast_to(jnp.eye(3), (3, 3, 3)))
  made = bioprop.measure.jacobians(model, x).pseudo(variables)(x).by_path()
  assert jnp.abs(made['Dense_0/bias']).min() > 0 == jnp.abs(made['Dense_2/bias']).max()


def test_gated_networks_give_factors():
  """Their derivatives are those of another network."""
  model, x = bioprop.plug(MLP(classes=2, hidden=(5,), activation='relu'), 'gln'), jnp.ones((3, 6))
  made = bioprop.measure.jacobians(model, x).pseudo(jax.jit(model.init)(KEY, x))(x)
  assert set(made.outer) == {'Dense_0/kernel', 'Dense_1/kernel'} and not made.full


@dataclasses.dataclass(frozen=True)
class Tripled(bioprop.RULES['fa']):
  """Feedback alignment with larger steps, which says nothing of them."""

  def backward(self, op, params, x, feedback, g, e):
    credit = super().backward(op, params, x, feedback, g, e)
    return credit._replace(params=jax.tree.map(lambda w: 3 * w, credit.params))


@dataclasses.dataclass(frozen=True)
class Signed(bioprop.RULES['fa']):
  """Steps of the gradient's sign."""

  def backward(self, op, params, x, feedback, g, e):
    credit = super().backward(op, params, x, feedback, g, e)
    return credit._replace(params=jax.tree.map(jnp.sign, credit.params))


@pytest.mark.slow
def test_rules_that_are_not_what_they_say():
  """The check finds an update that is no product, and one that is not linear."""
  x = jnp.asarray(RNG.randn(3, 6), jnp.float32)
  kernels = {}
  for rule in (bioprop.make('fa'), Tripled(), Signed()):
    model = bioprop.plug(MLP(classes=2, hidden=(5,)), rule)
    variables = model.init(KEY, x)
    jacobians = bioprop.measure.jacobians(model, x)
    if isinstance(rule, Signed):
      with pytest.raises(MeasureError, match='Signed is not linear'):
        jacobians.pseudo(variables)
    else:
      kernels[type(rule)] = measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)
  np.testing.assert_allclose(kernels[Tripled], 3 * kernels[bioprop.RULES['fa']],
                             rtol=1e-4, atol=1e-4)


def test_samples_that_depend_on_each_other_are_refused():
  """Batch statistics, in training or always."""
  x = jnp.asarray(RNG.randn(3, 6, 6, 3), jnp.float32)
  for model, kwargs in ((CNN(width=3, strides=(1,)), {}),
                        (ResNet(stages=(1,), width=3), {'train': True})):
    jacobians = bioprop.measure.jacobians(model, x, **kwargs)
    with pytest.raises(MeasureError, match='depends on what else is in the batch'):
      jacobians.true(model.init(KEY, x))


def test_samples_of_another_kind_are_refused():
  """Another size, another dtype; and a batch among the keyword arguments."""

  class Mean(nn.Module):

    @nn.compact
    def __call__(self, x, mask=None):
      x = x if mask is None else x * mask
      return nn.Dense(2)(nn.tanh(nn.Conv(3, (3, 3))(x)).mean((1, 2)))

  x = jnp.ones((2, 8, 8, 1))
  variables = Mean().init(KEY, x)
  true = bioprop.measure.jacobians(Mean(), x).true(variables)
  for other in (x[:, :6], x.astype(jnp.int32)):
    with pytest.raises(MeasureError, match=r'float32\[8, 8, 1\].*the samples are'):
      measure.entk(true, true, other)
  with pytest.raises(MeasureError, match='among the keyword arguments'):
    bioprop.measure.jacobians(Mean(), x, mask=jnp.ones((2, 8, 8, 1))).true(variables)


def test_shared_parameters_and_arrays_of_nnx_models():
  """Two layers with one weight; a layer that holds an array."""

  class Two(nnx.Module):

    def __init__(self):
      make = lambda: nnx.Linear(5, 5, use_bias=False, rngs=nnx.Rngs(0))
      self.a, self.b, self.scale = make(), make(), nnx.data(jnp.arange(5.0)[None])
      self.b.kernel = self.a.kernel

    def __call__(self, x):
      return self.b(nnx.tanh(self.a(x) * self.scale))

  model, x = Two(), jnp.asarray(RNG.randn(3, 5), jnp.float32)
  jacobians = bioprop.measure.jacobians(model, x)
  f = lambda w, x: jnp.tanh(x @ w * model.scale[0]) @ w
  rows = jax.vmap(lambda x: jax.jacrev(f)(model.a.kernel[...], x))(x).reshape(3, 5, -1)
  got = measure.entk(jacobians.true(model), jacobians.pseudo(model), x)
  np.testing.assert_allclose(got, jnp.einsum('ncp,mdp->nmcd', rows, rows), rtol=1e-4, atol=1e-4)


def test_another_dtype():
  """In float64 a model of float32 gives what its own copy in float64 does."""
  model, x = MLP(classes=3, hidden=(6,)), RNG.randn(3, 7).astype(np.float32)
  variables = model.init(KEY, x)
  with pytest.raises(MeasureError, match='jax_enable_x64'):
    bioprop.measure.jacobians(model, x, dtype='float64')
  with jax.enable_x64(True):
    got = measure.ntk(bioprop.measure.jacobians(model, x, dtype='float64').true(variables), x)
    doubled = jax.tree.map(lambda w: w.astype(jnp.float64), variables)
    want = naive_plain(model, doubled, jnp.asarray(x, jnp.float64))
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, np.einsum('ncp,mdp->nmcd', want, want), rtol=1e-10)


@pytest.mark.parametrize('given, words', [
    (lambda x: x, r'a pair \(x, error\)'), (lambda x: (x, np.ones((3, 2), np.float32)), r'\(2,\)'),
    (lambda x: (x[:, :6], np.ones((3, 3), np.float32)), r'float32\[6\]')])
def test_errors_that_are_none(given, words):
  """Not one of each output: it says what an error is."""
  model, x = MLP(classes=3, hidden=(6,)), RNG.randn(3, 7).astype(np.float32)
  update = bioprop.measure.jacobians(model, x).update(model.init(KEY, x))
  with pytest.raises(MeasureError, match=words):
    update(given(x))
