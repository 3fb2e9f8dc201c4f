"""The models that come with the library: published sizes, and every layer learns by the rule."""
import math

import jax
import jax.numpy as jnp
import pytest

import bioprop
from bioprop.models import MODELS

# Counted by hand from the papers: LeNet-5 with full connections and a 10-way readout; ResNet-20
# 0.27 M (He et al. 2016, table 6), here with projections in the two shortcuts that change shape.
LENET = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (25 * 16 + 1) * 120 + 121 * 84 + 85 * 10
RESNET20 = (
    27 * 16 + 32 + 3 * (2 * 9 * 16 * 16 + 64)
    + 9 * 16 * 32 + 5 * 9 * 32 * 32 + 6 * 64 + 16 * 32 + 64
    + 9 * 32 * 64 + 5 * 9 * 64 * 64 + 6 * 128 + 32 * 64 + 128
    + 65 * 10)
SIZES = {
    'mlp': ((28, 28, 1), 785 * 800 + 801 * 800 + 801 * 10),
    'lenet': ((28, 28, 1), LENET),
    'resnet20': ((32, 32, 3), RESNET20),
    'resnet18': ((32, 32, 3), None),
}


@pytest.mark.parametrize('name', MODELS)
def test_size_and_output(name):
  """Parameters by count, logits [n, 10]."""
  shape, size = SIZES[name]
  out, variables = jax.eval_shape(lambda key: MODELS[name]().init_with_output(
      key, jnp.zeros((2, *shape)), train=True), jax.random.key(0))
  assert out.shape == (2, 10)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert size is None or count == size


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_no_weight_is_left_out(name, rule):
  """describe finds a rule for each kernel."""
  report = bioprop.describe(
      MODELS[name](), rule, jax.ShapeDtypeStruct((2, *SIZES[name][0]), jnp.float32), train=True)
  assert not report.left_out
  assert all(row.rule == rule and row.feedback for row in report if row.path.endswith('kernel'))
