"""NNX: what plug leaves in a model, what unplug takes out, and what nobody may touch."""
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize('rule', [rule for rule in bioprop.RULES if rule not in OF_TIME])
@pytest.mark.some(3)
def test_uninstall_leaves_no_trace(rule):
  """Classes, attributes in their order, graphdef, state; backprop leaves a model as it is."""
  model, plain = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
  assert plugged(model, rule) is model
  assert isinstance(model, Net) and isinstance(model.hidden, nnx.Linear)
  assert (nnx.graphdef(model) == nnx.graphdef(plain)) == (rule == 'bp')
  assert bioprop.unplug(model) is model
  assert type(model) is Net and type(model.hidden) is nnx.Linear
  for one, two in ((model, plain), (model.hidden, plain.hidden)):
    assert list(vars(one)) == list(vars(two))
  assert_same_models(model, plain)
  bioprop.unplug(model)  # Once more changes nothing.
  assert_same_models(model, plain)


def test_uninstall_of_a_model_around_a_plugged_one():
  """All of it goes, learned feedback too."""
  outer = nnx.Sequential(plugged(Small(nnx.Rngs(0)), 'kp'), jnp.tanh)
  assert_same_models(bioprop.unplug(outer), nnx.Sequential(Small(nnx.Rngs(0)), jnp.tanh))


def test_plain_gradients_after_uninstall():
  """From the plain model's own compiled program."""
  traces = []

  @nnx.jit
  def run(model):
    traces.append(type(model))
    return nnx.grad(loss)(model)

  want = arrays(run(Net(nnx.Rngs(0))))
  assert_same(arrays(run(bioprop.unplug(plugged(Net(nnx.Rngs(0)), 'dfa')))), want)
  assert traces == [Net]


@pytest.mark.parametrize('first', ['dfa', 'kp', 'brsf', 'align_ada'])
def test_another_rule_after_the_first(first):
  """Nothing of it stays, and no cached trace of it is served."""
  model, once = plugged(Small(nnx.Rngs(0)), first), plugged(Small(nnx.Rngs(0)), 'fa')
  before = arrays(gradient(model))
  plugged(bioprop.unplug(model), 'fa')
  assert_same_models(model, once)
  after = arrays(gradient(model))
  assert_same(after, arrays(gradient(once)))
  path = 'hidden', 'kernel'
  assert np.abs(before[path] - after[path]).max() > 1e-4


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'frsf', 'usf', 'brsf', 'hebb', 'align_ada', 'gln'])
def test_parameters_are_the_plain_models(rule):
  """Paths, types, values and metadata; what else there is has types of its own."""
  model, plain = plugged(Net(nnx.Rngs(0)), rule), Net(nnx.Rngs(0))
  own, state = (dict(nnx.to_flat_state(nnx.state(m))) for m in (model, plain))
  assert_same(arrays(nnx.state(model, nnx.Param)), arrays(nnx.state(plain, nnx.Param)))
  kinds = {type(own[path]) for path in set(own) - set(state)}
  assert all(issubclass(kind, (bioprop.Feedback, nnx.RngState)) for kind in kinds)
  assert (bioprop.Feedback in kinds) == (rule not in ('usf', 'brsf', 'hebb'))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf', 'hebb', 'kp', 'align_ada'])
@pytest.mark.some(2)
def test_the_forward_pass_is_the_plain_one(rule):
  """Outputs, dropout masks, running statistics and streams, step after step."""
  model, plain = plugged(Net(nnx.Rngs(0)), rule), Net(nnx.Rngs(0))
  run = nnx.jit(nnx.value_and_grad(loss))
  for _ in range(2):
    assert run(model)[0] == run(plain)[0]
    assert loss(model) == loss(plain)
  keep = {path for path, _ in nnx.to_flat_state(nnx.state(plain))}
  got, want = arrays(nnx.state(model)), arrays(nnx.state(plain))
  assert keep <= set(got)
  for path in keep:
    np.testing.assert_array_equal(got[path], want[path], err_msg=str(path))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf', 'kp'])
def test_inference_with_a_model_that_jit_closes_over(rule):
  """Serving code; the plain outputs, and nothing of the trace stays in the model."""
  model, plain = plugged(Small(nnx.Rngs(0)), rule), Small(nnx.Rngs(0))
  serve = jax.jit(lambda x: model(x))
  np.testing.assert_array_equal(serve(X), jax.jit(lambda x: plain(x))(X))
  assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(nnx.state(model)))
  assert np.any(gradient(model)['hidden']['kernel'][...])


