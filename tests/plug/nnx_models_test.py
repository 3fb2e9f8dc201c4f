"""NNX: models that are not plain: subclasses, LoRA, tokens, several outputs, placed weights."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

pytestmark = pytest.mark.usefixtures('quick')
X = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)


class Squared(nnx.Linear):
  """Calls super's, with a keyword."""

  def __call__(self, x):
    return jnp.square(super().__call__(inputs=x))


class Derived(Squared):
  """Of a class of the user's; overrides nothing."""


@pytest.mark.parametrize('cls', [Squared, Derived])
def test_subclasses(cls):
  """What the override does is differentiated as it is; its own name and type stay."""
  make = lambda: nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), cls(5, 3, rngs=nnx.Rngs(1)))
  model = bioprop.install(make(), 'fa', nnx.Rngs(1), X)
  assert isinstance(model.layers[1], cls) and type(model.layers[1]).__name__ == cls.__name__
  first, last = model.layers
  h = np.asarray(X @ first.kernel[...] + first.bias[...][None])
  y = h @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])
  e = np.cos(y**2) / 12 * 2 * y
  got = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(X)))))(model)['layers']
  np.testing.assert_allclose(got[1]['kernel'][...], h.T @ e, atol=1e-5)
  np.testing.assert_allclose(got[0]['kernel'][...], np.asarray(X).T @ (
      e @ np.asarray(last.feedback_kernel[...]).T), atol=1e-5)


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'brsf', 'kp', 'hebb'])
def test_mixed_precision(rule):
  """Activities of bfloat16, parameters and gradients of float32; in LoRA too."""

  def make():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Conv(6, 6, (3,), dtype=jnp.bfloat16, rngs=rngs), jnp.tanh,
        nnx.LoRA(6, 2, 6, base_module=nnx.Linear(6, 6, dtype=jnp.bfloat16, rngs=rngs),
                 b_initializer=nnx.initializers.normal(), dtype=jnp.bfloat16, rngs=rngs), jnp.tanh,
        nnx.Linear(6, 3, dtype=jnp.bfloat16, rngs=rngs))

  x = jnp.ones((2, 4, 6), jnp.bfloat16)
  model = bioprop.install(make(), rule, nnx.Rngs(1), x)
  run = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(x).astype(jnp.float32)))))
  grads = run(model)
  for path, leaf in nnx.to_flat_state(grads):
    assert leaf.dtype == jnp.float32 and np.any(leaf[...]), path
  feedback = nnx.state(model, bioprop.Feedback)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(feedback)
             if leaf.shape[-1])  # The ports, which are empty, are like the output.
  exact, head = run(make()), grads['layers'][4]['kernel'][...]
  np.testing.assert_allclose(head, exact['layers'][4]['kernel'][...], rtol=0.05, atol=1e-3)


class Language(nnx.Module):
  """Tokens in, and no activities that could take feedback in the embedding."""

  def __init__(self, rngs):
    self.embed, self.readout = nnx.Embed(9, 6, rngs=rngs), nnx.Linear(6, 9, rngs=rngs)

  def __call__(self, tokens):
    return self.readout(jnp.tanh(self.embed(tokens)))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'hebb'])
def test_integer_inputs(rule):
  """The embedding learns; it has no feedback where install saw that it only looks tokens up."""
  tokens = jnp.arange(8).reshape(2, 4)
  model = bioprop.install(Language(nnx.Rngs(0)), rule, nnx.Rngs(1), tokens)
  assert not any(name in vars(model.embed) for name in ('feedback_embedding', 'feedback_error'))
  grads = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(tokens)))))(model)
  assert np.any(grads['embed']['embedding'][...]) and not np.any(grads['embed']['embedding'][8])
  if rule in ('fa', 'kp'):  # Without a sample there is some, and all else is equal.
    blind = bioprop.install(Language(nnx.Rngs(0)), rule, nnx.Rngs(1))
    again = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(tokens)))))(blind)
    for layer, name in (('embed', 'embedding'), ('readout', 'kernel')):
      np.testing.assert_array_equal(again[layer][name][...], grads[layer][name][...])


class Heads(nnx.Module):
  """Two outputs, or a dict of them."""

  def __init__(self, rngs, names):
    self.hidden, self.names = nnx.Linear(6, 5, rngs=rngs), names
    self.a, self.b = nnx.Linear(5, 3, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

  def __call__(self, x, *, scale=1.0):
    h = jnp.tanh(self.hidden(x)) * scale
    a, b = self.a(h), self.b(h)
    return {'a': a, 'deep': (b, jnp.arange(3))} if self.names else (a, b)


@pytest.mark.parametrize('names, output, width', [
    (False, 0, 3), (False, 1, 2), (True, 'a', 3), (True, ('deep', 0), 2)])
def test_output_picks(names, output, width):
  """Feedback is as wide as the output picked, and the hidden update reads that error only."""
  model = bioprop.install(Heads(nnx.Rngs(0), names), 'dfa', nnx.Rngs(1), X, output=output,
                          scale=2.0)
  assert model.a.feedback_error.shape == (width, 5)

  @nnx.jit
  @nnx.grad
  def grads(model, weights):
    out = model(X, scale=2.0)
    a, b = (out['a'], out['deep'][0]) if names else out
    return weights[0] * jnp.sum(a) + weights[1] * jnp.sum(b)

  picked = jnp.asarray((1.0, 0.0) if width == 3 else (0.0, 1.0))
  assert np.any(grads(model, picked)['hidden']['kernel'][...])
  assert not np.any(grads(model, picked[::-1])['hidden']['kernel'][...])


@pytest.mark.parametrize('rule', ['fa', 'kp', 'frsf'])
def test_feedback_is_placed_as_its_weight_is(rule):
  """Annotation and placement; in a stack the transform moves the names of the axes."""
  mesh = jax.make_mesh((1, 1), ('in', 'out'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ('in', 'out'))
    model = bioprop.install(
        nnx.Sequential(nnx.Linear(6, 4, kernel_init=init, rngs=nnx.Rngs(0)),
                       nnx.Linear(4, 2, rngs=nnx.Rngs(0))), rule, nnx.Rngs(1))
  kernel, feedback = model.layers[0].kernel, model.layers[0].feedback_kernel
  assert feedback[...].sharding == kernel[...].sharding
  assert feedback.get_metadata('out_sharding') == kernel.get_metadata('out_sharding')
  assert nnx.get_partition_spec(nnx.state(model))['layers'][0]['feedback_kernel'] == (
      nnx.get_partition_spec(nnx.state(model))['layers'][0]['kernel'])
  assert not model.layers[1].feedback_kernel.has_metadata('out_sharding')


def test_feedback_goes_where_a_weight_was_put():
  """By hand, without an annotation."""
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  model = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  kernel = model.layers[0].kernel
  kernel.set_value(jax.device_put(kernel[...], place))
  bioprop.install(model, 'fa', nnx.Rngs(1))
  assert model.layers[0].feedback_kernel[...].sharding == place
