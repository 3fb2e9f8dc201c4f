"""The Align rules: backprop at initialisation, their own way later, backprop's in wide networks."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors
from bioprop.models import CNN, MLP, RNN, LeNet, Transformer
from bioprop.models.resnet import ResNet

ALIGN = ('align_prop', 'align_ada', 'align_zero')
RNG = np.random.RandomState(0)
TOKENS = RNG.randint(0, 5, (2, 6))


class Recurrent(nn.Module):
  """Gates, time, attention over it."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    x = nn.RNN(nn.GRUCell(5, param_dtype=x.dtype))(x)
    return nn.Dense(3)(nn.MultiHeadDotProductAttention(2, qkv_features=4)(x))


class Odd(nn.Module):
  """Parameters of its own, used in every way: a matrix, learned queries, a scale, one in a scan."""

  @nn.compact
  def __call__(self, x, train=False):
    del train
    make = lambda name, *shape: self.param(name, nn.initializers.normal(0.5), shape)
    x = nn.tanh(x @ make('matrix', 6, 4)) * nn.softplus(make('scale', 4))[None, None]
    keys = nn.tanh(make('queries', 3, 4) @ make('mixing', 4, 4))
    x = jax.nn.softmax(x @ keys.T) @ keys
    stack = make('stack', 2, 4, 4)
    x = jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, stack)[0]
    return jax.checkpoint(lambda x, w: jax.jit(jnp.tanh)(x @ w))(x, make('last', 4, 3))


def images(n, size, channels):
  return RNG.randn(n, size, size, channels)


ZOO = {
    'mlp': (lambda: MLP(hidden=(7, 6)), images(3, 4, 1)),
    'lenet': (LeNet, images(2, 28, 1)),
    'cnn': (lambda: CNN(width=3, strides=(1, 2), parametrization='ntk'), images(3, 6, 3)),
    'rnn': (lambda: RNN(classes=2, width=4, parametrization='ntk'), RNG.randn(3, 5)),
    'resnet': (lambda: ResNet(stages=(1, 1), width=3), images(3, 6, 3)),
    'transformer': (lambda: Transformer(5, width=8, heads=2, positions=6), TOKENS),
    'recurrent': (Recurrent, RNG.randn(2, 4, 6)),
    'odd': (Odd, RNG.randn(2, 4, 6)),
}


@pytest.fixture(autouse=True)
def _promotion():
  """The zoo's parameters are float32 until they are drawn anew in float64."""
  with jax.numpy_dtype_promotion('standard'):
    yield


def drawn(shapes):
  """float64 parameters; none begins at zero, as some of the transformer's do."""
  draw = np.random.RandomState(1).randn
  return jax.tree.map(lambda a: jnp.asarray(draw(*a.shape) / max(1, a.size / a.shape[-1])**0.5),
                      shapes)


def start(name, rule):
  """(gradient in the parameters, parameters, feedback) of a model of the zoo and its plain one."""
  make, x = ZOO[name]
  first = np.float32 if np.issubdtype(x.dtype, np.floating) else x.dtype
  model, plugged = make(), bioprop.plug(make(), rule)
  shapes = jax.eval_shape(lambda: plugged.init(jax.random.key(0), np.asarray(x, first)))
  params = drawn(shapes['params'])
  stats = jax.tree.map(lambda a: jnp.ones(a.shape), shapes.get('batch_stats', {}))
  feedback = ({'initial': params} if rule != 'align_prop'
              else _weights(shapes['feedback'], params))

  def gradient(which):

    def loss(params):
      variables = {'params': params, 'batch_stats': stats}
      if which is plugged:
        variables['feedback'] = feedback
      out, new = which.apply(variables, x, train=True, mutable=['batch_stats'])
      return jnp.mean(jnp.sin(out)), (out, new)

    return jax.jit(jax.grad(loss, has_aux=True))

  return gradient(plugged), gradient(model), params


def _weights(shapes, params):
  return {name: _weights(value, params[name]) if isinstance(value, dict) else params[name]
          for name, value in shapes.items()}


def close(got, want, rtol=1e-10):
  """Every leaf, relative to the largest gradient of all."""
  scale = max(float(jnp.abs(w).max()) for w in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow) if name in (
        'lenet', 'resnet', 'transformer', 'recurrent') else name for name in ZOO])
