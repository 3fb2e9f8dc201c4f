"""Where feedback lives: out of the optimiser's reach, in checkpoints, bound, or missing."""
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import bioprop
from bioprop import errors

OPTIMISERS = {
    'adamw': optax.adamw(0.1, weight_decay=0.5),
    'sgd': optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)),
}


class FeedbackState(TrainState):
  """flax's own recipe for collections beside params."""
  feedback: object


@pytest.mark.parametrize('name', ['fa', 'dfa', 'frsf'])
@pytest.mark.parametrize('optimiser', OPTIMISERS)
def test_optimisers_never_touch_frozen_feedback(tools, name, optimiser):
  """Five steps of decay 0.5: W moves, B is bitwise what it was."""
  model = bioprop.plug(tools.Net(), name)
  variables = model.init(jax.random.key(0), tools.x)
  names = {str(path[-1].key) for path, _ in
           jax.tree_util.tree_flatten_with_path(variables['params'])[0]}
  assert names == {'kernel', 'bias'}
  state = FeedbackState.create(apply_fn=model.apply, tx=OPTIMISERS[optimiser], **variables)
  before = jax.tree.map(np.array, state.feedback)

  @jax.jit
  def step(state):
    loss = lambda p: jnp.mean(state.apply_fn(
        {'params': p, 'feedback': state.feedback}, tools.x)**2)
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  with jax.numpy_dtype_promotion('standard'):  # optax's bias correction needs it.
    for _ in range(5):
      state = step(state)
  jax.tree.map(np.testing.assert_array_equal, state.feedback, before)
  moved = np.asarray(state.params['hidden']['kernel'] - variables['params']['hidden']['kernel'])
  assert np.abs(moved).max() > 1e-3


@pytest.mark.parametrize('name', ['fa', 'dfa', 'usf', 'hebb'])
def test_checkpoints_go_both_ways(tools, name):
  """msgpack of the plain model's params into the plugged one, and back."""
  plugged = bioprop.plug(tools.Net(), name)
  plain = tools.Net().init(jax.random.key(1), tools.x)
  variables = plugged.init(jax.random.key(0), tools.x)
  loaded = flax.serialization.from_bytes(
      variables['params'], flax.serialization.to_bytes(plain['params']))
  want = tools.Net().apply(plain, tools.x)
  np.testing.assert_array_equal(plugged.apply({**variables, 'params': loaded}, tools.x), want)
  back = flax.serialization.from_bytes(
      plain['params'], flax.serialization.to_bytes(variables['params']))
  np.testing.assert_array_equal(
      tools.Net().apply({'params': back}, tools.x), plugged.apply(variables, tools.x))


def test_plain_parameters_under_kolen_pollack(tools):
  """They lack B, and the message says where to take it."""
  variables = tools.Net().init(jax.random.key(0), tools.x)
  model = bioprop.plug(tools.Net(), 'kp')
  with pytest.raises(errors.FeedbackMissingError, match="'params', where KolenPollack") as raised:
    model.apply(variables, tools.x)
  typed = {'flax': flax, 'model': model, 'key': jax.random.key(1), 'x': tools.x,
           'params': variables['params']}
  exec(str(raised.value).partition('from init, ')[2].removesuffix('.'), typed)  # The line to type.
  np.testing.assert_array_equal(model.apply({'params': typed['params']}, tools.x),
                                tools.Net().apply(variables, tools.x))


@pytest.mark.parametrize('name', ['fa', 'dfa', 'frsf'])
@pytest.mark.parametrize('mutable', [False, True, ['batch_stats'], ['feedback']])
def test_missing_collection(tools, name, mutable):
  """Never backprop in silence, whatever else is mutable."""
  model = bioprop.plug(tools.Net(), name)
  params = model.init(jax.random.key(0), tools.x)['params']
  with pytest.raises(errors.FeedbackMissingError, match=r"model\.apply\(\{'params': params"):
    model.apply({'params': params}, tools.x, mutable=mutable)


def test_missing_collection_of_parameters_that_are_there(tools):
  """The message has the call that makes feedback for them, which init's own equals in shape."""
  model = bioprop.plug(tools.Net(), 'dfa')
  variables = model.init(jax.random.key(0), tools.x)
  with pytest.raises(errors.FeedbackMissingError, match='already: ') as raised:
    model.apply({'params': variables['params']}, tools.x, mutable=['feedback'])
  line = str(raised.value).partition('already: ')[2].removesuffix('.')
  made = eval(line, {'model': model, 'params': variables['params'], 'x': tools.x,
                     'key': jax.random.key(1)})
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(made['feedback']) == shapes(variables['feedback'])


def test_frozen_feedback_beside_what_learns(tools):
  """pfa's second matrix is in the collection, which a loop may forget."""
  model = bioprop.plug(tools.Net(), 'pfa')
  params = model.init(jax.random.key(0), tools.x)['params']
  with pytest.raises(errors.FeedbackMissingError, match='no feedback.*by init, and carry it'):
    jax.grad(lambda params: model.apply({'params': params}, tools.x).sum())(params)


def test_bound_feedback_serves_loops_that_carry_params(tools):
  """plug(..., variables=) gives the gradients of the collection."""
  model = bioprop.plug(tools.Net(), 'fa')
  variables = model.init(jax.random.key(0), tools.x)
  bound = bioprop.plug(tools.Net(), 'fa', variables=variables)
  want = tools.gradient(model, variables, tools.x)
  jax.tree.map(np.testing.assert_array_equal,
               tools.gradient(bound, {'params': variables['params']}, tools.x), want)
  other = model.init(jax.random.key(9), tools.x)
  rebound = bioprop.plug(bound, 'fa', variables=other)
  got = tools.gradient(rebound, {'params': variables['params']}, tools.x)
  assert np.abs(got['hidden']['kernel'] - want['hidden']['kernel']).max() > 1e-3


def test_nothing_to_bind(tools):
  """Variables of the plain model hold no feedback."""
  with pytest.raises(errors.FeedbackMissingError, match=r"collections \['params'\]"):
    bioprop.plug(tools.Net(), 'fa', variables=tools.Net().init(jax.random.key(0), tools.x))


def test_wrapped_inside_jit(tools):
  """Bound feedback may be traced."""
  model = bioprop.plug(tools.Net(), 'fa')
  variables = jax.jit(model.init)(jax.random.key(0), tools.x)
  inside = jax.jit(lambda v: tools.gradient(
      bioprop.plug(tools.Net(), 'fa', variables=v), {'params': v['params']}, tools.x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               inside(variables), tools.gradient(model, variables, tools.x))


def test_batch_statistics_are_updated_as_ever():
  """mutable=['batch_stats'] returns them and nothing of ours."""

  class Normed(nn.Module):

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(5)(x))))

  x = jax.random.normal(jax.random.key(0), (8, 4)) + 2
  variables = Normed().init(jax.random.key(0), x)
  want = Normed().apply(variables, x, mutable=['batch_stats'])
  for name in ('dfa', 'hebb', 'fa'):
    model = bioprop.plug(Normed(), name)
    ours = model.init(jax.random.key(0), x)
    got = model.apply(ours, x, mutable=['batch_stats'])
    jax.tree.map(np.testing.assert_array_equal, got, want)
