"""What every rule owes the user's loop, whatever it computes."""
import copy
import dataclasses
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.models import RNN
from bioprop.rules import OF_TIME

RNGS = {'feedback': jax.random.key(3)}
every_rule = pytest.mark.parametrize('name', [
    name for name in bioprop.RULES if name not in OF_TIME])


class Halves(nn.Module):
  """bfloat16 or float16 compute, parameters of another type."""
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    for width in (6, 5):
      x = nn.relu(nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)(x))
    return nn.Dense(3, dtype=self.dtype, param_dtype=self.param_dtype)(x)


@pytest.fixture
def mlp(mlp, name):
  """With ReLUs for gln, which acts on nothing else."""
  mlp.model = mlp.model.clone(phi=nn.relu) if name == 'gln' else mlp.model
  return mlp


def gradient(model, variables, x):
  """Gradient of a mean loss."""
  loss = lambda p: jnp.mean(jnp.square(model.apply({**variables, 'params': p}, x, rngs=RNGS)))
  return jax.grad(loss)(variables['params'])


def close(got, want, rtol=1e-12):
  """Trees of equal structure and values."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), got, want)


@every_rule
@pytest.mark.some(2)
def test_parameters_and_outputs_are_the_plain_models(mlp, name):
  """Same paths and values; only feedback that learns adds leaves, and gln another forward pass."""
  plain = mlp.model.init(mlp.key, mlp.x)
  model = bioprop.plug(mlp.model, name)
  variables = model.init(mlp.key, mlp.x)
  own = {layer: {k: v for k, v in leaves.items() if k in ('kernel', 'bias')}
         for layer, leaves in variables['params'].items()}
  jax.tree.map(np.testing.assert_array_equal, own, plain['params'])
  extra = {k for leaves in variables['params'].values() for k in leaves} - {'kernel', 'bias'}
  beside = 'feedback_error' if name == 'dkp' else 'feedback_kernel'
  assert extra == ({beside} if bioprop.RULES[name].learns else set())
  same = np.array_equal(model.apply(variables, mlp.x, rngs=RNGS), mlp.model.apply(plain, mlp.x))
  assert same == (name != 'gln')


@pytest.mark.parametrize('name', bioprop.RULES)
@pytest.mark.some(3)
def test_recurrent_networks(name):
  """Each parameter learns, or is one that the rule leaves alone; gln refuses ReLUs in loops."""
  model, x = bioprop.plug(RNN(classes=2, width=4), name), jnp.ones((3, 5))
  if name == 'gln':
    with pytest.raises(errors.UnsupportedLayerError, match='scan'):
      model.init(jax.random.key(0), x)
    return
  got = jax.jit(lambda v, x: gradient(model, v, x))(model.init(jax.random.key(0), x), x)
  learns = {'/'.join(entry.key for entry in path): bool(jnp.any(leaf))
            for path, leaf in jax.tree_util.tree_flatten_with_path(got)[0]}
  assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got))
  assert all(value == (name != 'last_layer' or path.startswith('Dense_0'))
             for path, value in learns.items()), learns


@every_rule
@pytest.mark.some(2)
def test_second_step_does_not_retrace(mlp, name):
  """One trace serves all steps, also of a model that was wrapped anew."""
  traces = []

  @jax.jit
  def step(variables, x):
    traces.append(1)
    return gradient(bioprop.plug(mlp.model, name), variables, x)

  variables = bioprop.plug(mlp.model, name).init(mlp.key, mlp.x)
  first = step(variables, mlp.x)
  step({**variables, 'params': jax.tree.map(jnp.add, variables['params'], first)}, mlp.x + 1)
  assert len(traces) == 1


@every_rule
@pytest.mark.some(2)
def test_jit_is_eager(mlp, name):
  """The same numbers with and without jit."""
  model = bioprop.plug(mlp.model, name)
  variables = model.init(mlp.key, mlp.x)
  close(jax.jit(lambda v: gradient(model, v, mlp.x))(variables), gradient(model, variables, mlp.x))


@every_rule
@pytest.mark.some(2)
def test_order_of_the_batch_does_not_matter(mlp, name):
  """No rule mixes up samples."""
  model = bioprop.plug(mlp.model, name)
  variables = model.init(mlp.key, mlp.x)
  order = np.random.RandomState(0).permutation(len(mlp.x))
  close(gradient(model, variables, mlp.x[order]), gradient(model, variables, mlp.x), rtol=1e-10)


@pytest.mark.slow
@every_rule
@pytest.mark.parametrize('dtype, param_dtype', [
    (jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)])
def test_gradients_have_the_parameters_types(name, dtype, param_dtype):
  """Narrow compute, and gradients that an optimiser can take."""
  model = bioprop.plug(Halves(dtype, param_dtype), name)
  x = jax.random.normal(jax.random.key(1), (4, 6), dtype)
  variables = model.init(jax.random.key(0), x)
  grads = gradient(model, variables, x)
  same = jax.tree.map(lambda g, p: g.dtype == p.dtype, grads, variables['params'])
  assert all(jax.tree.leaves(same))
  assert all(bool(jnp.any(g)) for g in jax.tree.leaves(grads['Dense_2']))
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('name', bioprop.RULES)
def test_is_a_frozen_value(name):
  """Equal by value, hashable, immutable, copyable: fit for static arguments and configs."""
  rule = bioprop.make(name)
  assert rule == bioprop.RULES[name]() and hash(rule) == hash(bioprop.make(name))
  assert pickle.loads(pickle.dumps(rule)) == rule == copy.deepcopy(rule)
  field = next((f.name for f in dataclasses.fields(rule)), 'anything')
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(rule, field, 2.0)
  if field == 'scale':
    assert bioprop.make(name, scale=2.0) != rule


@every_rule
@pytest.mark.some(3)
def test_runs_on_integers(name):
  """Pixels of uint8 into a layer: they take no cotangent, and need no feedback."""
  model = bioprop.plug(Halves(jnp.float32, jnp.float32), name)
  x = jnp.arange(24, dtype=jnp.uint8).reshape(4, 6)
  if name == 'gln':  # Its gates are made of the input.
    with pytest.raises(errors.UnsupportedLayerError, match='uint8 .4, 6..*astype'):
      model.init(jax.random.key(0), x)
    return
  variables = model.init(jax.random.key(0), x)
  assert 'Dense_0' not in variables.get('feedback', {})
  learns = np.any(gradient(model, variables, x)['Dense_0']['kernel'])
  assert learns == (name != 'last_layer')


@every_rule
@pytest.mark.some(2)
def test_other_batch_sizes(mlp, name):
  """Feedback made on a batch of 7 serves one of 2; the mean over two halves is the whole."""
  model = bioprop.plug(mlp.model, name)
  variables = model.init(mlp.key, mlp.x[:1])
  parts = [gradient(model, variables, mlp.x[i:i + 2]) for i in (0, 2)]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
  whole = gradient(model, variables, mlp.x[:4])
  if name == 'mirror':  # Its feedback learns from noise, which is not the batch's.
    mean, whole = (jax.tree.map(lambda layer: {k: layer[k] for k in ('kernel', 'bias')}, grads,
                                is_leaf=lambda node: 'kernel' in node) for grads in (mean, whole))
  close(mean, whole, rtol=1e-9)
