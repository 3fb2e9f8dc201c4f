"""Weights and feedback that stay aligned: models are trained by the library, norms are NumPy's."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.models import MLP, LeNet

KEY = jax.random.key(0)


@pytest.fixture
def double(x64):
  """Variables are cast to float64; layers make theirs in float32, and would refuse the inputs."""
  with jax.numpy_dtype_promotion('standard'):
    yield


class Convolutions(nn.Module):
  """A convolution, pooling, a convolution of two groups, and two dense layers; leaky ReLU."""

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.leaky_relu(nn.Conv(4, (3, 3))(x), 0.2), (2, 2), (2, 2))
    x = nn.leaky_relu(nn.Conv(6, (2, 2), feature_group_count=2)(x), 0.2)
    x = nn.leaky_relu(nn.Dense(8)(x.reshape(x.shape[0], -1)), 0.2)
    return nn.Dense(3, use_bias=False)(x)


class Squares(nn.Module):
  """ReLU^2, and then ReLU: of degree 2 and 1."""

  @nn.compact
  def __call__(self, x):
    x = jnp.square(nn.relu(nn.Dense(9)(x)))
    x = nn.relu(nn.Dense(8)(x))
    return nn.Dense(3)(x)


class Nnx(nnx.Module):
  """Dense layers with ReLU and dropout, in the order of their names reversed."""

  def __init__(self):
    rngs = nnx.Rngs(3)
    self.c = nnx.Linear(7, 9, rngs=rngs)
    self.b = nnx.Linear(9, 8, rngs=rngs)
    self.a = nnx.Linear(8, 3, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

  def __call__(self, x):
    return self.a(self.dropout(nnx.relu(self.b(nnx.relu(self.c(x))))))


# A model, the shape of a sample, its layers from the first up, degrees between them.
CHAINS = {
    'mlp': (lambda: MLP(classes=3, hidden=(9, 8), activation='relu'), (7,),
            ('Dense_0', 'Dense_1', 'Dense_2'), (1, 1)),
    'ntk': (lambda: MLP(classes=3, hidden=(9, 8), activation='relu', parametrization='ntk'), (7,),
            ('Dense_0', 'Dense_1', 'Dense_2'), (1, 1)),
    'squares': (Squares, (7,), ('Dense_0', 'Dense_1', 'Dense_2'), (2, 1)),
    'convolutions': (Convolutions, (6, 6, 2), ('Conv_0', 'Conv_1', 'Dense_0', 'Dense_1'),
                     (1, 1, 1)),
    'nnx': (Nnx, (7,), ('c', 'b', 'a'), (1, 1)),
}


def float64(tree):
  """All of it; biases that are not zero."""
  rng = np.random.RandomState(4)
  return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) if a.any() else
                      jnp.asarray(0.3 * rng.randn(*a.shape)), tree)


def plugged(name, rule='fa'):
  """A model and its variables, inputs, layers and degrees."""
  make, shape, layers, degrees = CHAINS[name]
  x = jnp.asarray(np.random.RandomState(1).randn(12, *shape))
  if name == 'nnx':
    model = bioprop.plug(make(), rule, nnx.Rngs(2), x)
    for kind in (nnx.Param, bioprop.Feedback):
      nnx.update(model, float64(nnx.state(model, kind)))
    return model, model, x, layers, degrees
  model = bioprop.plug(make(), rule)
  return model, float64(dict(jax.jit(model.init)(KEY, x))), x, layers, degrees


def arrays(variables, layers):
  """W, b (or None) and B of each layer, in NumPy."""
  if isinstance(variables, nnx.Module):
    layer, back = lambda name: getattr(variables, name), variables.bioprop_feedback
    rows = [(layer(name).kernel, layer(name).bias, back[name]['kernel']) for name in layers]
    return list(zip(*([np.asarray(a[...]) for a in row] for row in rows)))
  params, feedback = variables['params'], variables['feedback']
  copy = lambda a: None if a is None else np.asarray(a)
  return list(zip(*((copy(params[name]['kernel']), copy(params[name].get('bias')),
                     copy(feedback[name]['kernel'])) for name in layers)))


def squares(*parts):
  """|.|^2 of all that are there, together."""
  return sum(np.sum(np.square(np.float64(a))) for a in parts if a is not None)


def train(model, variables, x, layers, target, steps=150, rate=0.02):
  """Plain SGD on the mean squared error; `arrays` before each step and after the last."""
  out = lambda model: model(x)
  loss = lambda f: jnp.sum(jnp.square(f - target)) / (2 * len(x))
  seen = [arrays(variables, layers)]
  if isinstance(model, nnx.Module):

    @nnx.jit
    def step(model):
      grads = nnx.grad(lambda model: loss(out(model)))(model)
      state = nnx.state(model, nnx.Param)
      nnx.update(model, jax.tree.map(lambda w, g: w - rate * g, state, grads))

    for _ in range(steps):
      step(model)
      seen.append(arrays(model, layers))
    return seen

  @jax.jit
  def update(variables):
    rest = {k: v for k, v in variables.items() if k != 'params'}
    grads = jax.grad(lambda p: loss(model.apply({**rest, 'params': p}, x)))(variables['params'])
    return {**rest, 'params': jax.tree.map(
        lambda w, g: w - rate * g, variables['params'], grads)}

  for _ in range(steps):
    variables = update(variables)
    seen.append(arrays(variables, layers))
  return seen


def inner(seen):
  """<W, B> [steps + 1, L-1] of the layers above the first."""
  return np.array([[np.sum(w * b) for w, b in zip(ws[1:], feedback[1:])]
                   for ws, _, feedback in seen])


def drifts(seen, degrees):
  """[steps + 1, L-1], by how much less than under gradient flow <W, B> may be in steps: their
  |u|^2 + |v|^2 over 2 k, summed."""
  each = [[squares(*(a - b for a, b in zip(layer, before) if a is not None)) / (2 * k)
           for *pair, k in zip(zip(*after[:2]), zip(*now[:2]), degrees)
           for layer, before in [pair]] for now, after in zip(seen, seen[1:])]
  return np.concatenate([np.zeros((1, len(degrees))), np.cumsum(each, 0)])


@pytest.mark.slow
@pytest.mark.parametrize('name', CHAINS)
@pytest.mark.usefixtures('double')
def test_stays_aligned(name):
  """<W, B> is above |B|^2 / 2 on targets that turn the start's outputs around."""
  model, variables, x, layers, degrees = plugged(name)
  run = lambda v: np.asarray(model(x) if isinstance(model, nnx.Module) else model.apply(v, x))
  independent = arrays(variables, layers)
  start = bioprop.theory.aligned_init(model, variables, x)
  ws, bs, feedback = arrays(start, layers)
  for w, b in zip(ws[1:], feedback[1:]):
    np.testing.assert_array_equal(w, b)
  np.testing.assert_array_equal(ws[-1], independent[0][-1])
  for w, bias, above, k, w0, b0 in zip(ws, bs, ws[1:], degrees, *independent[:2]):
    np.testing.assert_allclose(  # As large as may be, and no larger than it was.
        squares(w, bias), min(k * squares(above), squares(w0, b0)), rtol=1e-9)
  target = -8 * run(start)
  seen = train(model, start, x, layers, target)
  half = np.array([squares(b) / 2 for b in feedback[1:]])
  got, drift = inner(seen), drifts(seen, degrees)
  assert (got >= (half - drift) * (1 - 1e-9)).all(), (got / half).min(0)
  assert drift[-1].max() < 0.1 * half.min()  # The bound is one.
  assert (got.min(0) < 1.998 * half).all()  # What is learned goes against the feedback.


