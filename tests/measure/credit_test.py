"""Angles of credit: against the gradients of samples, one by one, by JAX alone, and NumPy."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import measure
from bioprop.errors import MeasureError
from bioprop.measure import Jacobian

RNG = np.random.RandomState(0)
KEY = jax.random.key(0)
F = jnp.float64


class Shared(nn.Module):
  """A layer that is called twice, and one of tokens' positions without a bias."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(4, param_dtype=F)
    x = nn.tanh(layer(nn.tanh(layer(x))))
    x = nn.tanh(nn.Dense(3, use_bias=False, param_dtype=F)(x.reshape(-1, 2, 2)))
    return nn.Dense(2, param_dtype=F)(x.reshape(x.shape[0], -1))


class Convolutional(nn.Module):
  """Biases, and the scale of a norm."""

  @nn.compact
  def __call__(self, x):
    x = nn.LayerNorm(param_dtype=F)(nn.tanh(nn.Conv(3, (2, 2), strides=2, param_dtype=F)(x)))
    return nn.Dense(2, param_dtype=F)(x.reshape(x.shape[0], -1))


class Mlp(nn.Module):
  """One hidden layer."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name='out', param_dtype=F)(
        nn.tanh(nn.Dense(4, name='hidden', param_dtype=F)(x)))


@pytest.fixture(autouse=True)
def _promotion():
  """Norms promote their dtype, float64, with float32."""
  with jax.numpy_dtype_promotion('standard'):
    yield


NETS = {'shared': (Shared(), (5, 4)), 'convolutional': (Convolutional(), (5, 4, 4, 2))}


def drawn(model, x):
  """Variables whose feedback knows nothing of the parameters, and is as large."""
  shapes = jax.eval_shape(model.init, KEY, x)
  return jax.tree.map(lambda a: jnp.asarray(0.7 * RNG.randn(*a.shape)), shapes)


def by_path(tree):
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {'/'.join(entry.key for entry in path): np.asarray(leaf).reshape(len(leaf), -1)
          for path, leaf in flat}


def gradients(model, variables, x, error):
  """Of <error, f(x)> of each sample, by parameter [n, p]."""

  def one(x, error):
    f = lambda p: jnp.vdot(error, model.apply({**variables, 'params': p}, x[None])[0])
    return jax.grad(f)(variables['params'])

  return jax.vmap(one)(x, error)


def angle(g, h):
  """Cosine and ratio, along the last axis."""
  g_norm, h_norm = np.linalg.norm(g, axis=-1), np.linalg.norm(h, axis=-1)
  return (g * h).sum(-1) / g_norm / h_norm, h_norm / g_norm


def check(got, want):
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


def compare(angles, plain, plugged):
  """All angles with those of samples' gradients [n, p]."""
  each, total = angles
  assert each.keys() == plain.keys() == plugged.keys()
  joined = lambda rows: np.concatenate([rows[path] for path in plain], 1)
  rows = [(each[path], plain[path], plugged[path]) for path in plain]
  for got, g, h in (*rows, (total, joined(plain), joined(plugged))):
    check((got.update, got.update_ratio), angle(g.sum(0), h.sum(0)))
    check((got.samples, got.samples_ratio), angle(g, h))
  assert total.signals is None


def measured(model, variables, x, error):
  """The angles of a plugged model."""
  jacobians = bioprop.measure.jacobians(model, x)
  run = jax.jit(lambda gradient, update: measure.angles(gradient((x, error)), update((x, error))))
  return run(jacobians.gradient(variables), jacobians.update(variables))


@pytest.mark.slow
@pytest.mark.parametrize('net, rule', [
    ('shared', 'fa'), ('shared', 'align_ada'), ('convolutional', 'dfa'),
    ('convolutional', 'align_ada')])
@pytest.mark.usefixtures('x64')
def test_every_parameter(net, rule):
  """Of the update and of each sample, by parameter and of all: as jax.grad of each sample says."""
  model, shape = NETS[net]
  plugged, x, error = bioprop.plug(model, rule), jnp.asarray(RNG.randn(*shape)), RNG.randn(5, 2)
  variables = drawn(plugged, x)
  run = jax.jit(lambda v: (
      gradients(model, {'params': v['params']}, x, error), gradients(plugged, v, x, error)))
  angles = measured(plugged, variables, x, error)
  compare(angles, *map(by_path, run(variables)))
  assert angles[1].update < 0.99


@pytest.mark.slow
@pytest.mark.parametrize('net', NETS)
@pytest.mark.usefixtures('x64')
def test_backprop_is_at_no_angle(net):
  """All cosines and all ratios are 1, those of the signals too."""
  model, shape = NETS[net]
  plugged, x = bioprop.plug(model, 'bp'), jnp.asarray(RNG.randn(*shape))
  each, total = measured(plugged, drawn(plugged, x), x, RNG.randn(5, 2))
  for path, angle in {**each, 'all': total}.items():
    weight = path.endswith('kernel')
    assert (angle.signals is not None) == weight
    for values in angle[:5 if weight else 4]:
      np.testing.assert_allclose(values, 1, rtol=1e-12)


