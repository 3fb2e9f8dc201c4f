"""B = W gives backprop's gradient through every lifted transform and way to build a model."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

F = jnp.float64
Dense = functools.partial(nn.Dense, param_dtype=F)
STACK = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}}


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
    'vmap': lambda x: nn.vmap(Block, **STACK, in_axes=None, axis_size=3)()(x, None)[0].sum(0),
    'scan': lambda x: nn.scan(Block, **STACK, length=3)()(x, None)[0],
    'scan_shared': lambda x: nn.scan(Block, variable_broadcast='params',
                                     split_rngs={'params': False}, length=3)()(x, None)[0],
    'scan_remat': lambda x: nn.scan(nn.remat(Block), **STACK, length=2)()(x, None)[0],
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


class Alone(nn.Module):
  """Only the middle."""
  kind: str

  @nn.compact
  def __call__(self, x):
    return KINDS[self.kind](x)


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.some(2)
def test_exact(x64, tools, kind):
  """B = W is backprop, and B is not."""
  with jax.numpy_dtype_promotion('standard'):
    shapes = tools.check_exact(Lifted(kind), draw(4, 6))
  if kind == 'subclass':
    assert set(shapes['feedback']['Scaled_0']) == {'kernel', 'Dense_0'}


@pytest.mark.parametrize('kind, rule', [('subclass', 'fa'), ('scan', 'kp')])
def test_initial_values_are_the_plain_models(x64, kind, rule):
  """Under one key, whatever feedback is drawn, and wherever it is kept."""
  x = draw(4, 6)
  plain = Alone(kind).init(jax.random.key(0), x)['params']
  params = bioprop.plug(Alone(kind), rule).init(jax.random.key(0), x)['params']
  leaves = lambda tree: {jax.tree_util.keystr(path): leaf
                         for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  got = {path: leaf for path, leaf in leaves(params).items() if 'feedback' not in path}
  assert got.keys() == leaves(plain).keys()
  for path, leaf in leaves(plain).items():
    np.testing.assert_array_equal(got[path], leaf)


@pytest.mark.parametrize('kind, rule', [
    ('scan', 'fa'), ('vmap', 'fa'), ('remat_scan', 'fa'), ('scan', 'dfa')])
@pytest.mark.some(2)
def test_copies_have_feedback_of_their_own(x64, kind, rule):
  """No two of a stack's layers share B."""
  feedback = bioprop.plug(Alone(kind), rule).init(jax.random.key(0), draw(4, 6))['feedback']
  (stack,) = jax.tree.leaves(feedback)
  flat = np.asarray(stack).reshape(-1, 36)
  assert len(flat) == (4 if kind == 'remat_scan' else 3)
  assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 5 / 6


@pytest.mark.parametrize('kind', ['remat', 'jit', 'vmap', 'scan', 'scan_shared', 'scan_remat',
                                  'remat_scan', 'share_scope', 'partitioned', 'twice'])
@pytest.mark.some(2)
def test_the_error_reaches_into_transforms(x64, tools, kind):
  """dfa: the first layer's update depends on the error and the middle's feedback alone."""
  model, x, e = bioprop.plug(Lifted(kind), 'dfa'), draw(4, 6), draw(4, 3)
  variables = tools.fill(jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0)))
  sent = jax.jit(lambda p: jax.vjp(
      lambda p: model.apply({**variables, 'params': p}, x), p)[1](e)[0])
  params = variables['params']
  readout = jax.tree.map(lambda w: w * 2 + 1, params['readout'])
  one, two = sent(params), sent({**params, 'readout': readout})
  jax.tree.map(np.testing.assert_array_equal, one['first'], two['first'])
  assert np.any(one['first']['kernel'])
