"""Gated linear networks: which ReLUs have gates, what these see, and models without any."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors


class After(nn.Module):
  """Something between two layers, which may need to know whether it trains."""
  middle: object

  @nn.compact
  def __call__(self, x, train=False):
    h = self.middle(nn.Dense(6, name='hidden')(x), train)
    return nn.Dense(3, name='readout')(h)


class Positive(nn.Module):
  """Gains of each unit that are never below zero: the ReLU of a parameter."""

  @nn.compact
  def __call__(self, h):
    return h * nn.relu(self.param('gain', nn.initializers.ones, h.shape))


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


def plug(model, x, rule='gln', **kwargs):
  """The plugged model and its variables."""
  model = bioprop.plug(model, rule)
  return model, model.init(jax.random.key(0), x, **kwargs)


def shapes(variables):
  """Of the projections, in the ReLUs' order."""
  gates = variables['feedback']['gates']
  return [gates[str(i)].shape for i in range(len(gates))]


@pytest.mark.parametrize('phi, gates', [
    (nn.relu, 1), (nnx.relu, 1), (lambda h: jnp.maximum(h, 0), 1),
    (lambda h: jnp.maximum(0.0, h), 1), (lambda h: jnp.maximum(h, jnp.zeros_like(h)), 1),
    (jax.jit(lambda h: nn.relu(h)), 1), (jax.checkpoint(lambda h: nn.relu(h)), 1),
    (jax.vmap(nn.relu), 1),
    (nn.relu6, 0), (nn.leaky_relu, 0), (nn.gelu, 0), (nn.softplus, 0), (nn.celu, 0), (nn.elu, 0),
    (nn.tanh, 0), (nn.silu, 0), (nn.hard_swish, 0), (lambda h: jnp.clip(h, 0, 6), 0),
    (lambda h: jnp.minimum(jnp.maximum(h, 0), 6), 0), (lambda h: jnp.sqrt(jnp.maximum(h, 0)), 0),
    (lambda h: Positive()(h), 0),
])
def test_what_is_a_relu(phi, gates):
  """Each beside one ReLU, which alone has gates if it is none."""
  both = lambda h, train: phi(h) + nn.relu(h)
  variables = plug(After(both), draw(4, 5))[1]
  assert len(shapes(variables)) == 1 + gates


@pytest.mark.parametrize('norm', [
    lambda h, train: nn.BatchNorm(use_running_average=not train)(h),
    lambda h, train: nn.LayerNorm()(h), lambda h, train: nn.GroupNorm(2)(h),
    lambda h, train: nnx.LayerNorm(6, rngs=nnx.Rngs(0))(h)])
@pytest.mark.parametrize('x', [(4, 5), (4, 3, 5)])
@pytest.mark.some(2)
def test_variances_are_no_relus(norm, x):
  """max(var, 0) stays: as many gates in training as in evaluation."""
  x = draw(*x).astype(jnp.float32)
  model, variables = plug(After(lambda h, train: nn.relu(norm(h, train))), x, train=True)
  assert shapes(variables) == [(5, 6)]
  for train in (True, False):
    assert model.apply(variables, x, train=train, mutable=['batch_stats'])[0].shape[-1] == 3