class Net(nnx.Module):
  """A layer that is called twice."""

  def __init__(self):
    make = lambda outputs: nnx.Linear(4, outputs, rngs=nnx.Rngs(0), param_dtype=F)
    self.twice, self.out = make(4), make(2)

  def __call__(self, x):
    return self.out(nnx.tanh(self.twice(nnx.tanh(self.twice(x)))))


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_nnx_models():
  """As jax.grad of each sample of the two models says."""
  x, error = jnp.asarray(RNG.randn(5, 4)), RNG.randn(5, 2)
  plain, plugged = models = Net(), bioprop.plug(Net(), 'fa', nnx.Rngs(1), x)

  def rows(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def one(x, error):
      f = lambda p: jnp.vdot(error, nnx.merge(graphdef, p, rest, copy=True)(x[None])[0])
      return nnx.to_pure_dict(jax.grad(f)(params))

    return by_path(jax.jit(jax.vmap(one))(x, error))

  angles = measured(plugged, plugged, x, error)
  compare(angles, *map(rows, models))
  assert angles[0]['twice/kernel'].update < 0.99 and plain is not plugged


@pytest.mark.usefixtures('x64')
def test_signals():
  """At the hidden layer between (W e) phi'(h) and (B e) phi'(h), in NumPy; 1 at the readout."""
  model, x, error = bioprop.plug(Mlp(), 'fa'), RNG.randn(5, 4), RNG.randn(5, 2)
  variables = drawn(model, x)
  params = jax.tree.map(np.asarray, variables['params'])
  slope = 1 - np.tanh(x @ params['hidden']['kernel'] + params['hidden']['bias']) ** 2
  g = error @ params['out']['kernel'].T * slope
  h = error @ np.asarray(variables['feedback']['out']['kernel']).T * slope
  each, _ = measured(model, variables, x, error)
  check([each['hidden/kernel'].signals], [angle(g, h)[0]])
  check([each['out/kernel'].signals], [np.ones(5)])
  assert each['hidden/bias'].signals is None
  # Where each sample has one location, those of the bias are the signals' own angles.
  check([each['hidden/bias'].samples], [angle(g, h)[0]])


@pytest.mark.usefixtures('x64')
def test_by_hand():
  """A right angle in one sample, none in the other; half a right angle in sum; zeros give NaN."""
  given = lambda *rows: Jacobian({}, {'w': jnp.asarray(rows)[:, None], 'v': jnp.zeros((2, 1, 1))})
  each, total = measure.angles(given([1., 0.], [0., 1.]), given([0., 2.], [0., 2.]))
  for angles in (each['w'], total):
    check(angles[:4], (0.5**0.5, 8**0.5, [0, 1], [2, 2]))
  assert np.isnan(each['v'].update) and np.isnan(each['v'].samples).all()


@pytest.mark.usefixtures('x64')
def test_factors_with_formed_gradients():
  """In either order, as of the gradients of both."""
  (a, b), (g, h) = RNG.randn(2, 5, 3, 4), RNG.randn(2, 5, 1, 3, 2)
  rows, others = (np.einsum('ntk,ncto->nko', *pair).reshape(5, -1) for pair in ((a, g), (b, h)))
  factors, formed = Jacobian({'w': (a, g)}, {}), Jacobian({}, {'w': others[:, None]})
  one, two = jax.jit(lambda f, g: (measure.angles(f, g), measure.angles(g, f)))(factors, formed)
  compare(one, {'w': rows}, {'w': others})
  compare(two, {'w': others}, {'w': rows})
  assert one[0]['w'].signals is None


def test_what_has_no_angle():
  """Derivatives of all outputs, as factors or as they are, and those of another model."""
  ones = lambda *shape: np.ones(shape, np.float32)
  at_errors = Jacobian({'w': (ones(3, 1, 4), ones(3, 1, 1, 2))}, {'v': ones(3, 1, 5)})
  factors = Jacobian({'w': (ones(3, 1, 4), ones(3, 2, 1, 2))}, {'v': ones(3, 1, 5)})
  full = Jacobian({}, {'v': ones(3, 2, 5)})
  for other, outputs in ((factors, '1, 2'), (full, '2')):
    for pair in ((at_errors, other), (other, at_errors)):
      with pytest.raises(MeasureError, match=rf'of \[{outputs}\] outputs.*jacobians.update'):
        measure.angles(*pair)
  with pytest.raises(MeasureError, match='gradients are of v, w, and .* of v. Take both'):
    measure.angles(at_errors, Jacobian({}, at_errors.full))
