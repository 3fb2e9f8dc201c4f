"""Direct feedback alignment: positions, unmatched errors, and feedback that is too large."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors

F = jnp.float64


class Sequence(nn.Module):
  """Two layers at each position, or one that reads the whole sequence."""
  pool: bool = False

  @nn.compact
  def __call__(self, x):
    h = nn.tanh(nn.Dense(5, param_dtype=F, name='hidden')(x))
    return nn.Dense(3, param_dtype=F, name='readout')(h.mean(1) if self.pool else h)


def setting(model, shape):
  """Plugged model, variables, x."""
  plugged = bioprop.plug(model, 'dfa')
  x = jnp.asarray(np.random.RandomState(0).randn(*shape))
  return plugged, plugged.init(jax.random.key(0), x), x


def pulled(plugged, variables, x, e):
  """Pseudogradients for a given error at the output."""
  run = lambda p, x: plugged.apply({**variables, 'params': p}, x)
  return jax.vjp(run, variables['params'], x)[1](jnp.asarray(e))


@pytest.mark.parametrize('pool', [False, True])
def test_positions(x64, pool):
  """Errors [n, T, C] go to their own positions; an error [n, C] to all of a sequence."""
  plugged, variables, x = setting(Sequence(pool), (2, 4, 6))
  e = np.random.RandomState(1).randn(*((2, 3) if pool else (2, 4, 3)))
  got, got_x = pulled(plugged, variables, x, e)
  p, b = jax.tree.map(np.asarray, (variables['params'], variables['feedback']))
  a = np.tanh(np.asarray(x) @ p['hidden']['kernel'] + p['hidden']['bias'])
  if pool:
    above = (e @ b['readout']['error'])[:, None, :] / 4  # The mean over positions is JAX's.
    below = (e @ b['hidden']['error']).reshape(2, 4, 6)
    readout = np.einsum('nh,nc->hc', a.mean(1), e)
  else:
    above, below = e @ b['readout']['error'], e @ b['hidden']['error']
    readout = np.einsum('nth,ntc->hc', a, e)
  delta = above * (1 - a**2)
  close = dict(rtol=1e-12, atol=1e-13)
  np.testing.assert_allclose(
      got['hidden']['kernel'], np.einsum('ntx,nth->xh', np.asarray(x), delta), **close)
  np.testing.assert_allclose(got['hidden']['bias'], delta.sum((0, 1)), **close)
  np.testing.assert_allclose(got['readout']['kernel'], readout, **close)
  np.testing.assert_allclose(got_x, below, **close)


def test_hidden_layers_do_not_read_the_weights_above(x64):
  """Another readout, the same error: the same update below, another under fa's B = W."""
  plugged, variables, x = setting(Sequence(), (2, 4, 6))
  e = np.random.RandomState(1).randn(2, 4, 3)
  other = {**variables['params'], 'readout': jax.tree.map(
      lambda w: -3 * w + 1, variables['params']['readout'])}
  one, _ = pulled(plugged, variables, x, e)
  two, _ = pulled(plugged, {**variables, 'params': other}, x, e)
  np.testing.assert_array_equal(one['hidden']['kernel'], two['hidden']['kernel'])
  plain = lambda p: jax.vjp(lambda p: Sequence().apply({'params': p}, x), p)[1](jnp.asarray(e))[0]
  assert np.abs(plain(variables['params'])['hidden']['kernel']
                - plain(other)['hidden']['kernel']).max() > 0.1


def test_shared_over_locations(x64):
  """spatial='shared': one signal for all locations of an image."""

  class Image(nn.Module):

    @nn.compact
    def __call__(self, x):
      h = nn.tanh(nn.Conv(5, (1, 1), param_dtype=F, name='hidden')(x))
      return nn.Dense(3, param_dtype=F, name='readout')(
          nn.Conv(4, (1, 1), param_dtype=F, name='middle')(h).mean((1, 2)))

  plugged = bioprop.plug(Image(), bioprop.make('dfa', spatial='shared'))
  x = jnp.asarray(np.random.RandomState(0).randn(2, 3, 4, 6))
  variables = plugged.init(jax.random.key(0), x)
  e = np.random.RandomState(1).randn(2, 3)
  got, _ = pulled(plugged, variables, x, e)
  p, b = jax.tree.map(np.asarray, (variables['params'], variables['feedback']))
  assert b['middle']['error'].shape == (3, 5)
  a = np.tanh(np.asarray(x) @ p['hidden']['kernel'][0, 0] + p['hidden']['bias'])
  delta = (e @ b['middle']['error'])[:, None, None, :] * (1 - a**2)
  np.testing.assert_allclose(got['hidden']['kernel'][0, 0],
                             np.einsum('nijx,nijh->xh', np.asarray(x), delta), rtol=1e-12)


class NoBatch(nn.Module):
  """A layer whose input has no batch."""

  @nn.compact
  def __call__(self, x):
    pooled = jnp.tile(x.mean(0, keepdims=True), (3, 1))
    return nn.Dense(2)(x + nn.Dense(6)(pooled).sum(0, keepdims=True))


