"""B = W gives backprop's gradient through every lifted transform and way to build a model."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors

pytestmark = pytest.mark.usefixtures('quick')

F = jnp.float64
Dense = functools.partial(nn.Dense, param_dtype=F)
CARRY = {'params': 0, 'feedback': 0, 'ports': 0}
SPLIT = {'params': True, 'feedback': True}


class Block(nn.Module):
  """Residual, callable as a scan's body."""
  width: int = 6

  @nn.compact
  def __call__(self, x, _=None):
    return x + nn.tanh(Dense(self.width)(x)), None


class Tanh(nn.Module):
  """One layer, one argument."""

  @nn.compact
  def __call__(self, x):
    return nn.tanh(Dense(6)(x))


class Scaled(nn.Dense):
  """Overrides __call__, calls super's, has a parameter and a layer of its own."""

  @nn.compact
  def __call__(self, x):
    h = nn.tanh(Dense(6)(x))
    gain = lambda y: y * self.param('gain', nn.initializers.normal(1.0), (1, 1), F)
    return gain(super().__call__(h))


class SetUp(nn.Module):
  """Submodules in lists and dicts, made in setup."""

  def setup(self):
    self.blocks = [{'a': Dense(6), 'b': [Dense(6), nn.tanh]} for _ in range(2)]

  def __call__(self, x):
    for block in self.blocks:
      for layer in (block['a'], *block['b']):
        x = layer(x)
    return x


class LowRank(nn.Module):
  """Shares the scope of the layer that it adapts."""
  base: nn.Module

  @nn.compact
  def __call__(self, x):
    nn.share_scope(self, self.base)
    a, b = (self.param(name, nn.initializers.normal(1.0), shape, F)
            for name, shape in (('a', (6, 2)), ('b', (2, 6))))
    return nn.tanh(self.base(x) + x @ a @ b)




KINDS = {
    'twice': lambda x: (lambda d: nn.tanh(d(nn.tanh(d(x)))))(Dense(6)),
    'remat': lambda x: nn.remat(Block)()(x)[0],
    'remat_policy': lambda x: nn.remat(
        Block, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)()(x)[0],
    'jit': lambda x: nn.jit(Block)()(x)[0],
    'vmap': lambda x: nn.vmap(Block, variable_axes=CARRY, split_rngs=SPLIT, in_axes=None,
                              axis_size=3)()(x, None)[0].sum(0),
    'scan': lambda x: nn.scan(Block, variable_axes=CARRY, split_rngs=SPLIT, length=3)()(
        x, None)[0],
    'scan_shared': lambda x: nn.scan(
        Block, variable_broadcast=('params', 'feedback'), variable_axes={'ports': 0},
        split_rngs={'params': False}, length=3)()(x, None)[0],
    'scan_remat': lambda x: nn.scan(nn.remat(Block), variable_axes=CARRY, split_rngs=SPLIT,
                                    length=2)()(x, None)[0],
    'remat_scan': lambda x: nn.remat_scan(Tanh, lengths=(2, 2))()(x),
    'subclass': lambda x: nn.tanh(Scaled(6, param_dtype=F)(x)),
    'setup': lambda x: SetUp()(x),
    'sequential': lambda x: nn.Sequential([Dense(6), nn.tanh, Block()])(x)[0],
    'checkpointed_norms': lambda x: functools.partial(
        nn.BatchNorm, use_running_average=False, param_dtype=F)()(Block()(x)[0]),
    'dropout': lambda x: nn.Dropout(0.3, deterministic=False)(Block()(x)[0]),
    'partitioned': lambda x: nn.tanh(Dense(6, kernel_init=nn.with_partitioning(
        nn.initializers.lecun_normal(), ('in', 'out')))(x)),
    'share_scope': lambda x: LowRank(Dense(6))(x),
}


class Lifted(nn.Module):
  """Something in the middle."""
  kind: str

  @nn.compact
  def __call__(self, x):
    return Dense(3, name='readout')(KINDS[self.kind](nn.tanh(Dense(6, name='first')(x))))


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


@pytest.mark.parametrize('kind', KINDS)
def test_exact(x64, tools, kind):
  """B = W is backprop; B is not; the initial values are the plain model's."""
  with jax.numpy_dtype_promotion('standard'):
    variables = tools.check_exact(Lifted(kind), draw(4, 6))
  if kind == 'subclass':
    assert set(variables['feedback']['Scaled_0']) == {'kernel', 'Dense_0'}


def test_initial_values_under_one_key(x64):
  """A parameter that is made after the layer's feedback keeps its value."""
  x = draw(4, 6)
  plain = Lifted('subclass').init(jax.random.key(0), x)['params']
  for rule in ('fa', 'dfa', 'frsf'):
    params = bioprop.wrap(Lifted('subclass'), rule).init(jax.random.key(0), x)['params']
    jax.tree.map(np.testing.assert_array_equal, params, plain)


@pytest.mark.parametrize('kind', ['scan', 'vmap', 'remat_scan'])
def test_copies_have_feedback_of_their_own(x64, kind):
  """No two of a scan's layers share B."""
  feedback = bioprop.wrap(Lifted(kind), 'fa').init(jax.random.key(0), draw(4, 6))['feedback']
  stack = next(v for k, v in feedback.items() if k not in ('first', 'readout'))
  flat = np.asarray(jax.tree.leaves(stack)[0]).reshape(-1, 36)
  assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 5 / 6


@pytest.mark.parametrize('kind', ['remat', 'jit', 'vmap', 'scan', 'scan_shared', 'scan_remat',
                                  'remat_scan', 'share_scope', 'partitioned', 'twice'])
def test_the_error_reaches_into_transforms(x64, kind):
  """dfa: the first layer's update depends on the error and the middle's feedback alone."""
  model, x = bioprop.wrap(Lifted(kind), 'dfa'), draw(4, 6)
  variables = model.init(jax.random.key(0), x)
  e = draw(4, 3)
  sent = lambda p: jax.vjp(lambda p: model.apply({**variables, 'params': p}, x), p)[1](e)[0]
  params = variables['params']
  readout = jax.tree.map(lambda w: w * 2 + 1, params['readout'])
  one, two = sent(params), sent({**params, 'readout': readout})
  jax.tree.map(np.testing.assert_array_equal, one['first'], two['first'])
  assert np.any(one['first']['kernel'])


class Bare(nn.Module):
  """A scan that knows nothing of feedback."""

  @nn.compact
  def __call__(self, x):
    x, _ = nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)()(
        x, None)
    return Dense(3)(x)


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'frsf', 'hebb', 'brsf'])
def test_a_scan_without_the_collections_is_refused(x64, rule):
  """The message has the line to type."""
  model, x = bioprop.wrap(Bare(), rule), draw(4, 6)

  def run():
    variables = model.init(jax.random.key(0), x)
    model.apply(variables, x, rngs={'feedback': jax.random.key(0)})

  error, words = {
      'brsf': (errors.FeedbackMissingError, 'split_rngs')}.get(
          rule, (errors.LiftedTransformError, 'variable_axes'))
  with pytest.raises(error, match=words):
    run()


@pytest.mark.parametrize('rule', ['usf', 'kp', 'bp'])
def test_a_scan_without_the_collections_serves_other_rules(x64, tools, rule):
  """Rules that keep nothing, or keep it in params."""
  model, x = bioprop.wrap(Bare(), rule), draw(4, 6)
  grads = tools.gradient(model, model.init(jax.random.key(0), x), x)
  assert all(np.any(g) for g in jax.tree.leaves(grads))
