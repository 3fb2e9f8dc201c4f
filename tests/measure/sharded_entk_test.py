"""Kernels whose samples are shared by devices: the same numbers as on one."""
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.measure import entk

DEVICES = 4
CASES = ('whole', 'layers', 'blocks', 'errors', 'rows')


class Net(nn.Module):
  """Two layers, and a parameter whose derivative has no factors."""

  @nn.compact
  def __call__(self, x):
    gain = self.param('gain', nn.initializers.ones, (1, 3))
    return nn.Dense(2)(nn.tanh(nn.Dense(3)(x)) * gain)


@pytest.mark.slow
def test_as_on_one_device():
  """All of a kernel and its trace, by layer, in blocks; numbers of samples that do not divide."""
  path = pathlib.Path(__file__)
  program = (f'import sys; sys.path.insert(0, {str(path.parent)!r}); '
             f'import {path.stem} as this; this.compare()')
  flags = f'--xla_force_host_platform_device_count={DEVICES}'
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, timeout=600, check=False,
      cwd=path.parents[2], env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == list(CASES)


def compare():
  """Each case on several devices, and in the whole kernel on one; what is printed has passed."""
  jax.config.update('jax_enable_x64', True)
  devices = jax.devices()
  assert len(devices) == DEVICES
  draw = np.random.RandomState(0).randn
  model, x, error = bioprop.plug(Net(), 'fa'), draw(9, 4), draw(3, 2)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda a: jnp.asarray(draw(*a.shape)), shapes)
  jacobians = bioprop.measure.jacobians(model, x)
  both = true, pseudo = jacobians.true(variables), jacobians.pseudo(variables)
  parts = {path: np.asarray(part) for path, part in entk(*both, x, per_layer=True).items()}
  whole, (x, x2) = sum(parts.values()), (x[:6], x[6:])
  traced = lambda kernel: np.einsum('nmcc->nm', kernel)
  update = jacobians.update(variables)
  rows = entk(*both, x, trace=True, devices=devices[:2])
  cases = {
      'whole': (entk(*both, x, devices=devices), whole[:6, :6]),
      'layers': (entk(*both, x, x2, trace=True, per_layer=True, devices=devices),
                 {path: traced(part[:6, 6:]) for path, part in parts.items()}),
      'blocks': (entk(*both, x, x2, block=3, devices=devices), whole[:6, 6:]),
      'errors': (entk(true, update, x, (x2, error), devices=devices),
                 np.einsum('nmcd,md->nmc', whole[:6, 6:], error)[..., None]),
      'rows': (rows, traced(whole[:6, :6]))}
  for name, (got, want) in cases.items():
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max(), strict=True), got, want)
    print(name)
  assert {shard.data.shape for shard in rows.addressable_shards} == {(3, 6)}
  assert {shard.device for shard in rows.addressable_shards} == set(devices[:2])