@pytest.mark.parametrize('rule', ALIGN)
@pytest.mark.usefixtures('x64')
@pytest.mark.some(2)
def test_at_initialisation_it_is_backprop(name, rule):
  """Gradients, output and running statistics."""
  if (name, rule) == ('odd', 'align_prop'):
    pytest.skip('no layer that a rule of single layers could act on')
  plugged, plain, params = start(name, rule)
  (got, (out, stats)), (want, (plain_out, plain_stats)) = plugged(params), plain(params)
  close(got, want)
  close((out, stats), (plain_out, plain_stats))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet', 'transformer', 'recurrent', 'odd'])
@pytest.mark.usefixtures('x64')
def test_later_the_output_is_the_networks_own(name):
  """And the two rules are neither backprop nor each other."""
  grads = {}
  for rule in ('align_ada', 'align_zero'):
    plugged, plain, params = start(name, rule)
    moved = jax.tree.map(lambda w: w + 0.3 * jnp.cos(jnp.arange(w.size)).reshape(w.shape), params)
    grads[rule], (out, stats) = plugged(moved)
    grads['bp'], (plain_out, plain_stats) = plain(moved)
    close((out, stats), (plain_out, plain_stats))
  for one, other in (('align_ada', 'bp'), ('align_zero', 'bp'), ('align_ada', 'align_zero')):
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), grads[one], grads[other])
    assert max(jax.tree.leaves(apart)) > 1e-2, (one, other)


@pytest.mark.usefixtures('x64')
def test_zero_is_the_linearisation():
  """The gradient of f(theta0) + J(theta0) (theta - theta0), at the error of f(theta)."""
  plugged, plain, params = start('mlp', 'align_zero')
  moved = jax.tree.map(lambda w: 1.1 * w + 0.1, params)
  model, x = MLP(hidden=(7, 6)), ZOO['mlp'][1]
  f = lambda params: model.apply({'params': params}, x)
  error = jax.grad(lambda out: jnp.mean(jnp.sin(out)))(f(moved))
  close(plugged(moved)[0], jax.vjp(f, params)[1](error)[0])


def trajectory(rule, width):
  """Outputs over time of a network in NTK parametrisation: 24-N-N-4 ReLU, squares, SGD."""
  x, y = (jnp.asarray(np.random.RandomState(i).randn(32, d), jnp.float32)
          for i, d in ((1, 24), (2, 4)))

  class Ntk(nn.Module):

    @nn.compact
    def __call__(self, x):
      dense = lambda n, x: nn.Dense(
          n, use_bias=False, kernel_init=nn.initializers.normal(1.0))(x) / x.shape[-1]**0.5
      phi = lambda h: 2**0.5 * nn.relu(h)
      return dense(4, phi(dense(width, phi(dense(width, x)))))

  model = Ntk() if rule == 'bp' else bioprop.plug(Ntk(), rule)
  variables = model.init(jax.random.key(3), x)
  params = variables.pop('params')
  run = lambda p: model.apply({'params': p, **variables}, x)
  loss = lambda p: (jnp.mean(jnp.square(run(p) - y)), run(p))

  def step(params, _):
    grads, out = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda w, g: w - g, params, grads), out

  return np.asarray(jax.jit(lambda p: jax.lax.scan(step, p, None, 100)[1])(params))


@pytest.mark.slow
def test_wide_networks_learn_as_by_backprop():
  """Boopathy & Fiete's claim: the distance falls as 1/N, and feedback alignment's does not."""
  widths = (32, 128, 512)
  bp = [trajectory('bp', width) for width in widths]
  away = {rule: [np.sqrt(np.mean((trajectory(rule, width) - want)**2))
                 for width, want in zip(widths, bp)] for rule in (*ALIGN, 'fa')}
  slopes = {rule: np.polyfit(np.log(widths), np.log(d), 1)[0] for rule, d in away.items()}
  for rule in ALIGN:
    assert -1.5 < slopes[rule] < -0.7, (rule, slopes[rule])
  assert slopes['fa'] > -0.2, slopes['fa']
  assert away['align_zero'][0] > away['align_ada'][0] > away['align_prop'][0]


def test_not_mixed_with_others():
  """They see the whole network."""
  for choice in ({'first': 'align_ada', '*': 'fa'}, {'first': 'align_ada'}):
    with pytest.raises(errors.PatternError, match="'first' asks for AlignAda.*'align_prop'"):
      bioprop.plug(MLP(), choice)