@pytest.mark.parametrize('samples', [1, 4])
def test_layers_without_a_batch_are_refused(samples):
  """An input [3, 6] and an error [n, 2]: which sample is which? One sample would fit anything."""
  with pytest.raises(errors.ErrorShapeError,
                     match=rf"'Dense_1/kernel'.*\(3, 6\).*\({samples}, 2\)"):
    bioprop.plug(NoBatch(), 'dfa').init(jax.random.key(0), jnp.ones((samples, 6)))


def test_other_sequence_lengths_are_refused(x64):
  """Feedback to 4 positions cannot serve 3."""
  plugged, variables, x = setting(Sequence(True), (2, 4, 6))
  with pytest.raises(errors.ErrorShapeError, match='another size'):
    pulled(plugged, variables, x[:, :3], np.ones((2, 3)))
  per_position, variables, x = setting(Sequence(), (2, 4, 6))
  assert pulled(per_position, variables, x[:, :3], np.ones((2, 3, 3)))[1].shape == (2, 3, 6)


class Image(nn.Module):
  """Two convolutions whose inputs have locations, and a readout whose input has none."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), name='lower')(x)
    x = nn.Conv(8, (3, 3), name='upper')(nn.relu(x))
    return nn.Dense(10, name='readout')(x.mean((1, 2)))


# Of either convolution: 10 outputs, 40 x 40 locations of 8 channels, float32.
IMAGES = jax.ShapeDtypeStruct((2, 40, 40, 8), jnp.float32)
EACH_GIB = 10 * 12800 * 4 / 2**30


def refused(rule, what):
  """The paragraph with which `what` refuses feedback of too many bytes."""
  with pytest.raises(errors.FeedbackMemoryError) as caught:
    what(bioprop.make('dfa', **rule))
  return str(caught.value)


def described(rule):
  """Shapes of the feedback by layer."""
  return {row.path: row.feedback for row in bioprop.describe(Image(), rule, IMAGES)}


def initialised(rule):
  """Abstractly, as one plans a run."""
  return jax.eval_shape(bioprop.plug(Image(), rule).init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize('what', [described, initialised])
def test_feedback_beyond_the_bound_is_refused_with_the_line_to_type(what):
  """Layer, shape, size and both ways out."""
  message = refused({'max_gib': EACH_GIB * 0.99}, what)
  for words in ("'lower'", 'float32 (10, 12800)', f'{EACH_GIB:.3g} GiB', '(2, 40, 40, 8)',
                "bioprop.make('dfa', spatial='shared')", '--config.rule_options.spatial=shared',
                f'{EACH_GIB / 1600:.3g} GiB', 'max_gib=1', '--config.rule_options.max_gib=1'):
    assert words in message
  assert '\n' not in message


@pytest.mark.parametrize('what', [described, initialised])
def test_the_bound_itself_is_allowed_and_so_is_what_the_message_says(what):
  """Exactly as large, or shared."""
  what(bioprop.make('dfa', max_gib=EACH_GIB))
  what(bioprop.make('dfa', max_gib=EACH_GIB * 0.99, spatial='shared'))
  what(bioprop.make('dfa', max_gib=1))


def test_the_default_bound_is_one_gib_of_each_layer():
  """30 GiB in one layer is refused by default; many layers of 0.4 MiB are not added up."""
  large = jax.ShapeDtypeStruct((2, 10000, 10000, 8), jnp.float32)
  message = refused({}, lambda rule: bioprop.describe(Image(), rule, large))
  assert '29.8 GiB' in message and 'max_gib allows 1 GiB' in message and 'max_gib=30' in message
  assert described(bioprop.make('dfa'))['upper/kernel'] == (10, 12800)


def test_nothing_is_drawn_before_it_is_refused(monkeypatch):
  """In an init that is no dry run."""
  drawn = []
  normal = jax.random.normal
  monkeypatch.setattr(jax.random, 'normal', lambda key, shape=(), dtype=float: (
      drawn.append(shape), normal(key, shape, dtype))[1])
  x = jnp.ones((2, 40, 40, 8))
  model = bioprop.plug(Image(), bioprop.make('dfa', max_gib=EACH_GIB * 0.99))
  with pytest.raises(errors.FeedbackMemoryError):
    model.init(jax.random.key(0), x)
  assert (10, 12800) not in drawn
  bioprop.plug(Image(), bioprop.make('dfa')).init(jax.random.key(0), x)
  assert (10, 12800) in drawn


def test_feedback_that_sharing_cannot_shrink_is_only_told_of_the_bound():
  """A Dense layer has no locations; nor helps spatial='shared' where it is chosen already."""
  x = jax.ShapeDtypeStruct((2, 9), jnp.float32)
  dense = lambda rule: bioprop.describe(nn.Dense(10), rule, x)
  for what, options in ((dense, {}), (described, {'spatial': 'shared'})):
    message = refused({'max_gib': 1e-9, **options}, what)
    assert 'shared' not in message and "bioprop.make('dfa', max_gib=1)" in message


@pytest.mark.parametrize('value', [-1.0, float('inf'), 'much', True])
def test_bounds_that_are_no_bounds(value):
  """Refused when the rule is made."""
  with pytest.raises(errors.RuleOptionError, match='max_gib'):
    bioprop.make('dfa', max_gib=value)
