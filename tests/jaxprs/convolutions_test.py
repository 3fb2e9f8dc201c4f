"""Convolutions that are rewritten for the CPU keep their values, and are written as is said."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import bioprop
from bioprop.jaxprs import convolution as written
from bioprop.jaxprs.convolutions import fast_convolutions
from bioprop.jaxprs.layout import bodies_of
from bioprop.models import LeNet

_LAYERS = {
    'strided': nn.Conv(4, (3, 3), strides=2),
    'dilated': nn.Conv(4, (3, 3), kernel_dilation=2),
    'input_dilated': nn.Conv(4, (3, 3), input_dilation=2, padding=((1, 1), (1, 1))),
    'grouped': nn.Conv(4, (3, 3), feature_group_count=2),
    'transposed': nn.ConvTranspose(3, (3, 2), strides=(2, 1)),
    'one_dimensional': nn.Conv(4, (3,), padding='CAUSAL'),
    'three_dimensional': nn.Conv(4, (2, 2, 2)),
    'one_by_one': nn.Conv(4, (1, 1), strides=2),
    'five_by_five': nn.Conv(4, (5, 5), padding=((0, 3), (2, 1))),
    'even': nn.Conv(3, (4, 2), padding='VALID'),
    'strided_and_dilated': nn.Conv(4, (2, 3), strides=(2, 1), kernel_dilation=(1, 2)),
    'to_one_position': nn.Conv(5, (9, 8), padding='VALID'),
    'cropped': nn.Conv(4, (3, 3), padding=((-1, 2), (0, -2))),
    'depthwise': nn.Conv(4, (3, 3), feature_group_count=4),
    'by_replica': nn.Conv(8, (3, 3), feature_group_count=4),
}
cpu_only = pytest.mark.skipif(jax.default_backend() != 'cpu', reason='rewrites on the CPU only')


@pytest.fixture
def eager(monkeypatch):
  """However small, and of however few channels or samples at a time."""
  monkeypatch.setattr(written, '_WORTH', 1)
  monkeypatch.setattr(written, '_CHANNELS', (1, 64))
  monkeypatch.setattr(written, '_ROWS', 100)


def _gradient(layer, x):
  params = layer.init(jax.random.key(0), x)
  return jax.grad(lambda p, x: jnp.sum(jnp.sin(layer.apply(p, x))), argnums=(0, 1)), (params, x)


def _input(name, n=2):
  shape = {'one_dimensional': (n, 9, 4), 'three_dimensional': (n, 4, 5, 6, 4)}.get(
      name, (n, 9, 8, 4))
  return jax.random.normal(jax.random.key(1), shape)


def _equal(got, expected, tolerance=2e-5):
  assert jax.tree.structure(expected) == jax.tree.structure(got)
  for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(got)):
    assert want.dtype == have.dtype and want.shape == have.shape
    np.testing.assert_allclose(np.asarray(have, np.float64), np.asarray(want, np.float64),
                               rtol=tolerance, atol=tolerance)


def _primitives(function, *args):
  """The names of all that a function is made of, at any depth, and its convolutions' layouts."""
  names, layouts = [], []

  def visit(jaxpr):
    for eqn in jaxpr.eqns:
      names.append(eqn.primitive.name)
      if eqn.primitive is lax.conv_general_dilated_p:
        layouts.append(tuple(eqn.params['dimension_numbers']))
      for body in bodies_of(eqn):
        visit(body.jaxpr)

  visit(jax.make_jaxpr(function)(*args).jaxpr)
  return names, layouts


@pytest.mark.slow
@pytest.mark.parametrize('n', [1, 6])
@pytest.mark.parametrize('name', _LAYERS)
def test_values_are_those_of_the_function(name, n, eager):
  function, args = _gradient(_LAYERS[name], _input(name, n))
  _equal(jax.jit(fast_convolutions(function))(*args), function(*args))


@pytest.mark.parametrize('name', ['strided', 'five_by_five', 'to_one_position'])
def test_values_of_what_is_written_otherwise(name, eager):
  """Those of the quick suite: patches, wide kernels, and one position."""
  function, args = _gradient(_LAYERS[name], _input(name, 6))
  _equal(jax.jit(fast_convolutions(function))(*args), jax.jit(function)(*args))


@pytest.mark.slow
@pytest.mark.parametrize('dtype, tolerance', [('bfloat16', 0.0), ('float64', 1e-12)])
def test_other_dtypes_are_left_to_xla(dtype, tolerance, eager):
  with jax.enable_x64(True):
    layer = nn.Conv(4, (3, 3), dtype=dtype, param_dtype=dtype)
    function, args = _gradient(layer, _input('').astype(dtype))
    _equal(jax.jit(fast_convolutions(function))(*args), jax.jit(function)(*args), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['strided', 'five_by_five', 'grouped', 'to_one_position'])
