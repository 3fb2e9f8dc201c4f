"""NNX: plugged models that train: optimisers, checkpoints, copies, steps in one program."""
import contextlib
import copy
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import bioprop
from bioprop.rules import OF_TIME

X = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)


class Net(nnx.Module):
  """Two layers, a norm, dropout."""

  def __init__(self, rngs, width=6, **kwargs):
    self.hidden = nnx.Linear(6, width, rngs=rngs, **kwargs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.readout = nnx.Linear(width, 3, rngs=rngs, **kwargs)

  def __call__(self, x):
    return self.readout(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class Small(nnx.Module):
  """Two layers."""

  def __init__(self, rngs, **kwargs):
    self.hidden = nnx.Linear(6, 5, rngs=rngs, **kwargs)
    self.readout = nnx.Linear(5, 3, rngs=rngs, **kwargs)

  def __call__(self, x):
    return self.readout(jnp.tanh(self.hidden(x)))


def loss(model, x=X):
  """Its error is no multiple of the output."""
  return jnp.mean(jnp.sin(model(x)))


gradient = nnx.jit(nnx.grad(loss))


@nnx.jit
def step(model, rate=0.1):
  """One step of gradient descent, learned feedback too."""
  grads = nnx.grad(loss)(model)
  nnx.update(model, jax.tree.map(lambda w, g: w - rate * g, nnx.state(model, nnx.Param), grads))


def plugged(model, rule, seed=1, **kwargs):
  """With a sample, which every rule takes."""
  return bioprop.plug(model, rule, nnx.Rngs(seed), X, **kwargs)


def arrays(state):
  """Values by path, as numpy; keys as their data."""
  data = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
  return {path: np.asarray(data(leaf[...])) for path, leaf in nnx.to_flat_state(state)}


def assert_same(one, two):
  """The same paths and the same bits."""
  assert list(one) == list(two)
  for path in one:
    np.testing.assert_array_equal(one[path], two[path], err_msg=str(path))


def assert_same_models(one, two):
  """The same structure and the same bits."""
  assert nnx.graphdef(one) == nnx.graphdef(two)
  assert hash(nnx.graphdef(one)) == hash(nnx.graphdef(two))
  assert_same(arrays(nnx.state(one)), arrays(nnx.state(two)))


def saved(checkpointer, path, model):
  """A checkpoint of all that a model holds."""
  checkpointer.save(path, nnx.to_pure_dict(nnx.state(model)))
  checkpointer.wait_until_finished()


def restored(checkpointer, path, model):
  """The model, with what is in the checkpoint."""
  state = nnx.state(model)
  nnx.replace_by_pure_dict(state, checkpointer.restore(path, nnx.to_pure_dict(state)))
  nnx.update(model, state)
  return model


@pytest.fixture(scope='module')
def checkpointer():
  """Orbax's, which is not quiet."""
  with contextlib.redirect_stderr(io.StringIO()), ocp.StandardCheckpointer() as own:
    yield own


@pytest.mark.slow
@pytest.mark.parametrize('rule', [rule for rule in bioprop.RULES if rule not in OF_TIME])
def test_checkpoints(rule, tmp_path, checkpointer):
  """A model of other seeds that is restored trains on to the same bits."""
  model, other = (plugged(Net(nnx.Rngs(seed)), rule, seed) for seed in (0, 5))
  step(model)
  saved(checkpointer, tmp_path / 'all', model)
  restored(checkpointer, tmp_path / 'all', other)
  assert_same_models(other, model)
  before = arrays(nnx.state(model, nnx.Param))
  for one in (model, other):
    step(one)
  assert_same_models(other, model)
  path = 'readout', 'kernel'
  assert np.abs(arrays(nnx.state(model, nnx.Param))[path] - before[path]).max() > 1e-4


@pytest.mark.slow
def test_checkpoints_of_plain_models(tmp_path, checkpointer):
  """Their parameters load into plugged ones, and back."""
  plain, other = Small(nnx.Rngs(3)), plugged(Small(nnx.Rngs(0)), 'fa')
  for name, (source, target) in {'in': (plain, other), 'out': (other, Small(nnx.Rngs(4)))
                                 }.items():
    checkpointer.save(tmp_path / name, nnx.to_pure_dict(nnx.state(source, nnx.Param)))
    checkpointer.wait_until_finished()
    like = nnx.state(target, nnx.Param)
    nnx.replace_by_pure_dict(like, checkpointer.restore(tmp_path / name, nnx.to_pure_dict(like)))
    nnx.update(target, like)
    np.testing.assert_array_equal(target(X), source(X))


COPIES = {'copy.deepcopy': copy.deepcopy, 'nnx.clone': nnx.clone,
          'pickle': lambda model: pickle.loads(pickle.dumps(model)),
          'nnx.split': lambda model: nnx.merge(*jax.device_get(nnx.split(model)), copy=True)}


@pytest.mark.parametrize('rule', ['dfa', 'kp', 'brsf', 'align_ada'])
def test_copies_train_on(rule):
  """As the model does, to the same bits; it does not notice."""
  if rule == 'brsf' and jax.version.__version_info__ < (0, 9):
    pytest.skip('jax 0.8 cannot pickle random keys, which nnx.Dropout has too')
  model = plugged(Small(nnx.Rngs(0)), rule)
  step(model)
  before = arrays(nnx.state(model))
  copies = {name: make(model) for name, make in COPIES.items()}
  for own in copies.values():
    step(own)
  assert_same(arrays(nnx.state(model)), before)
  step(model)
  for own in copies.values():
    assert_same_models(own, model)
  assert np.abs(arrays(nnx.state(model))['hidden', 'kernel']
                - before['hidden', 'kernel']).max() > 1e-5


@pytest.mark.parametrize('rule', ['dfa', 'kp', 'brsf'])
def test_training_inside_of_a_scan(rule):
  """Steps over a model's pieces in one program of JAX's: the weights of steps one by one."""
  model, other = (plugged(Small(nnx.Rngs(0)), rule) for _ in range(2))
  definition, state = nnx.split(other)

  def run(state, _):
    own = nnx.merge(definition, state, copy=True)
    step(own)
    return nnx.state(own), None

  nnx.update(other, jax.jit(lambda state: jax.lax.scan(run, state, None, 3)[0])(state))
  for _ in range(3):
    step(model)
  one, two = (arrays(nnx.state(m)) for m in (model, other))
  for path, leaf in one.items():
    np.testing.assert_allclose(two[path], leaf, rtol=1e-5, atol=1e-6, err_msg=str(path))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'align_ada'])
