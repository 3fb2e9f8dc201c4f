"""Parameters with nn.with_partitioning: feedback shaped like them is partitioned as they are."""
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bioprop

RULES = ('fa', 'frsf', 'kp', 'dfa')
PARTS = (None, 'fsdp')


class Partitioned(nn.Module):
  """Dense layers, one of them in an nn.scan, and a convolution, split by their outputs."""

  @nn.compact
  def __call__(self, x):
    kernel = lambda axes: nn.with_partitioning(nn.initializers.lecun_normal(), axes)
    bias = nn.with_partitioning(nn.initializers.zeros, ('fsdp',))
    x = nn.Conv(8, (3,), kernel_init=kernel((None, *PARTS)), bias_init=bias, name='conv')(x)
    x = nn.tanh(x).reshape((x.shape[0], -1))
    x = nn.tanh(nn.Dense(16, kernel_init=kernel(PARTS), bias_init=bias, name='first')(x))
    scan = nn.scan(
        lambda layer, carry, _: (nn.tanh(layer(carry)), None), length=3,
        variable_axes={'params': 0}, split_rngs={'params': True},
        metadata_params={nn.PARTITION_NAME: None})
    x, _ = scan(nn.Dense(16, kernel_init=kernel(PARTS), name='scanned'), x, None)
    return nn.Dense(4, kernel_init=kernel(PARTS), name='readout')(x)


def _inputs():
  return jax.random.normal(jax.random.key(1), (8, 5, 4))


def _specs(variables):
  """Partition specs of all leaves, by path."""
  leaves = jax.tree_util.tree_leaves_with_path(
      nn.get_partition_spec(variables), is_leaf=lambda leaf: isinstance(leaf, jax.P))
  return {tuple(part.key for part in path): spec for path, spec in leaves}


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'frsf', 'kp'])
def test_feedback_has_its_kernels_metadata(rule):
  specs = _specs(jax.eval_shape(
      bioprop.plug(Partitioned(), rule).init, jax.random.key(0), _inputs()))
  layers = {'conv': jax.P(None, None, 'fsdp'), 'first': jax.P(None, 'fsdp'),
            'scanned': jax.P(None, None, 'fsdp'), 'readout': jax.P(None, 'fsdp')}
  for layer, spec in layers.items():
    assert specs['params', layer, 'kernel'] == spec
    feedback = (('params', layer, 'feedback_kernel') if rule == 'kp' else
                ('feedback', layer, 'kernel'))
    assert specs[feedback] == spec
  assert specs['params', 'first', 'bias'] == jax.P('fsdp')


def test_direct_feedback_has_no_kernel_and_no_metadata():
  specs = _specs(jax.eval_shape(
      bioprop.plug(Partitioned(), 'dfa').init, jax.random.key(0), _inputs()))
  direct = {path: spec for path, spec in specs.items() if path[0] == 'feedback'}
  assert len(direct) == 4 and set(direct.values()) == {jax.P()}


@pytest.mark.slow
def test_initialised_in_parts_it_has_the_numbers_of_one_device():
  path = pathlib.Path(__file__)
  program = (f'import sys; sys.path.insert(0, {str(path.parent)!r}); '
             f'import {path.stem} as this; this.compare()')
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, timeout=600, check=False,
      env=os.environ | {
          'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == list(RULES)


def compare():
  """Init under jit with nn.get_sharding, and gradients, on eight devices and on one."""
  x = _inputs()
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  for rule in RULES:
    model = bioprop.plug(Partitioned(), rule)
    loss = lambda params, rest, x, model=model: jnp.mean(
        jnp.sin(model.apply({**rest, 'params': params}, x)))
    gradient = jax.jit(jax.grad(loss))
    init = lambda key, x, model=model: model.init(key, x)
    shardings = nn.get_sharding(jax.eval_shape(init, jax.random.key(0), x), mesh)
    parts = dict(jax.jit(init, out_shardings=shardings)(jax.random.key(0), x))
    whole = dict(jax.jit(init)(jax.random.key(0), x))
    assert _close(parts, whole)
    kernel = parts['params']['first']['kernel'].value
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(40, 4)}
    if rule != 'dfa':
      feedback = (parts['params']['first']['feedback_kernel'] if rule == 'kp' else
                  parts['feedback']['first']['kernel']).value
      assert feedback.sharding == kernel.sharding
    got, want = (gradient(v.pop('params'), v, x) for v in (parts, whole))
    assert len(got['first']['kernel'].value.addressable_shards) == 8
    assert _close(got, want)
    print(rule)


def _close(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  return all(jnp.allclose(jax.device_get(a), jax.device_get(b), rtol=1e-4, atol=1e-6)
             for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other)))