@pytest.mark.parametrize('rule', ['fa', 'brsf'])
def test_state_of_another_trace_is_refused(rule):
  """As with the plain model, and nothing of the trace stays in it."""
  for model in (Net(nnx.Rngs(0)), plugged(Net(nnx.Rngs(0)), rule)):
    with pytest.raises(flax.errors.TraceContextError):
      jax.jit(lambda x, model=model: model(x))(X)
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf'])
def test_nothing_of_a_trace_stays_in_the_model(rule):
  """Gradients, failures and evaluations: shapes of the state stay, no tracer leaks."""
  model = plugged(Small(nnx.Rngs(0)), rule)
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


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf', 'hebb'])
def test_plain_calls_cost_nothing(rule, monkeypatch):
  """Of concrete arrays nothing is traced, and the model's graph is not walked."""
  model, plain = plugged(Small(nnx.Rngs(0)), rule), Small(nnx.Rngs(0))
  want = plain(X)

  def refuse(*args, **kwargs):
    raise AssertionError('walks the graph')

  for name in ('iter_graph', 'split', 'state', 'merge', 'graphdef'):
    monkeypatch.setattr(nnx, name, refuse)
  monkeypatch.setattr(jax, 'make_jaxpr', refuse)
  np.testing.assert_array_equal(model(X), want)


@pytest.mark.parametrize('choice, feedback', [
    ({'hidden': 'fa', '*': 'bp'}, {'hidden': 'kernel'}),
    ({'hidden': 'dfa', '*': 'fa'}, {'hidden': 'error', 'readout': 'kernel'}),
    ({'hidden/kernel': 'dfa', 'readout/kernel': 'kp'}, {'hidden': 'error'}),
    ({'hidden/kernel': 'dfa', '*': 'kp'}, {'hidden': 'error'}),
    ({'read*': bioprop.make('fa', rho=1.0), '*': 'usf'}, {'readout': 'kernel'})])
def test_patterns(choice, feedback):
  """Each layer has what its own rule needs; rho=1 is B = W(0)."""
  model = plugged(Small(nnx.Rngs(0)), choice)
  found = {path[1]: path[2] for path, variable in nnx.to_flat_state(nnx.state(model))
           if type(variable) is bioprop.Feedback and path[0] == 'bioprop_feedback'}
  assert found == feedback
  assert hasattr(model.readout, 'feedback_kernel') == ('kp' in choice.values())
  assert not hasattr(model.hidden, 'feedback_kernel')
  if 'read*' in choice:
    np.testing.assert_array_equal(model.bioprop_feedback['readout']['kernel'][...],
                                  model.readout.kernel[...])
  if choice == {'hidden': 'fa', '*': 'bp'}:  # The readout sends by backprop: all but x is exact.
    for got, want in zip(*(jax.tree.leaves(gradient(m)) for m in (model, Small(nnx.Rngs(0))))):
      np.testing.assert_allclose(got, want, atol=1e-7)


def test_draws():
  """Feedback depends on the seed and the layer's path, and is not correlated with the weights."""
  wide = lambda: nnx.Sequential(*(nnx.Linear(40, 40, rngs=nnx.Rngs(0)) for _ in range(2)))
  drawn = lambda model, rngs: [np.asarray(own['kernel'][...]).ravel() for own in bioprop.plug(
      model, bioprop.make('fa', scale=1.0), rngs).bioprop_feedback['layers'].values()]
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
  model = bioprop.plug(Flagged(nnx.Rngs(0)), 'dfa', nnx.Rngs(1), X, flag)
  np.testing.assert_array_equal(model(X, flag), Flagged(nnx.Rngs(0))(X, True))


def test_no_trace_serves_another_plan():
  """Options of the rule are part of the graphdef; the nonlinearity is the call's own."""
  model, plain = (plugged(Small(nnx.Rngs(0)), bioprop.make('usf', scale=s)) for s in (2.0, 1.0))
  np.testing.assert_allclose(gradient(model)['hidden']['kernel'][...],
                             2 * gradient(plain)['hidden']['kernel'][...], rtol=1e-5)
  one, two = (bioprop.plug(Flagged(nnx.Rngs(0)), 'hebb', None, X, flag)
              for flag in (True, False))
  run = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(X, True)))))
  assert_same(arrays(run(one)), arrays(run(two)))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf'])
def test_captured_intermediates_are_the_plain_models(rule):
  """nnx.capture instruments classes; ours show what the plain ones show, and stay as they were."""
  model, plain = plugged(Small(nnx.Rngs(0)), rule), Small(nnx.Rngs(0))
  shown = lambda model: {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.capture(
      model, nnx.Intermediate, method_outputs=nnx.Intermediate)(X)[1])}
  got, want = shown(model), shown(plain)
  assert list(got) == list(want)
  for path in want:
    np.testing.assert_array_equal(got[path][0], want[path][0])
  assert np.any(gradient(model)['hidden']['kernel'][...])