def test_statistics_are_the_gated_networks():
  """A norm above the gates sees gated activities."""
  x = draw(8, 5).astype(jnp.float32)
  model, variables = plug(
      After(lambda h, train: nn.BatchNorm(use_running_average=not train)(nn.relu(h))), x)
  _, state = model.apply(variables, x, train=True, mutable=['batch_stats'])
  h = x @ variables['params']['hidden']['kernel']
  gated = jnp.where(x @ variables['feedback']['gates']['0'] > 0, h, 0.0)
  np.testing.assert_allclose(state['batch_stats']['BatchNorm_0']['mean'], 0.01 * gated.mean(0),
                             rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('x, middle, shape', [
    ((4, 5), lambda h: nn.relu(h), (5, 6)),
    ((4, 3, 5), lambda h: nn.relu(h), (5, 6)),  # Per position.
    ((4, 3, 5), lambda h: nn.relu(h[:, 0]), (15, 6)),
    ((4, 3, 5), lambda h: nn.relu(h[:, :2]), (5, 6)),  # Resized to two positions.
    ((4, 3, 5), lambda h: nn.relu(h.reshape((4, 3, 2, 3))), (5, 6)),  # Per position, two heads.
    ((4, 8, 8, 2), lambda h: nn.relu(h), (2, 6)),
    ((4, 8, 8, 2), lambda h: nn.relu(h[:, ::3, ::2]), (2, 6)),
    ((4, 8, 8, 2), lambda h: nn.relu(h[:, :1, :1]), (128, 6)),  # One location sees all.
    ((4, 8, 8, 2), lambda h: nn.relu(h.reshape((4, 64, 6))), (128, 384)),
    ((4, 6), lambda h: nn.relu(h.reshape((4, 2, 3))), (6, 6)),
])
@pytest.mark.some(2)
def test_what_the_gates_see(x, middle, shape):
  """The projection's shape; and whatever the gates are, they are no more than gates."""
  x = draw(*x).astype(jnp.float32)
  last = lambda h, train: middle(h).reshape((len(h), -1))
  model, variables = plug(After(last), x)
  assert shapes(variables) == [shape]
  ones = {name: jax.tree.map(jnp.zeros_like, layer)
          for name, layer in variables['params'].items()}
  ones['hidden']['bias'] += 1
  ones['readout']['kernel'] += 1
  opened = model.apply({**variables, 'params': ones}, x)[:, 0]
  units = middle(jnp.ones((*x.shape[:-1], 6))).size / len(x)
  assert opened.tolist() == [round(n) for n in opened.tolist()]
  assert 0 < opened.sum() < units * len(x)


def test_positions_do_not_mix():
  """In a network that acts position by position, the gates do too."""
  x = draw(4, 3, 5).astype(jnp.float32)
  model, variables = plug(After(lambda h, train: nn.relu(h)), x)
  changed = model.apply(variables, x.at[:, 1].add(1.0)) - model.apply(variables, x)
  np.testing.assert_array_equal(jnp.any(changed, (0, 2)), [False, True, False])


def test_outputs_of_any_kind():
  """A dict out, keyword inputs, and the choice of the input that the gates see."""

  class Pair(nn.Module):

    @nn.compact
    def __call__(self, x, *, extra):
      h = nn.relu(nn.Dense(4)(x)) + nn.relu(nn.Dense(4)(extra))
      return {'logits': nn.Dense(3)(h), 'none': None, 'steps': jnp.arange(2)}

  x, extra = draw(4, 5), draw(4, 2)
  for number, rows in ((0, 5), (1, 2)):
    model, variables = plug(Pair(), x, bioprop.make('gln', input=number), extra=extra)
    assert shapes(variables) == [(rows, 4)] * 2
    out = model.apply(variables, x, extra=extra)
    assert out['none'] is None and out['logits'].shape == (4, 3)
  with pytest.raises(errors.UnsupportedLayerError, match=r'2 to choose from.*0: float32 \(4, 5\)'):
    plug(Pair(), x, extra=extra)
  with pytest.raises(errors.UnsupportedLayerError, match='input=2 there are 0'):
    plug(Pair(), x, bioprop.make('gln', input=2), extra=extra)


def scanned(h, train):
  """A loop over layers."""
  return jax.lax.scan(lambda h, w: (nn.relu(h * w), None), h, jnp.ones((2, 4, 6)))[0]


def own_derivative(h, train):
  """A ReLU and more, differentiated by hand."""
  @jax.custom_vjp
  def function(h):
    return nn.relu(h) * 2
  function.defvjp(lambda h: (function(h), None), lambda _, g: (g,))
  return function(h)


@pytest.mark.parametrize('middle, error, words', [
    (lambda h, train: nn.tanh(h), errors.NothingMatchedError, 'no ReLU.*activation=relu'),
    (scanned, errors.UnsupportedLayerError, "inside a 'scan'.*for layer in layers"),
    (lambda h, train: jax.lax.cond(h[0, 0] > 0, nn.relu, lambda h: h, h),
     errors.UnsupportedLayerError, "inside a 'cond'"),
    (lambda h, train: jax.lax.fori_loop(0, h.shape[0], lambda i, h: nn.relu(h), h),
     errors.UnsupportedLayerError, "inside a 'scan'"),
    (own_derivative, errors.UnsupportedLayerError, "inside a 'custom_vjp_call'"),
    (lambda h, train: nn.relu(h.reshape((-1, 3))).reshape(h.shape), errors.UnsupportedLayerError,
     r'\(8, 3\), whose first axis'),
    (lambda h, train: h + nn.relu(h[:, 0])[:, None], errors.UnsupportedLayerError,
     r'\(4,\), whose first axis'),
])
def test_models_that_cannot_be_gated(middle, error, words):
  """Each is told why, and what to type."""
  with pytest.raises(error, match=words):
    plug(After(middle), draw(4, 5))


def test_feedback_of_something_else():
  """Another input size, another number of ReLUs, another rule; no sample; no memory; no option."""
  x = draw(4, 5).astype(jnp.float32)
  relu = lambda h, train: nn.relu(h)
  model, variables = plug(After(relu), x)
  wide = plug(After(relu), draw(4, 6))[1]
  for other, words in (
      ({'gates': wide['feedback']['gates']}, r'\(5, 6\) of the input.*made it as \(6, 6\)'),
      ({'gates': dict.fromkeys('012', variables['feedback']['gates']['0'])}, '1 ReLUs.*had 3'),
      ({'hidden': {}}, 'another rule made it')):
    with pytest.raises(errors.FeedbackMissingError, match=words):
      model.apply({**variables, 'feedback': other}, x)
  with pytest.raises(errors.FeedbackMemoryError, match=r'\(5, 6\).*max_gib=1'):
    plug(After(relu), x, bioprop.make('gln', max_gib=1e-8))
  with pytest.raises(errors.FeedbackMissingError, match='no sample'):
    bioprop.plug(nnx.Sequential(nnx.Linear(5, 6, rngs=nnx.Rngs(0)), nnx.relu), 'gln',
                    nnx.Rngs(1))
  for bad in (-1, 1.0, True, 'x'):
    with pytest.raises(errors.RuleOptionError, match='input='):
      bioprop.make('gln', input=bad)


def test_described():
  """By name, with the model's own paths."""
  report = bioprop.describe(After(lambda h, train: nn.relu(h)), 'gln', draw(4, 5))
  assert {row.rule for row in report} == {'gln'} and len(report) == 4
