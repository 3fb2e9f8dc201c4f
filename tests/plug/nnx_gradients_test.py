"""NNX: every way to ask for a gradient gives the rule's; the expected one is NumPy's."""
import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

pytestmark = pytest.mark.usefixtures('quick')

WAYS = {
    'nnx.jit(nnx.grad)': lambda loss, m: nnx.jit(nnx.grad(loss))(m),
    'nnx.value_and_grad': lambda loss, m: nnx.jit(nnx.value_and_grad(loss))(m)[1],
    'nnx.grad': lambda loss, m: nnx.grad(loss)(m),
    'nnx.clone': lambda loss, m: nnx.jit(nnx.grad(loss))(nnx.clone(m)),
    'copy.deepcopy': lambda loss, m: nnx.jit(nnx.grad(loss))(copy.deepcopy(m)),
    'nnx.view': lambda loss, m: nnx.jit(nnx.grad(loss))(nnx.view(m, deterministic=True)),
    'train and eval': lambda loss, m: (m.train(), m.eval(), nnx.jit(nnx.grad(loss))(m))[-1],
    'nnx.merge': lambda loss, m: nnx.jit(nnx.grad(loss))(nnx.merge(*nnx.split(m))),
    'nnx.update': lambda loss, m: (nnx.update(m, nnx.state(m)), nnx.jit(nnx.grad(loss))(m))[-1],
}


def merged(loss, model, **kwargs):
  """The functional way."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  run = lambda p, rest: loss(nnx.merge(definition, p, rest, **kwargs))
  return jax.jit(jax.grad(run))(params, rest)


def as_tree(loss, model):
  """Tree mode: modules are pytrees, and gradients are models."""
  with nnx.set_graph_mode(False):
    return nnx.state(nnx.jit(nnx.grad(loss))(model), nnx.Param)


class Net(nnx.Module):
  """Two layers and dropout that is off."""

  def __init__(self, rngs, width=6):
    self.hidden = nnx.Linear(6, width, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, deterministic=True)
    self.readout = nnx.Linear(width, 3, rngs=rngs)

  def __call__(self, x):
    return self.readout(self.dropout(jnp.tanh(self.hidden(x))))


@pytest.fixture(scope='module', params=['fa', 'dfa'])
def reference(request):
  """A rule, and the first layer's gradient by hand."""
  x = np.random.RandomState(0).randn(4, 6).astype(np.float32)
  model = bioprop.install(Net(nnx.Rngs(0)), request.param, nnx.Rngs(1), x)
  w, v, b, c = (np.asarray(a[...]) for a in (
      model.hidden.kernel, model.readout.kernel, model.hidden.bias, model.readout.bias))
  h = np.tanh(x @ w + b)
  e = np.cos(h @ v + c) / 12
  sent = e @ (np.asarray(model.readout.feedback_kernel[...]).T if request.param == 'fa'
              else np.asarray(model.readout.feedback_error[...]))
  return request.param, x, x.T @ (sent * (1 - h**2)), h.T @ e


@pytest.mark.parametrize('way', [*WAYS, 'merge', 'merge with copies', 'tree mode'])
def test_ways_to_ask_for_a_gradient(reference, way):
  """All the same."""
  rule, x, hidden, readout = reference
  model = bioprop.install(Net(nnx.Rngs(0)), rule, nnx.Rngs(1), x)
  ask = {**WAYS, 'merge': merged, 'merge with copies': functools.partial(merged, copy=True),
         'tree mode': as_tree}[way]
  grads = ask(lambda model: jnp.mean(jnp.sin(model(jnp.asarray(x)))), model)
  np.testing.assert_allclose(grads['hidden']['kernel'][...], hidden, atol=1e-6)
  np.testing.assert_allclose(grads['readout']['kernel'][...], readout, atol=1e-6)


def test_ensembles(reference):
  """nnx.vmap over models that were plugged inside one: each has weights and feedback of its own."""
  rule, x = reference[0], jnp.asarray(reference[1])

  @nnx.split_rngs(splits=2)
  @nnx.vmap
  def make(rngs):
    return bioprop.install(Net(rngs), rule, rngs, x)

  models = make(nnx.Rngs(0))
  grad = nnx.grad(lambda model: jnp.mean(jnp.sin(model(x))))
  every = nnx.jit(nnx.vmap(grad))(models)
  definition, state = nnx.split(models)
  for i in range(2):
    one = nnx.merge(definition, jax.tree.map(lambda a, i=i: a[i], state))
    jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6),
                 nnx.to_pure_dict(every), nnx.to_pure_dict(nnx.jit(grad)(one)))
  name = 'feedback_kernel' if rule == 'fa' else 'feedback_error'
  kernels = np.asarray(getattr(models.readout, name)[...])
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-2


def test_per_sample_gradients(reference):
  """jax.vmap over samples: their mean is the batch's gradient."""
  rule, x, hidden, _ = reference
  model = bioprop.install(Net(nnx.Rngs(0)), rule, nnx.Rngs(1), x)
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  grad = jax.grad(lambda p, x: jnp.mean(jnp.sin(nnx.merge(definition, p, rest)(x))))
  each = jax.jit(jax.vmap(grad, (None, 0)))(params, jnp.asarray(x)[:, None])
  np.testing.assert_allclose(each['hidden']['kernel'][...].mean(0), hidden, atol=1e-6)


@pytest.mark.parametrize('norm', [nnx.SpectralNorm, nnx.WeightNorm])
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_reparametrised_layers(norm, rule):
  """The layer inside learns by the rule, and the norm finds the parameters that it knows."""
  x = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)

  def make(rngs):
    return nnx.Sequential(nnx.Linear(6, 5, rngs=rngs), norm(nnx.Linear(5, 5, rngs=rngs), rngs=rngs),
                          nnx.Linear(5, 3, rngs=rngs))

  plain, plugged = make(nnx.Rngs(0)), bioprop.install(make(nnx.Rngs(0)), rule, nnx.Rngs(1), x)
  run = nnx.jit(nnx.value_and_grad(lambda model: jnp.mean(jnp.sin(model(x)))))
  (want, exact), (got, grads) = run(plain), run(plugged)
  assert got == want
  first = lambda grads: grads['layers'][0]['kernel'][...]
  assert np.any(first(grads)) and np.abs(first(grads) - first(exact)).max() > 1e-4


@pytest.mark.parametrize('transform', [
    jax.checkpoint, lambda f: lambda x: jax.lax.scan(lambda x, _: (f(x), None), x, None, 2)[0]])
def test_transforms_of_jax(transform):
  """fa works inside; the error cannot reach into them, and dfa says so."""

  class Inside(nnx.Module):

    def __init__(self, rngs):
      self.hidden, self.readout = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
      return self.readout(transform(lambda x: jnp.tanh(self.hidden(x)))(x))

  x = jnp.ones((4, 6))
  grad = lambda rule: nnx.jit(nnx.grad(lambda model: model(x).sum()))(
      bioprop.install(Inside(nnx.Rngs(0)), rule, nnx.Rngs(1), x))
  assert np.any(grad('fa')['hidden']['kernel'][...])
  for rule in ('dfa', 'hebb'):
    with pytest.raises(errors.LiftedTransformError, match=r"'hidden'.*nnx\.remat, nnx\.scan"):
      grad(rule)
