"""NNX: every way to ask for a gradient gives the rule's; the expected one is NumPy's."""
import copy
import functools
import pickle
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

X = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)
# The first layer is sent what hidden's direct feedback gives, and hidden what the readout's B does.
RULE = {'hidden': 'dfa', '*': 'fa'}


class Net(nnx.Module):
  """Three layers and dropout that is off."""

  def __init__(self, rngs):
    self.first, self.hidden = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, deterministic=True)
    self.readout = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    h = jnp.tanh(self.hidden(jnp.tanh(self.first(x))))
    return self.readout(self.dropout(h))


class Compiled(Net):
  """Its method is no function but what nnx.jit makes of one."""

  @nnx.jit
  def __call__(self, x):
    return super().__call__(x)


class Split(Net):
  """Through other methods, private and public."""

  def __call__(self, x):
    return self._out(self.encode(x))

  def encode(self, x):
    return jnp.tanh(self.hidden(jnp.tanh(self.first(x))))

  def _out(self, h):
    return self.readout(h)


def plugged(cls=Net, rule=RULE):
  """A model of the class."""
  return bioprop.plug(cls(nnx.Rngs(0)), rule, nnx.Rngs(1), X)


def value(layer, name='kernel'):
  """As NumPy has it."""
  return np.asarray(layer[name][...] if isinstance(layer, dict) else getattr(layer, name)[...])


@pytest.fixture(scope='module')
def reference():
  """Gradients of the kernels by hand."""
  model, x = plugged(), np.asarray(X)
  b = model.bioprop_feedback
  (w, v, u), (c, d, a) = ([value(getattr(model, layer), name) for layer in
                           ('first', 'hidden', 'readout')] for name in ('kernel', 'bias'))
  h = np.tanh(x @ w + c)
  k = np.tanh(h @ v + d)
  e = np.cos(k @ u + a) / 12
  sent = e @ value(b['hidden'], 'error') * (1 - h**2)
  return {'first': x.T @ sent, 'readout': k.T @ e,
          'hidden': h.T @ (e @ value(b['readout']).T * (1 - k**2))}


def loss(model):
  """Its error is no multiple of the output."""
  return jnp.mean(jnp.sin(model(X)))


def jitted(model):
  """The usual one."""
  return nnx.jit(nnx.grad(loss))(model)


def after(change):
  """On what `change` makes of the model."""
  return lambda model: jitted(change(model))


def merged(model, transform=lambda run: run, **kwargs):
  """The functional way."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  run = transform(lambda p, rest: loss(nnx.merge(definition, p, rest, **kwargs)))
  return jax.jit(jax.grad(run))(params, rest)


def closed_over(model):
  """What is no parameter is of another trace."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  return jax.jit(jax.grad(lambda p: loss(nnx.merge(definition, p, rest))))(params)


def of_dicts(model):
  """Parameters as a dict of dicts of arrays."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)

  def run(pure):
    nnx.replace_by_pure_dict(params, pure)
    return loss(nnx.merge(definition, params, rest, copy=True))

  return jax.jit(jax.grad(run))(nnx.to_pure_dict(params))


def of_one_array(model):
  """Parameters in one array, as a solver wants them; by jax.vjp."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  flat, restore = jax.flatten_util.ravel_pytree(params)
  run = lambda flat: loss(nnx.merge(definition, restore(flat), rest, copy=True))
  return restore(jax.jit(lambda flat: jax.vjp(run, flat)[1](jnp.ones(()))[0])(flat))