@pytest.mark.slow
@pytest.mark.usefixtures('double')
def test_other_starts_do_not():
  """The same targets turn weights against feedback of its own, and against equal feedback where
  what lies below is large."""
  model, variables, x, layers, _ = plugged('mlp')
  for name in layers[:2]:
    variables['params'][name]['kernel'] *= 3
  lowest = {}
  for start in ('independent', 'equal', 'aligned'):
    given = {**variables} if start == 'independent' else bioprop.theory.aligned_init(
        model, variables, x, scale=start == 'aligned')
    seen = train(model, given, x, layers, -2 * np.asarray(model.apply(given, x)), 600, 0.002)
    cosines = inner(seen) / [[np.sqrt(squares(w) * squares(b)) for w, b in zip(ws[1:], back[1:])]
                             for ws, _, back in seen]
    lowest[start] = cosines.min()
  assert lowest['independent'] < -0.1 and lowest['equal'] < 0 and lowest['aligned'] > 0.9, lowest


class Small(nn.Module):
  """Layers whose weights are made as `dense` says."""
  options: tuple = ()

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(9, **dict(self.options))(x))
    return nn.Dense(2, **dict(self.options))(x)


X = jnp.ones((2, 3))


@pytest.mark.slow
def test_all_else_stays():
  """Boxes of metadata, dtypes, and the variables that were given."""
  boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'x'))
  model = bioprop.plug(Small((('kernel_init', boxed), ('dtype', jnp.bfloat16),
                              ('param_dtype', jnp.bfloat16))), 'fa')
  variables = model.init(KEY, X)
  kept = jax.tree.map(jnp.copy, variables)
  start = bioprop.theory.aligned_init(model, variables, X)
  jax.tree.map(np.testing.assert_array_equal, variables, kept)
  assert jax.tree.structure(start) == jax.tree.structure(variables)
  assert [a.dtype for a in jax.tree.leaves(start)] == [a.dtype for a in jax.tree.leaves(variables)]
  assert isinstance(start['feedback']['Dense_1']['kernel'], nn.Partitioned)
  one, two = (np.float64(start['params'][name]['kernel'].value) for name in ('Dense_0', 'Dense_1'))
  np.testing.assert_array_equal(start['feedback']['Dense_1']['kernel'].value, two)
  assert squares(variables['params']['Dense_0']['kernel'].value) > 1.5 * squares(two)
  np.testing.assert_allclose(squares(one), squares(two), rtol=0.02)


