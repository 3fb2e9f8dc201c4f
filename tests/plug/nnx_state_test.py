"""NNX: what install leaves in a model, what uninstall takes out, and what nobody may touch."""
import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import bioprop
from bioprop import errors

pytestmark = pytest.mark.usefixtures('quick')
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


def install(model, rule, seed=1, **kwargs):
  """With a sample, which every rule takes."""
  return bioprop.install(model, rule, nnx.Rngs(seed), X, **kwargs)


def arrays(state):
  """Values by path, as numpy; keys as their data."""
  data = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
  return {path: np.asarray(data(leaf[...])) for path, leaf in nnx.to_flat_state(state)}


def assert_same(one, two):
  """The same paths and the same bits."""
  assert list(one) == list(two)
  for path in one:
    np.testing.assert_array_equal(one[path], two[path], err_msg=str(path))


@pytest.mark.parametrize('rule', bioprop.RULES)
def test_uninstall_leaves_no_trace(rule):
  """Classes, attributes in their order, graphdef, state, and what is computed."""
  model, plain = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
  assert install(model, rule) is model
  assert isinstance(model, Net) and isinstance(model.hidden, nnx.Linear)
  assert (nnx.graphdef(model) == nnx.graphdef(plain)) == (rule == 'bp')
  assert bioprop.uninstall(model) is model
  assert type(model) is Net and type(model.hidden) is nnx.Linear
  for one, two in ((model, plain), (model.hidden, plain.hidden)):
    assert list(vars(one)) == list(vars(two))
  assert nnx.graphdef(model) == nnx.graphdef(plain)
  assert hash(nnx.graphdef(model)) == hash(nnx.graphdef(plain))
  assert_same(arrays(nnx.state(model)), arrays(nnx.state(plain)))
  bioprop.uninstall(model)  # Once more changes nothing.
  assert nnx.graphdef(model) == nnx.graphdef(plain)


def test_plain_gradients_after_uninstall():
  """From the plain model's own compiled program."""
  traces = []

  @nnx.jit
  def run(model):
    traces.append(type(model))
    return nnx.grad(loss)(model)

  want = arrays(run(Net(nnx.Rngs(0))))
  assert_same(arrays(run(bioprop.uninstall(install(Net(nnx.Rngs(0)), 'dfa')))), want)
  assert traces == [Net]


@pytest.mark.parametrize('first', ['dfa', 'kp', 'brsf', 'hebb'])
def test_another_rule_replaces_the_first(first):
  """Nothing of it stays, and no cached trace of it is served."""
  model, once = install(Small(nnx.Rngs(0)), first), install(Small(nnx.Rngs(0)), 'fa')
  before = arrays(gradient(model))
  install(model, 'fa')
  assert nnx.graphdef(model) == nnx.graphdef(once)
  assert_same(arrays(nnx.state(model)), arrays(nnx.state(once)))
  after = arrays(gradient(model))
  assert_same(after, arrays(gradient(once)))
  path = 'hidden', 'kernel'
  assert np.abs(before[path] - after[path]).max() > 1e-4


def test_a_failed_install_leaves_the_plain_model():
  """Not half a rule."""
  model = install(Small(nnx.Rngs(0)), 'usf')
  with pytest.raises(errors.FeedbackMissingError):
    bioprop.install(model, {'hidden': 'usf', 'readout': 'fa'})
  assert nnx.graphdef(model) == nnx.graphdef(Small(nnx.Rngs(0)))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'frsf', 'usf', 'brsf', 'hebb'])
def test_parameters_are_the_plain_models(rule):
  """Paths, types, values and metadata; what else there is has types of its own."""
  model, plain = install(Net(nnx.Rngs(0)), rule), Net(nnx.Rngs(0))
  assert_same(arrays(nnx.state(model, nnx.Param)), arrays(nnx.state(plain, nnx.Param)))
  extra = set(dict(nnx.to_flat_state(nnx.state(model)))) - set(
      dict(nnx.to_flat_state(nnx.state(plain))))
  kinds = {type(dict(nnx.to_flat_state(nnx.state(model)))[path]) for path in extra}
  assert all(issubclass(kind, (bioprop.Feedback, nnx.RngState)) for kind in kinds)
  assert not any(issubclass(kind, nnx.Param) for kind in kinds)


def test_checkpoints_go_both_ways(tmp_path):
  """Orbax, the parameters of one model into the other."""
  plain, plugged = Small(nnx.Rngs(3)), install(Small(nnx.Rngs(0)), 'fa')
  with contextlib.redirect_stderr(io.StringIO()), ocp.StandardCheckpointer() as checkpointer:
    for name, (source, target) in {'in': (plain, plugged), 'out': (plugged, Small(nnx.Rngs(4)))
                                   }.items():
      checkpointer.save(tmp_path / name, nnx.to_pure_dict(nnx.state(source, nnx.Param)))
      checkpointer.wait_until_finished()
      like = nnx.state(target, nnx.Param)
      nnx.replace_by_pure_dict(like, checkpointer.restore(
          tmp_path / name, nnx.to_pure_dict(like)))
      nnx.update(target, like)
      np.testing.assert_array_equal(target(X), source(X))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'frsf'])