def summed(model):
  """Over two halves of the batch, in a scan."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  grad = jax.grad(lambda p, x: jnp.mean(jnp.sin(nnx.merge(definition, p, rest, copy=True)(x))))

  def step(total, x):
    return jax.tree.map(lambda a, g: a + g / 2, total, grad(params, x)), None

  return jax.jit(lambda: jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params),
                                      X.reshape(2, 2, 6))[0])()


def as_tree(model):
  """Modules are pytrees, and gradients are models."""
  with nnx.set_graph_mode(False):
    return nnx.state(nnx.jit(nnx.grad(loss))(model), nnx.Param)


def chosen(model):
  """Layer by layer."""
  grad = lambda name: nnx.grad(loss, argnums=nnx.DiffState(0, nnx.All(
      nnx.Param, nnx.PathContains(name))))
  run = nnx.jit(lambda model: [grad(name)(model) for name in ('first', 'hidden', 'readout')])
  return nnx.merge_state(*run(model))


WAYS = {
    'nnx.jit(nnx.grad)': jitted,
    'nnx.grad': nnx.grad(loss),
    'nnx.value_and_grad with more': lambda m: nnx.jit(nnx.value_and_grad(
        lambda model: (loss(model), model.dropout.rate), has_aux=True))(m)[1],
    'a choice of parameters': chosen,
    'nnx.cached_partial': lambda m: nnx.cached_partial(nnx.jit(nnx.grad(loss)), m)(),
    'nnx.clone': after(nnx.clone),
    'copy.deepcopy': after(copy.deepcopy),
    'copy.copy': after(copy.copy),
    'pickle': after(lambda m: pickle.loads(pickle.dumps(m))),
    'nnx.view': after(lambda m: nnx.view(m, deterministic=True)),
    'train and eval': after(lambda m: (m.train(), m.eval(), m)[-1]),
    'nnx.merge': after(lambda m: nnx.merge(*nnx.split(m))),
    'nnx.update': after(lambda m: (nnx.update(m, nnx.state(m)), m)[-1]),
    'merge': merged,
    'merge with copies': functools.partial(merged, copy=True),
    'jax.checkpoint': functools.partial(merged, transform=jax.checkpoint),
    'state that is closed over': closed_over,
    'dicts of arrays': of_dicts,
    'one array': of_one_array,
    'halves of a batch': summed,
    'tree mode': as_tree,
    'the module as a pytree': lambda m: nnx.state(jax.jit(jax.grad(loss))(m), nnx.Param),
    'unjitted, the module as a pytree': lambda m: nnx.state(jax.grad(loss)(m), nnx.Param),
}


def check(grads, reference):
  """Equal to what was computed by hand."""
  for layer, want in reference.items():
    np.testing.assert_allclose(np.asarray(grads[layer]['kernel'][...]), want, atol=1e-6)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.some(2)
def test_ways_to_ask_for_a_gradient(reference, way):
  """All the same."""
  if way == 'tree mode' and flax.__version__ == '0.12.6':
    pytest.skip('flax 0.12.6 fails there on a plain nnx.Dropout without a random stream')
  check(WAYS[way](plugged()), reference)


@pytest.mark.parametrize('cls', [Compiled, Split])
def test_ways_to_write_a_method(reference, cls):
  """Decorated, and in pieces; without and with an optimising transform around."""
  check(jitted(plugged(cls)), reference)
  check(nnx.grad(loss)(plugged(cls)), reference)


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_ensembles(rule):
  """nnx.vmap over models that were plugged inside one: each has weights and feedback of its own."""
  models = nnx.split_rngs(splits=2)(nnx.vmap(
      lambda rngs: bioprop.plug(Net(rngs), rule, rngs, X)))(nnx.Rngs(0))
  definition, state = nnx.split(models)

  @jax.jit
  def gradients(state):
    every = nnx.vmap(nnx.grad(loss))(nnx.merge(definition, state, copy=True))
    ones = [nnx.grad(loss)(nnx.merge(definition, jax.tree.map(lambda a, i=i: a[i], state)))
            for i in range(2)]
    return every, jax.tree.map(lambda *a: jnp.stack(a), *ones)

  every, ones = map(jax.tree.leaves, gradients(state))
  for a, b in zip(every, ones):
    np.testing.assert_allclose(a, b, atol=1e-6)
  for one, two in map(np.asarray, jax.tree.leaves(nnx.state(models, bioprop.Feedback))):
    assert np.abs(one - two).max() > 1e-2


def test_per_sample_gradients(reference):
  """jax.vmap over samples: their mean is the batch's gradient."""
  definition, params, rest = nnx.split(plugged(), nnx.Param, ...)
  grad = jax.grad(lambda p, x: jnp.mean(jnp.sin(nnx.merge(definition, p, rest)(x))))
  each = jax.jit(jax.vmap(grad, (None, 0)))(params, X[:, None])
  check(jax.tree.map(lambda g: g.mean(0), each), reference)


