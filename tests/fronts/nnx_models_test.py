"""NNX: models that are not plain: subclasses, methods, state of every kind, placed weights."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

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
  model = bioprop.plug(make(), 'fa', nnx.Rngs(1), X)
  assert isinstance(model.layers[1], cls) and type(model.layers[1]).__name__ == cls.__name__
  first, last = model.layers
  h = np.asarray(X @ first.kernel[...] + first.bias[...][None])
  y = h @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])
  e = np.cos(y**2) / 12 * 2 * y
  got = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(X)))))(model)['layers']
  b = np.asarray(model.bioprop_feedback['layers']['1']['kernel'][...])
  np.testing.assert_allclose(got[1]['kernel'][...], h.T @ e, atol=1e-5)
  np.testing.assert_allclose(got[0]['kernel'][...], np.asarray(X).T @ (e @ b.T), atol=1e-5)


@pytest.mark.parametrize('rule', ['dfa', 'kp'])
@pytest.mark.some(2)
def test_mixed_precision(rule):
  """Activities of bfloat16, parameters, feedback and gradients of float32; in LoRA too."""

  def make():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Conv(6, 6, (3,), dtype=jnp.bfloat16, rngs=rngs), jnp.tanh,
        nnx.LoRA(6, 2, 6, base_module=nnx.Linear(6, 6, dtype=jnp.bfloat16, rngs=rngs),
                 b_initializer=nnx.initializers.normal(), dtype=jnp.bfloat16, rngs=rngs), jnp.tanh,
        nnx.Linear(6, 3, dtype=jnp.bfloat16, rngs=rngs))

  x = jnp.ones((2, 4, 6), jnp.bfloat16)
  model, plain = nnx.jit(lambda: (bioprop.plug(make(), rule, nnx.Rngs(1), x), make()))()
  run = nnx.grad(lambda model: jnp.mean(jnp.sin(model(x).astype(jnp.float32))))
  grads, exact = nnx.jit(lambda *models: [run(model) for model in models])(model, plain)
  for path, leaf in nnx.to_flat_state(grads):
    assert leaf.dtype == jnp.float32 and np.any(leaf[...]), path
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, bioprop.Feedback))} <= {
      jnp.dtype(jnp.float32)}
  np.testing.assert_allclose(grads['layers'][4]['kernel'][...],
                             exact['layers'][4]['kernel'][...], rtol=0.05, atol=1e-3)


class Language(nnx.Module):
  """Tokens in, and no activities that could take feedback in the embedding."""

  def __init__(self, rngs):
    self.embed, self.readout = nnx.Embed(9, 6, rngs=rngs), nnx.Linear(6, 9, rngs=rngs)

  def __call__(self, tokens):
    return self.readout(jnp.tanh(self.embed(tokens)))


@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'hebb'])
def test_integer_inputs(rule):
  """The embedding learns; it has no feedback where plug saw that it only looks tokens up."""
  tokens = jnp.arange(8).reshape(2, 4)
  run = nnx.jit(nnx.grad(lambda model: jnp.mean(jnp.sin(model(tokens)))))
  model = bioprop.plug(Language(nnx.Rngs(0)), rule, nnx.Rngs(1), tokens)
  assert 'embed' not in vars(model).get('bioprop_feedback', ())
  assert 'feedback_embedding' not in vars(model.embed)
  grads = run(model)
  assert np.any(grads['embed']['embedding'][...]) and not np.any(grads['embed']['embedding'][8])
  if rule in ('fa', 'kp'):  # Without a sample there is some, and all else is equal.
    again = run(bioprop.plug(Language(nnx.Rngs(0)), rule, nnx.Rngs(1)))
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
    return {'a': a, 'deep': (b, jnp.arange(3), 'text')} if self.names else (a, b)


@pytest.mark.parametrize('names, output, width', [
    (False, 0, 3), (False, 1, 2), (True, 'a', 3), (True, ('deep', 0), 2)])
def test_output_picks(names, output, width):
  """Feedback is as wide as the output picked, and the hidden update reads that error only."""
  model = bioprop.plug(Heads(nnx.Rngs(0), names), 'dfa', nnx.Rngs(1), X, output=output,
                          scale=2.0)
  assert model.bioprop_feedback['a']['error'].shape == (width, 5)

  @nnx.jit
  @nnx.grad
  def grads(model, weights):
    out = model(X, scale=2.0)
    a, b = (out['a'], out['deep'][0]) if names else out
    return weights[0] * jnp.sum(a) + weights[1] * jnp.sum(b)

  picked = jnp.asarray((1.0, 0.0) if width == 3 else (0.0, 1.0))
  assert np.any(grads(model, picked)['hidden']['kernel'][...])
  assert not np.any(grads(model, picked[::-1])['hidden']['kernel'][...])


@pytest.mark.parametrize('rule', ['fa', 'kp', 'frsf', 'align_ada'])
def test_feedback_is_placed_as_its_weight_is(rule):
  """Annotation and placement."""
  mesh = jax.make_mesh((1, 1), ('in', 'out'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ('in', 'out'))
    model = bioprop.plug(
        nnx.Sequential(nnx.Linear(6, 4, kernel_init=init, rngs=nnx.Rngs(0)),
                       nnx.Linear(4, 2, rngs=nnx.Rngs(0))), rule, nnx.Rngs(1), X)
  if rule == 'kp':
    feedback = [layer.feedback_kernel for layer in model.layers]
  else:
    frozen = model.bioprop_feedback
    frozen = frozen['initial'] if rule == 'align_ada' else frozen
    feedback = [frozen['layers'][i]['kernel'] for i in '01']
  for kernel, own in zip((layer.kernel for layer in model.layers), feedback):
    assert own[...].sharding == kernel[...].sharding
    assert own.get_metadata('out_sharding', None) == kernel.get_metadata('out_sharding', None)
  assert feedback[0].get_metadata('out_sharding') == ('in', 'out')
  specs = nnx.get_partition_spec(nnx.state(model))
  assert jax.tree.leaves(specs).count(jax.sharding.PartitionSpec('in', 'out')) == 2


def test_feedback_goes_where_a_weight_was_put():
  """By hand, without an annotation."""
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  model = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  model.layers[0].kernel.set_value(jax.device_put(model.layers[0].kernel[...], place))
  bioprop.plug(model, 'fa', nnx.Rngs(1))
  assert model.bioprop_feedback['layers']['0']['kernel'][...].sharding == place


class Autoencoder(nnx.Module):
  """Several methods, a property, and one that returns a layer."""

  def __init__(self, rngs):
    self.down, self.up = nnx.Linear(6, 3, rngs=rngs), nnx.Linear(3, 6, rngs=rngs)
    self.gain = nnx.Param(jnp.ones((6,)))

  def encode(self, x):
    return jnp.tanh(self.down(x))

  def decode(self, code, *, scale=1.0):
    return self.up(code) * self.gain[...][None] * scale

  def __call__(self, x):
    return self.decode(self.encode(x))

  def loss(self, x):
    return jnp.mean(jnp.sin(self(x)))

  def penalty(self):
    return sum(jnp.sum(jnp.square(layer.kernel[...])) for layer in self.layers)

  @property
  def layers(self):
    return self.down, self.up

  def layer(self, i):
    return {'layer': self.layers[i], 'kernel': self.layers[i].kernel, 'gain': self.gain[...]}


METHODS = {
    'encode': lambda m, x: m.encode(x),
    'decode': lambda m, x: m.decode(m.encode(x), scale=2.0),
    'in two calls': lambda m, x: m.decode(jnp.sin(m.encode(x))),
    'loss': lambda m, x: m.loss(x),
    'penalty': lambda m, x: m.loss(x) + m.penalty(),
    'layer': lambda m, x: jnp.sum(m.layer(0)['kernel'][...] * m.layer(1)['layer'].kernel[...].T)
             + jnp.sum(jnp.square(m.layer(0)['gain'])),
}


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.some(2)
def test_methods(method):
  """Every public method learns by the rule: exact at B = W, and not by signs where it sends."""
  objective = lambda model: jnp.mean(jnp.sin(METHODS[method](model, X)))

  @nnx.jit
  def gradients(*models):
    return [nnx.to_pure_dict(nnx.grad(objective)(model)) for model in models]

  exact, signs, plain = (Autoencoder(nnx.Rngs(0)) for _ in range(3))
  bioprop.plug(exact, 'align_prop', 0)
  bioprop.plug(signs, 'usf')
  got, other, want = gradients(exact, signs, plain)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
  sends = method not in ('encode', 'layer')
  assert (np.abs(other['down']['kernel'] - want['down']['kernel']).max() > 1e-3) == sends


def test_what_a_method_returns_of_the_model_is_its_own():
  """Modules and variables are the very same, in a trace too."""
  model = bioprop.plug(Autoencoder(nnx.Rngs(0)), 'usf')

  def check(model):
    found = model.layer(0)
    assert found['layer'] is model.down and found['kernel'] is model.down.kernel
    return found['gain'] + model.gain[...]

  check(model)
  nnx.jit(check)(model)


class Streams(nnx.Module):
  """Takes random streams of its own, by the name of others that plug takes."""

  def __init__(self, rngs):
    self.hidden, self.readout = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
    self.dropout = nnx.Dropout(0.5)

  def __call__(self, x, rngs=None):
    return self.readout(self.dropout(jnp.tanh(self.hidden(x)), rngs=rngs))


@pytest.mark.parametrize('rule', ['align_prop', 'dfa', 'brsf'])
def test_streams_among_the_arguments(rule):
  """They are used, and move on, as with the plain model."""
  model = bioprop.plug(Streams(nnx.Rngs(0)), rule, nnx.Rngs(0), X, rngs=nnx.Rngs(1))
  run = nnx.jit(nnx.value_and_grad(lambda model, rngs: jnp.mean(jnp.sin(model(X, rngs=rngs)))))
  streams, others = nnx.Rngs(dropout=2), nnx.Rngs(dropout=2)
  for step in (1, 2):
    (got, grads), (want, exact) = run(model, streams), run(Streams(nnx.Rngs(0)), others)
    assert got == want and streams.dropout.count[...] == others.dropout.count[...] == step
    np.testing.assert_array_equal(grads['readout']['kernel'][...], exact['readout']['kernel'][...])
    apart = np.abs(grads['hidden']['kernel'][...] - exact['hidden']['kernel'][...]).max()
    assert apart < 1e-7 if rule == 'align_prop' else apart > 1e-4


class Busy(nnx.Module):
  """A call of it does all that a call can do to a model."""

  def __init__(self, rngs):
    self.hidden, self.norm = nnx.Linear(6, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
    self.readout, self.dropout = nnx.Linear(6, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    self.carry = nnx.Variable(jnp.zeros((4, 6)))
    self.array, self.pair = nnx.data(jnp.zeros((4, 6))), nnx.data((jnp.zeros(()), 'text'))
    self.calls, self.once, self.parts = 0, 'here', nnx.List([nnx.Linear(6, 6, rngs=rngs)])
    self.slope = nnx.Param(jnp.full((6,), 2.0))

  def __call__(self, x):
    h = self.dropout(jnp.tanh(self.norm(self.hidden(x) + self.carry[...] + self.array)))
    self.sow(nnx.Intermediate, 'features', h)
    self.slope[...] = jnp.clip(self.slope[...], 0.0, 1.0)
    self.carry[...], self.array = h, jnp.sin(h)
    self.pair = (self.pair[0] + jnp.sum(h), f'text {self.calls}')
    self.calls += 1
    if hasattr(self, 'once'):
      del self.once
      self.cache, self.parts[0].seen = nnx.Cache(jnp.mean(h, 0)), True
      self.parts.append(nnx.Dropout(0.5, rngs=nnx.Rngs(7)))
    return self.readout(self.parts[0](h) * self.slope[...][None])


def assert_alike(one, two):
  """The same structure and the same numbers."""
  (one, got), (two, want) = nnx.split(one), nnx.split(two)
  assert one == two
  data = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
  for (path, a), (_, b) in zip(*(jax.tree_util.tree_leaves_with_path(s) for s in (got, want))):
    np.testing.assert_allclose(data(a), data(b), rtol=1e-6, atol=1e-6, err_msg=str(path))


@pytest.mark.filterwarnings('ignore:Using .Module.sow:DeprecationWarning')  # Outside of capture.
@pytest.mark.parametrize('rule, way', [
    *(('align_prop', way) for way in ('plainly', 'jit', 'grad', 'jit of grad')),
    ('kp', 'plainly'), ('kp', 'jit of grad'), ('align_ada', 'jit of grad')])
@pytest.mark.some(2)
def test_what_a_call_does_to_a_model(rule, way):
  """Is what it does to the plain one, twice: state, static attributes, and what comes and goes."""
  objective = lambda model: jnp.mean(jnp.sin(model(X)))
  run = {'plainly': objective, 'jit': nnx.jit(objective), 'grad': nnx.grad(objective),
         'jit of grad': nnx.jit(nnx.grad(objective))}[way]
  model, plain = bioprop.plug(Busy(nnx.Rngs(0)), rule, nnx.Rngs(1), X), Busy(nnx.Rngs(0))
  for step in (1, 2):
    got, want = run(model), run(plain)
    assert_alike(bioprop.unplug(nnx.clone(model)), plain)
    assert model.calls == step and len(model.features.get_value()) == step
  if 'grad' in way and rule == 'align_prop':
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
  assert_alike(bioprop.unplug(model), plain)


@pytest.mark.parametrize('norm', [nnx.SpectralNorm, nnx.WeightNorm])
def test_layers_that_look_at_all_parameters(norm):
  """They do not find the feedback that lies among them, in a plain call and in a trace."""
  make = lambda: nnx.Sequential(
      nnx.Linear(6, 5, rngs=nnx.Rngs(0)), jnp.tanh,
      norm(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))
  model, plain = bioprop.plug(make(), 'kp', nnx.Rngs(1), X), make()
  run = nnx.jit(lambda model: model(X))
  for call in (lambda model: model(X), run):
    np.testing.assert_array_equal(call(model), call(plain))
  assert_alike(bioprop.unplug(model), plain)


class Perturbed(nnx.Module):
  """With a place where the gradient of an activity is asked."""

  def __init__(self, rngs):
    self.hidden, self.readout = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    h = self.perturb('seen', jnp.tanh(self.hidden(x)))
    self.sow(nnx.Intermediate, 'features', h)
    return self.readout(h)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # Of sow and perturb in plain calls.
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
def test_gradients_of_activities(rule):
  """nnx.perturb and nnx.capture show what the rule sends."""
  model = bioprop.plug(Perturbed(nnx.Rngs(0)), rule, nnx.Rngs(1), X)
  run = lambda model: jnp.sum(jnp.sin(model(X)))
  _, perturbations = nnx.capture(run, nnx.Perturbation)(model)

  @nnx.jit
  def gradient(model, perturbations):
    loss = lambda model, own: nnx.capture(run, nnx.Intermediate, init=own)(model)
    return nnx.grad(loss, argnums=1, has_aux=True)(model, perturbations)

  grads, sown = gradient(model, perturbations)
  np.testing.assert_allclose(sown['features'].get_value()[0],
                             jnp.tanh(X @ model.hidden.kernel[...]), rtol=1e-5, atol=1e-6)
  e = np.cos(np.asarray(model(X)))
  b = np.asarray(jax.tree.leaves(model.bioprop_feedback['readout'])[0])
  np.testing.assert_allclose(grads['seen'][...], e @ (b if rule == 'dfa' else b.T), atol=1e-6)