def test_derivatives_and_maps_of_what_is_written(name, eager):
  """Forward over reverse, reverse over reverse, and vmap: of the rewritten, as of the function."""
  function, args = _gradient(_LAYERS[name], _input(name, 3))
  # As an op of ours is: traced while somebody differentiates.
  fast = fast_convolutions(function)
  tangents = jax.tree.map(jnp.cos, args)
  along = lambda f: jax.jit(lambda: jax.jvp(f, args, tangents)[1])()
  _equal(along(fast), along(function), 1e-4)
  back = lambda f: jax.jit(lambda: jax.vjp(f, *args)[1](tangents))()
  _equal(back(fast), back(function), 1e-4)
  several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), args)
  _equal(jax.jit(jax.vmap(fast))(*several), jax.jit(jax.vmap(function))(*several), 1e-4)


@pytest.mark.slow
@cpu_only
def test_every_convolution_is_in_the_fast_layout():
  function, args = _gradient(_LAYERS['strided'], _input('strided'))
  layouts = lambda function: _primitives(function, *args)[1]
  fast = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
  assert any(layout != fast for layout in layouts(function))
  assert all(layout == fast for layout in layouts(fast_convolutions(function)))


@pytest.mark.slow
@cpu_only
def test_kernel_gradients_are_matrix_products():
  """From 16 to 64 channels; patches are not as many as there are samples: a few at a time."""
  def made(channels):
    layer, x = nn.Conv(16, (3, 3)), jnp.ones((64, 16, 16, channels))
    function, (params, x) = _gradient(layer, x)
    return _primitives(fast_convolutions(lambda p: function(p, x)[0]), params)[0]

  few, many, most = made(8), made(16), made(128)
  # What are left are the forward pass and the input's gradient.
  assert many.count('conv_general_dilated') == 2 and many.count('dot_general') == 1
  assert 'scan' in many
  for others in few, most:
    assert others.count('conv_general_dilated') == 3 and 'dot_general' not in others


@cpu_only
def test_few_features_are_made_of_several_positions():
  """LeNet's first convolution: 4 of 6 features each, in strides of 4."""
  layer, x = nn.Conv(6, (5, 5)), jnp.ones((64, 28, 28, 1))
  params = layer.init(jax.random.key(0), x)
  jaxpr = jax.make_jaxpr(fast_convolutions(layer.apply))(params, x)
  (found,) = (eqn for eqn in jaxpr.eqns if eqn.primitive is lax.conv_general_dilated_p)
  assert found.params['window_strides'] == (1, 4) and found.outvars[0].aval.shape == (64, 28, 7, 24)


@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_nothing_changes_on_accelerators(rule, monkeypatch):
  """The step is made of what backprop's is, and on the CPU it is not."""
  layer, x = nn.Conv(16, (3, 3)), jnp.ones((64, 16, 16, 16))
  model = bioprop.plug(
      nn.Sequential([layer, nn.relu, layer.clone(), lambda h: h.reshape(64, -1)]), rule)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  made = lambda: _primitives(
      jax.grad(lambda v: jnp.sum(model.apply(v, x)**2)), variables)[0]
  on_cpu = made()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert fast_convolutions(made) is made
  on_gpu = made()
  # Of each layer the forward pass, the kernel's gradient and what fa sends; each of the last two
  # is transposed from a forward pass that is traced for it.
  assert on_gpu.count('conv_general_dilated') == {'fa': 2 * 5, 'dfa': 2 * 3}[rule]
  assert 'scan' not in on_gpu and 'optimization_barrier' not in on_gpu
  assert on_gpu != on_cpu or jax.config.jax_platforms not in (None, 'cpu')


@pytest.mark.slow
def test_replicas_of_a_training_step(monkeypatch):
  """A step that is mapped over eight networks, and then rewritten, is eight steps."""
  model, tx = bioprop.plug(LeNet(features=(6, 8, 10), dense=12), 'fa'), optax.sgd(0.1)
  xs = jax.random.normal(jax.random.key(1), (8, 16, 28, 28, 1))
  ys = jax.random.randint(jax.random.key(2), (8, 16), 0, 10)

  def step(variables, x, y):
    def loss(params):
      logits = model.apply({**variables, 'params': params}, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    gradients = jax.grad(loss)(variables['params'])
    updates, _ = tx.update(gradients, tx.init(gradients))
    return optax.apply_updates(variables['params'], updates)

  replicas = jax.vmap(model.init, (0, None))(jax.random.split(jax.random.key(0), 8), xs[0])
  args = replicas, xs, ys
  one = jax.jit(step)
  singles = [one(*jax.tree.map(lambda a, at=number: a[at], args)) for number in range(8)]
  together = jax.jit(fast_convolutions(jax.vmap(step)))(*args)
  _equal(together, jax.tree.map(lambda *a: jnp.stack(a), *singles))
  if jax.default_backend() == 'cpu':
    jaxpr = jax.make_jaxpr(fast_convolutions(jax.vmap(step)))(*args)
    assert 'feature_group_count=8' in str(jax.make_jaxpr(jax.vmap(step))(*args))
    assert 'feature_group_count=8' not in str(jaxpr)