@pytest.mark.slow
def test_nnx_models_are_changed_in_place():
  """Their values alone: no variable, no kind and no metadata."""
  x = jnp.ones((2, 7))
  model = bioprop.plug(Nnx(), 'fa', nnx.Rngs(0), x)
  streams = lambda: [np.asarray(jax.random.key_data(a) if jax.dtypes.issubdtype(
      a.dtype, jax.dtypes.prng_key) else a) for a in jax.tree.leaves(
          nnx.state(model, nnx.RngState))]
  kernel, graph, drawn = model.b.kernel, nnx.graphdef(model), streams()
  before = np.asarray(kernel[...])
  assert bioprop.theory.aligned_init(model, model, x) is model
  assert model.b.kernel is kernel and nnx.graphdef(model) == graph
  assert type(model.bioprop_feedback['b']['kernel']) is bioprop.Feedback
  assert drawn
  jax.tree.map(np.testing.assert_array_equal, streams(), drawn)
  after, back = np.asarray(kernel[...]), model.bioprop_feedback['b']['kernel'][...]
  assert squares(after) < 0.9 * squares(before)
  np.testing.assert_allclose(after / np.sqrt(squares(after)), before / np.sqrt(squares(before)),
                             rtol=1e-5)
  np.testing.assert_array_equal(after, back)
  both = jax.jit(lambda a, b: (a + b, a - b), donate_argnums=(0, 1))  # Two buffers.
  jax.block_until_ready(both(kernel[...], back))


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['kp', 'align_prop', {'Dense_2': 'bp', '*': 'fa'}], ids=str)
def test_rules_that_keep_feedback(rule):
  """Beside the kernel where it learns, and backprop among them."""
  model = bioprop.plug(MLP(classes=3, hidden=(9, 8), activation='relu'), rule)
  start = bioprop.theory.aligned_init(model, model.init(KEY, X), X)
  ws = [start['params'][f'Dense_{at}']['kernel'] for at in range(3)]
  for at in (1,) if isinstance(rule, dict) else (1, 2):
    name = f'Dense_{at}'
    back = (start['params'][name]['feedback_kernel'] if rule == 'kp' else
            start['feedback'][name]['kernel'])
    np.testing.assert_array_equal(back, ws[at])
  for w, above in zip(ws, ws[1:]):
    np.testing.assert_allclose(squares(w), squares(above), rtol=1e-5)


class Tokens(nn.Module):
  """An embedding below ReLU and a readout."""

  @nn.compact
  def __call__(self, tokens):
    return nn.Dense(2, name='readout')(nn.relu(nn.Embed(5, 4, name='embed')(tokens)))


@pytest.mark.slow
def test_layers_of_images_and_of_tokens():
  """LeNet from its readout down; an embedding, to which nothing is sent."""
  model, x = bioprop.plug(LeNet(features=(3, 4, 9), dense=8), 'fa'), jnp.ones((2, 28, 28, 1))
  start = bioprop.theory.aligned_init(model, jax.jit(model.init)(KEY, x), x)
  ws = [start['params'][name]['kernel'] for name in (
      'Conv_0', 'Conv_1', 'Conv_2', 'Dense_0', 'Dense_1')]
  norms = [squares(w) for w in ws]
  assert all(one <= two * (1 + 1e-5) for one, two in zip(norms, norms[1:])), norms
  for name in ('Conv_1', 'Conv_2', 'Dense_0', 'Dense_1'):
    np.testing.assert_array_equal(start['feedback'][name]['kernel'],
                                  start['params'][name]['kernel'])
  model, tokens = bioprop.plug(Tokens(), 'fa'), jnp.asarray([0, 3, 1])
  start = bioprop.theory.aligned_init(model, model.init(KEY, tokens), tokens)['params']
  np.testing.assert_allclose(squares(start['embed']['embedding']),
                             squares(start['readout']['kernel']), rtol=1e-5)