def test_optimisers_never_touch_frozen_feedback(rule):
  """Three steps of decay 0.5: W moves, B is bitwise what it was; made before or after plugging."""
  for early in (False, True):
    model = Small(nnx.Rngs(0))
    make = lambda model=model: nnx.Optimizer(
        model, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
    optimizer = make() if early else None
    plugged(model, rule)
    optimizer = optimizer or make()
    before, weights = (arrays(nnx.state(model, kind)) for kind in (bioprop.Feedback, nnx.Param))

    @nnx.jit
    def update(model, optimizer):
      optimizer.update(model, nnx.grad(loss)(model))

    with jax.numpy_dtype_promotion('standard'):  # optax's bias correction needs it.
      for _ in range(3):
        update(model, optimizer)
    assert_same(arrays(nnx.state(model, bioprop.Feedback)), before)
    path = 'hidden', 'kernel'
    assert np.abs(arrays(nnx.state(model, nnx.Param))[path] - weights[path]).max() > 1e-2


@pytest.mark.slow
def test_kolen_pollack_decay(x64):
  """W - B shrinks by exactly (1 - eta lambda) at every step, whatever the data."""
  eta, decay = 0.2, 0.5
  model = bioprop.plug(Small(nnx.Rngs(0), param_dtype=jnp.float64), 'kp', nnx.Rngs(1))
  optimizer = nnx.Optimizer(
      model, optax.chain(optax.add_decayed_weights(decay), optax.sgd(eta)), wrt=nnx.Param)
  apart = lambda: {name: np.asarray(layer.kernel[...] - layer.feedback_kernel[...])
                   for name, layer in (('hidden', model.hidden), ('readout', model.readout))}
  start, weights = apart(), np.asarray(model.hidden.kernel[...])

  @nnx.jit
  def update(model, optimizer, x):
    optimizer.update(model, nnx.grad(loss)(model, x))

  for i in range(1, 4):
    with jax.numpy_dtype_promotion('standard'):  # eta and lambda are weakly typed float32.
      update(model, optimizer, jnp.asarray(np.random.RandomState(i).randn(4, 6)))
    for name, difference in apart().items():
      np.testing.assert_allclose(difference, start[name] * (1 - eta * decay)**i, atol=1e-14)
  shrunk = weights * (1 - eta * decay)**3
  assert np.abs(np.asarray(model.hidden.kernel[...]) - shrunk).max() > 1e-3, 'only decay acted'


@pytest.mark.parametrize('rule', ['bp', 'fa', 'dfa', 'brsf', 'kp', 'hebb'])
@pytest.mark.some(2)
def test_no_retrace(rule):
  """Neither on step two nor for a second model that is equal."""
  traces = []

  @nnx.jit
  def run(model):
    traces.append(rule)
    step(model)

  for seed in (0, 1):
    model = plugged(Net(nnx.Rngs(seed)), rule, seed=seed)
    for _ in range(2):
      run(model)
  assert len(traces) == 1
  run(plugged(bioprop.unplug(model), 'bp' if rule == 'usf' else 'usf'))
  assert len(traces) == 2


@pytest.mark.parametrize('rule', ['brsf', 'mirror'])
def test_streams(rule):
  """What is drawn at each call is another at the next, and the same from the same stream."""
  model = plugged(Small(nnx.Rngs(0)), rule)
  again = nnx.clone(model)
  name = 'kernel' if rule == 'brsf' else 'feedback_kernel'
  drawn = lambda model: np.asarray(gradient(model)['hidden'][name][...])
  one, two = drawn(model), drawn(model)
  assert model.bioprop_stream.count[...] == 2 and np.abs(one - two).max() > 1e-4
  np.testing.assert_array_equal(drawn(again), one)
