"""align_ada in recurrent networks as the authors' code has it."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.models import MLP

RNG = np.random.RandomState(0)


@pytest.mark.slow
@pytest.mark.parametrize('inside, remat', [(False, False), (True, False), (True, True)])
@pytest.mark.usefixtures('x64')
def test_without_the_same_time_error(inside, remat):
  """As in the authors' code: a step's weights hear of later steps through the state alone.

  Written out as a Python loop at initialisation, where the twin is the network itself: the readout
  sees the state that frozen weights make of the last one. The readout, inside the scan or behind
  it, learns as ever.
  """
  x = jnp.asarray(RNG.randn(3, 5, 2))

  class Cell(nn.RNNCellBase):

    @nn.compact
    def __call__(self, state, x):
      dense = lambda n, name: nn.Dense(n, name=name, use_bias=False, param_dtype=jnp.float64)
      state = nn.tanh(dense(4, 'input')(x) + dense(4, 'recurrent')(state))
      return state, dense(1, 'out')(state) if inside else state

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
      del rng
      return jnp.zeros((input_shape[0], 4))

    @property
    def num_feature_axes(self):
      return 1

  class Model(nn.Module):

    @nn.compact
    def __call__(self, x):
      out = nn.RNN((nn.remat(Cell) if remat else Cell)(name='cell'))(x)
      return out if inside else nn.Dense(1, use_bias=False, name='out',
                                         param_dtype=jnp.float64)(out)

  def loop(params):
    step = lambda p, s, x: jnp.tanh(x @ p['input']['kernel'] + s @ p['recurrent']['kernel'])
    fixed, state, total = jax.lax.stop_gradient(params), jnp.zeros((3, 4)), 0.
    for t in range(5):
      total += jnp.sum(jnp.sin(step(fixed, state, x[:, t]) @ params['out']['kernel']))
      state = step(params, state, x[:, t])
    return total

  model = bioprop.plug(Model(), bioprop.make('align_ada', same_time_error=False))
  variables = model.init(jax.random.key(0), x)
  params = variables.pop('params')
  loss = lambda p: jnp.sum(jnp.sin(model.apply({'params': p, **variables}, x)))
  flat = lambda tree: {**tree['cell'], **{k: v for k, v in tree.items() if k != 'cell'}}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
               flat(jax.jit(jax.grad(loss))(params)), jax.grad(loop)(flat(params)))


@pytest.mark.slow
def test_without_scans_the_option_changes_nothing():
  """And it is a truth value."""
  x = jnp.asarray(RNG.randn(3, 4), jnp.float32)

  def gradient(same):
    model = bioprop.plug(MLP(hidden=(7,)), bioprop.make('align_ada', same_time_error=same))
    variables = model.init(jax.random.key(0), x)
    params = variables.pop('params')
    return jax.grad(lambda p: model.apply({'params': p, **variables}, x).sum())(params)

  jax.tree.map(np.testing.assert_array_equal, gradient(True), gradient(False))
  with pytest.raises(errors.RuleOptionError, match='one of: True, False'):
    bioprop.make('align_ada', same_time_error='no')