def test_optimisers_never_touch_frozen_feedback(rule):
  """Three steps of decay 0.5: W moves, B is bitwise what it was; made before or after install."""
  for early in (False, True):
    model = Small(nnx.Rngs(0))
    make = lambda model=model: nnx.Optimizer(
        model, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
    optimizer = make() if early else None
    install(model, rule)
    optimizer = optimizer or make()
    before, weights = (arrays(nnx.state(model, kind)) for kind in (bioprop.Feedback, nnx.Param))

    @nnx.jit
    def step(model, optimizer):
      optimizer.update(model, nnx.grad(loss)(model))

    with jax.numpy_dtype_promotion('standard'):  # optax's bias correction needs it.
      for _ in range(3):
        step(model, optimizer)
    assert_same(arrays(nnx.state(model, bioprop.Feedback)), before)
    path = 'hidden', 'kernel'
    assert np.abs(arrays(nnx.state(model, nnx.Param))[path] - weights[path]).max() > 1e-2


def test_kolen_pollack_decay(x64):
  """W - B shrinks by exactly (1 - eta lambda) at every step, whatever the data."""
  eta, decay = 0.2, 0.5
  model = bioprop.install(Small(nnx.Rngs(0), param_dtype=jnp.float64), 'kp', nnx.Rngs(1))
  optimizer = nnx.Optimizer(
      model, optax.chain(optax.add_decayed_weights(decay), optax.sgd(eta)), wrt=nnx.Param)
  apart = lambda: {name: np.asarray(layer.kernel[...] - layer.feedback_kernel[...])
                   for name, layer in (('hidden', model.hidden), ('readout', model.readout))}
  start, weights = apart(), np.asarray(model.hidden.kernel[...])

  @nnx.jit
  def step(model, optimizer, x):
    optimizer.update(model, nnx.grad(loss)(model, x))

  for i in range(1, 4):
    with jax.numpy_dtype_promotion('standard'):  # eta and lambda are weakly typed float32.
      step(model, optimizer, jnp.asarray(np.random.RandomState(i).randn(4, 6)))
    for name, difference in apart().items():
      np.testing.assert_allclose(difference, start[name] * (1 - eta * decay)**i, atol=1e-14)
  shrunk = weights * (1 - eta * decay)**3
  assert np.abs(np.asarray(model.hidden.kernel[...]) - shrunk).max() > 1e-3, 'only decay acted'


@pytest.mark.parametrize('rule', ['bp', 'fa', 'dfa', 'brsf', 'kp', 'hebb'])
def test_no_retrace(rule):
  """Neither on step two nor for a second model that is equal."""
  traces = []

  @nnx.jit
  def step(model):
    traces.append(rule)
    grads = nnx.grad(loss)(model)
    nnx.update(model, jax.tree.map(lambda w, g: w - 0.1 * g, nnx.state(model, nnx.Param), grads))

  for seed in (0, 1):
    model = install(Net(nnx.Rngs(seed)), rule, seed=seed)
    for _ in range(2):
      step(model)
  assert len(traces) == 1
  step(install(model, 'bp' if rule == 'usf' else 'usf'))
  assert len(traces) == 2


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf', 'hebb'])
def test_the_forward_pass_is_the_plain_one(rule):
  """Outputs, dropout masks, running statistics and streams, step after step."""
  model, plain = install(Net(nnx.Rngs(0)), rule), Net(nnx.Rngs(0))
  run = nnx.jit(nnx.value_and_grad(loss))
  for _ in range(2):
    assert run(model)[0] == run(plain)[0]
  keep = {path for path, _ in nnx.to_flat_state(nnx.state(plain))}
  got, want = arrays(nnx.state(model)), arrays(nnx.state(plain))
  assert keep <= set(got)
  for path in keep:
    np.testing.assert_array_equal(got[path], want[path], err_msg=str(path))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf', 'hebb'])
def test_inference_with_a_model_that_jit_closes_over(rule):
  """Serving code; the plain outputs, and nothing of the trace stays in the model."""
  model, plain = install(Small(nnx.Rngs(0)), rule), Small(nnx.Rngs(0))
  serve = jax.jit(lambda x: model(x))
  np.testing.assert_array_equal(serve(X), jax.jit(lambda x: plain(x))(X))
  assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(nnx.state(model)))
  assert np.any(gradient(model)['hidden']['kernel'][...])


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf'])
def test_nothing_of_a_trace_stays_in_the_model(rule):
  """Gradients, failures and evaluations: shapes of the state stay, no tracer leaks."""
  model = install(Small(nnx.Rngs(0)), rule)
  shapes = lambda: {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
  before, definition = shapes(), nnx.graphdef(model)
  with jax.checking_leaks():
    nnx.jit(nnx.grad(loss))(model)
    with pytest.raises(TypeError):
      nnx.jit(loss)(model, X[:, :5])  # Fails in the first layer.
    with pytest.raises(TypeError):
      loss(model, X[:, :5])
  assert shapes() == before and nnx.graphdef(model) == definition
  assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize('choice, feedback', [
    ({'hidden': 'fa', '*': 'bp'}, {'hidden': 'kernel'}),
    ({'hidden': 'dfa', '*': 'fa'}, {'hidden': 'error', 'readout': 'kernel'}),
    ({'read*': bioprop.make('fa', rho=1.0), '*': 'usf'}, {'readout': 'kernel'})])
def test_patterns(choice, feedback):
  """Each layer has what its own rule needs; rho=1 is B = W(0)."""
  model = install(Small(nnx.Rngs(0)), choice)
  found = {path[0]: path[1] for path, variable in nnx.to_flat_state(nnx.state(model))
           if type(variable) is bioprop.Feedback}
  assert found == {layer: f'feedback_{name}' for layer, name in feedback.items()}
  if 'read*' in choice:
    np.testing.assert_array_equal(model.readout.feedback_kernel[...], model.readout.kernel[...])
  if choice == {'hidden': 'fa', '*': 'bp'}:  # The readout sends by backprop: all but x is exact.
    for got, want in zip(*(jax.tree.leaves(gradient(m)) for m in (model, Small(nnx.Rngs(0))))):
      np.testing.assert_allclose(got, want, atol=1e-7)


def test_draws():
  """Feedback depends on the seed and the layer's path, and is not correlated with the weights."""
  wide = lambda: nnx.Sequential(*(nnx.Linear(40, 40, rngs=nnx.Rngs(0)) for _ in range(2)))
  drawn = lambda model, rngs: [np.asarray(layer.feedback_kernel[...]).ravel() for layer in
                               bioprop.install(model, bioprop.make('fa', scale=1.0), rngs).layers]
  one, two = drawn(wide(), nnx.Rngs(1))
  np.testing.assert_array_equal(one, drawn(wide(), 1)[0])
  np.testing.assert_array_equal(one, drawn(wide(), nnx.Rngs(feedback=1, params=7))[0])
  np.testing.assert_array_equal(one, drawn(wide(), jax.random.key(1))[0])
  weights = np.asarray(wide().layers[0].kernel[...]).ravel()
  np.testing.assert_allclose(one.std(), weights.std(), rtol=0.1)
  assert np.abs(np.corrcoef([one, two, weights, drawn(wide(), 2)[0]]) - np.eye(4)).max() < 0.15


class Flagged(nnx.Module):
  """Reads a flag."""

  def __init__(self, rngs):
    self.hidden, self.readout = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x, squash):
    return self.readout(jnp.tanh(self.hidden(x)) if squash else self.hidden(x))