class Outer(nnx.Module):
  """Plain layers around a plugged model."""

  def __init__(self, inner):
    self.below, self.inner = nnx.Linear(6, 6, rngs=nnx.Rngs(3)), inner
    self.above = nnx.Linear(3, 2, rngs=nnx.Rngs(4))

  def __call__(self, x):
    return self.above(jnp.tanh(self.inner(jnp.tanh(self.below(x)))))


def test_a_plugged_model_as_a_part_of_a_plain_one(reference):
  """Its rule ends where it ends: what surrounds it learns by backprop, from what it sends down."""
  model, plain = Outer(plugged(rule='dfa')), Outer(Net(nnx.Rngs(0)))
  got, want = map(jitted, (model, plain))
  for name in ('kernel', 'bias'):
    np.testing.assert_allclose(got['above'][name][...], want['above'][name][...], rtol=1e-6)
  x = np.asarray(X)
  h = np.tanh(x @ value(model.below) + value(model.below, 'bias'))
  y = np.tanh(np.asarray(plain.inner(jnp.asarray(h))))
  e = np.cos(y @ value(model.above) + value(model.above, 'bias')) / 8
  e = e @ value(model.above).T * (1 - y**2)  # At the output of the plugged model.
  sent = e @ value(model.inner.bioprop_feedback['first'], 'error') * (1 - h**2)
  np.testing.assert_allclose(got['below']['kernel'][...], x.T @ sent, atol=1e-6)
  bioprop.unplug(model)
  assert nnx.graphdef(model) == nnx.graphdef(plain)


@nnx.jit
def helper(layer, x):
  """What a user's own library compiles."""
  return jnp.tanh(layer(x))


class Helped(Net):
  """Uses it."""

  def __call__(self, x):
    return self.readout(helper(self.hidden, helper(self.first, x)))


@pytest.mark.parametrize('order', ['gradient first', 'values first', 'outside first'])
def test_no_compiled_program_serves_both_inside_and_outside(reference, order):
  """Of a function that takes a part: by the rule inside of the model, and refused outside."""
  model = plugged(Helped)
  run = types.SimpleNamespace(
      values=lambda: np.testing.assert_array_equal(model(X), Helped(nnx.Rngs(0))(X)),
      gradient=lambda: check(jitted(model), reference))
  if order == 'outside first':
    np.testing.assert_array_equal(helper(model.first, X), helper(Net(nnx.Rngs(0)).first, X))
  elif order == 'values first':
    run.values()
  run.gradient()
  with pytest.raises(errors.UnboundError, match='a part of a plugged model'):
    nnx.grad(lambda layer: jnp.sum(helper(layer, X)))(model.first)
  run.values()
  run.gradient()


class Closing(Net):
  """Runs a compiled function that closes over a part."""

  def __call__(self, x):
    return self.readout(self.dropout(jnp.tanh(self.hidden(self.compiled(x)))))


def test_no_program_that_closes_over_a_part_serves_outside():
  """What was compiled in a plain call of the model is not differentiated elsewhere."""
  model = plugged()
  compiled = jax.jit(lambda x: jnp.tanh(model.first(x)))
  closing = bioprop.plug(Closing(nnx.Rngs(0)), 'usf')
  closing.compiled = compiled
  np.testing.assert_array_equal(closing(X), Net(nnx.Rngs(0))(X))
  with pytest.raises(errors.UnboundError, match='a part of a plugged model'):
    jax.grad(lambda x: jnp.sum(compiled(x)))(X)


class Forces(nnx.Module):
  """Returns what it differentiates itself: the derivative of an energy in its input."""

  def __init__(self, rngs):
    self.hidden, self.readout = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)

  def energy(self, x):
    return jnp.sum(self.readout(jnp.tanh(self.hidden(x))))

  def __call__(self, x):
    return -jax.grad(self.energy)(x)


@pytest.mark.parametrize('rule', ['fa', 'usf'])
def test_derivatives_inside_of_a_model_are_its_forward_pass(rule):
  """Exact, whatever the rule; computed plainly, and in a trace."""
  model, plain = (Forces(nnx.Rngs(0)) for _ in range(2))
  bioprop.plug(model, rule, nnx.Rngs(1))
  np.testing.assert_array_equal(model(X), plain(X))
  np.testing.assert_allclose(nnx.jit(lambda model: model(X))(model), plain(X), rtol=1e-5)