def test_other_feedback():
  """Missing, or of another rule."""
  model, x = bioprop.plug(MLP(hidden=(7,)), 'align_ada'), images(3, 4, 1)
  variables = model.init(jax.random.key(0), x)
  with pytest.raises(errors.FeedbackMissingError, match='Carry what init returned'):
    model.apply({'params': variables['params']}, x)
  other = bioprop.plug(MLP(hidden=(8,)), 'align_ada').init(jax.random.key(0), x)
  for feedback in (other['feedback'], bioprop.plug(MLP(hidden=(7,)), 'fa').init(
      jax.random.key(0), x)['feedback']):
    with pytest.raises(errors.FeedbackMissingError, match='made for another model or'):
      model.apply({'params': variables['params'], 'feedback': feedback}, x)


def test_existing_weights():
  """The README's line: the network's initial self is what it is now."""
  model, x = bioprop.plug(MLP(hidden=(7,)), 'align_ada'), images(3, 4, 1).astype(np.float32)
  params = model.init(jax.random.key(0), x)['params']
  feedback = model.apply({'params': params}, x, mutable=['feedback'],
                         rngs={'feedback': jax.random.key(1)})[1]
  jax.tree.map(np.testing.assert_array_equal, feedback['feedback']['initial'], params)


def test_a_branch_that_activities_choose():
  """The twin might take the other one."""

  class Branch(nn.Module):

    @nn.compact
    def __call__(self, x):
      w = self.param('w', nn.initializers.normal(), (4, 4))
      x = nn.Dense(4)(x)
      return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x)

  model, x = bioprop.plug(Branch(), 'align_ada'), jnp.ones((2, 3))
  variables = model.init(jax.random.key(0), x)
  with pytest.raises(errors.UnsupportedLayerError, match="inside a 'cond'"):
    jax.grad(lambda p: model.apply({**variables, 'params': p}, x).sum())(variables['params'])


class Noisy(nnx.Module):
  """State that changes, and state that appears."""

  def __init__(self):
    self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    self.norm, self.drop = nnx.BatchNorm(4, rngs=nnx.Rngs(1)), nnx.Dropout(0.5, rngs=nnx.Rngs(2))

  def __call__(self, x):
    x = self.drop(self.norm(self.layer(x)))
    self.seen = nnx.Intermediate(x)
    return x


@pytest.mark.parametrize('rule', ['align_ada', 'align_zero'])
def test_the_state_of_nnx_models(rule):
  """Running means, counts of draws, and what is sown are the plain model's; and it comes off."""
  x = jnp.asarray(RNG.randn(5, 4), jnp.float32)
  plain, model = Noisy(), bioprop.plug(Noisy(), rule)
  loss = nnx.jit(nnx.grad(lambda m: jnp.mean(jnp.sin(m(x)))))
  for _ in range(2):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
                 loss(model), loss(plain))
  kept = lambda m: nnx.to_pure_dict(nnx.state(m, nnx.Not(nnx.Any(bioprop.Feedback, nnx.RngKey))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), kept(model), kept(plain))
  assert nnx.graphdef(bioprop.unplug(model)) == nnx.graphdef(plain)


@pytest.mark.parametrize('rule', ['align_ada', 'align_zero'])
def test_outside_the_models_call_there_is_no_gradient(rule):
  """It would be backprop's; the value is the layer's own."""
  x = jnp.asarray(RNG.randn(5, 4), jnp.float32)
  model = bioprop.plug(Noisy(), rule)
  np.testing.assert_array_equal(model.layer(x), Noisy().layer(x))
  with pytest.raises(errors.UnboundError, match='Linear.__call__'):
    nnx.grad(lambda m: m.layer(x).sum())(model)
  alone = bioprop.plug(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rule)
  grads = nnx.grad(lambda m: m(x).sum())(alone)
  np.testing.assert_allclose(grads['kernel'][...], jnp.tile(x.sum(0)[:, None], 3), rtol=1e-5)
  assert type(bioprop.unplug(alone)) is nnx.Linear


def test_no_retrace():
  """One trace for all steps, while the parameters move."""
  model, x = bioprop.plug(MLP(hidden=(7,)), 'align_ada'), images(3, 4, 1)
  variables, traces = model.init(jax.random.key(0), x), []

  @jax.jit
  def step(params):
    traces.append(1)
    return jax.tree.map(jnp.add, params, jax.grad(lambda p: model.apply(
        {**variables, 'params': p}, x).sum())(params))

  step(step(variables['params']))
  assert len(traces) == 1