@pytest.mark.parametrize('flag', [True, np.bool_(True)])
def test_flags_stay_flags(flag):
  """numpy's too, though it has a shape; a rule that runs the model abstractly must not trace it."""
  model = bioprop.install(Flagged(nnx.Rngs(0)), 'dfa', nnx.Rngs(1), X, flag)
  np.testing.assert_array_equal(model(X, flag), Flagged(nnx.Rngs(0))(X, True))


def test_no_trace_serves_another_plan():
  """Options of the rule, and the nonlinearity that install found, are part of the graphdef."""
  model, plain = (install(Small(nnx.Rngs(0)), bioprop.make('usf', scale=s)) for s in (2.0, 1.0))
  np.testing.assert_allclose(gradient(model)['hidden']['kernel'][...],
                             2 * gradient(plain)['hidden']['kernel'][...], rtol=1e-5)
  one, two = (bioprop.install(Flagged(nnx.Rngs(0)), 'hebb', None, X, flag)
              for flag in (True, False))
  run = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(X, True)))))
  assert np.abs(run(one)['hidden']['kernel'][...] - run(two)['hidden']['kernel'][...]).max() > 1e-4


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf'])
def test_captured_intermediates_are_the_plain_models(rule):
  """nnx.capture instruments classes; ours show what the plain ones show, and stay as they were."""
  model, plain = install(Small(nnx.Rngs(0)), rule), Small(nnx.Rngs(0))
  shown = lambda model: {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.capture(
      model, nnx.Intermediate, method_outputs=nnx.Intermediate)(X)[1])}
  got, want = shown(model), shown(plain)
  assert list(got) == list(want)
  for path in want:
    np.testing.assert_array_equal(got[path][0], want[path][0])
  assert np.any(gradient(model)['hidden']['kernel'][...])
