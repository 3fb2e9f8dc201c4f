"""The alignment score: against matrices written out, and against what the paper claims of it."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import measure
from bioprop.bench import align_score
from bioprop.errors import MeasureError
from bioprop.measure import alignment_scores
from bioprop.models import MLP, RNN
from bioprop.training import base

RNG = np.random.RandomState(0)
KEY = jax.random.key(0)


def changes(model, *sample):
  """Two random trees like the model's parameters, float64."""
  shapes = jax.eval_shape(model.init, KEY, *sample)['params']
  return [jax.tree.map(lambda a: jnp.asarray(RNG.randn(*a.shape)), shapes) for _ in range(2)]


def cosine(a, b):
  """Of the Gram operators of two matrices [in, out]."""
  a, b = a @ a.T, b @ b.T
  return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_dense_layers_are_exact():
  """Biases take no part; linen and NNX are the same."""
  x = jax.ShapeDtypeStruct((4, 7), jnp.float64)  # 7 unit vectors are more than one batch.
  model = MLP(hidden=(6, 5), classes=3)
  with jax.numpy_dtype_promotion('standard'):  # The model's own parameters are float32.
    change, shadow = changes(model, x)
    got = alignment_scores(measure.layers(model, x), change, shadow, key=KEY)
  assert list(got) == ['Dense_0', 'Dense_1', 'Dense_2']
  with jax.numpy_dtype_promotion('standard'):
    tiny = jax.tree.map(lambda w: 1e-9 * w, change)  # A wide network's weights hardly move.
    small = alignment_scores(measure.layers(model, x), tiny, shadow, key=KEY)
  for name, value in got.items():
    np.testing.assert_allclose(small[name].score, value.score, rtol=1e-10)
    want = cosine(*(np.asarray(tree[name]['kernel']) for tree in (change, shadow)))
    np.testing.assert_allclose(value.score, want, rtol=1e-10)
    assert abs(value.control - want) > 1e-3
  with jax.numpy_dtype_promotion('standard'):
    layer = nnx.Sequential(nnx.Linear(7, 6, rngs=nnx.Rngs(0)), nnx.tanh)
    own, other = ({'layers': {0: tree['Dense_0']}} for tree in (change, shadow))
    again = alignment_scores(measure.layers(layer, x), own, other, key=KEY)
  assert list(again) == ['layers/0']
  np.testing.assert_allclose(again['layers/0'].score, got['Dense_0'].score, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_convolutions_as_operators_on_images():
  """The operator is written out, column by column; noise comes close to it."""
  x = jnp.zeros((50, 5, 4, 2))
  model = nn.Sequential([nn.Conv(3, (3, 3), strides=2, param_dtype=jnp.float64)])
  change, shadow = changes(model, x)
  got = alignment_scores(
      measure.layers(model, x), change, shadow, key=KEY, probes=40000)['layers_0']
  basis = jnp.eye(40).reshape(40, 5, 4, 2)

  def matrix(tree):
    out = jax.lax.conv_general_dilated(basis, tree['layers_0']['kernel'], (2, 2), 'SAME',
                                       dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return np.asarray(out).reshape(40, -1)

  want = cosine(matrix(change), matrix(shadow))
  assert float(got.score) == pytest.approx(want, abs=0.02)
  assert 0.05 < want < 0.95


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_a_rotation_of_the_outputs_is_no_difference():
  """1 for dW Q, less for its entries shuffled; attention and tokens too, at first calls."""

  class Model(nn.Module):

    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(9, 8, param_dtype=jnp.float64)
      h = embed(tokens)
      h = nn.MultiHeadDotProductAttention(2, param_dtype=jnp.float64)(h)
      return embed.attend(h)

  tokens = RNG.randint(0, 9, (3, 5))
  model = Model()
  change = changes(model, tokens)[0]
  turn = np.linalg.qr(RNG.randn(8, 8))[0]

  def turned(path, w):
    name = path[-1].key, path[-2].key
    if name == ('embedding', 'Embed_0'):
      return w @ turn
    if name[0] == 'kernel' and name[1] != 'out':
      return (w.reshape(8, 8) @ turn).reshape(w.shape)
    return 2 * w

  got = alignment_scores(
      measure.layers(model, tokens), change, jax.tree_util.tree_map_with_path(turned, change),
      key=KEY, probes=2000)
  assert set(got) == {'Embed_0', *(
      f'MultiHeadDotProductAttention_0/{name}' for name in ('query', 'key', 'value', 'out'))}
  for value in got.values():
    np.testing.assert_allclose(value.score, 1, rtol=1e-9)
    assert value.control < 0.95


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
def test_a_stack_of_layers_has_a_score_for_each():
  """The layers of an nn.scan; and one that runs through time has one."""

  class Block(nn.Module):

    @nn.compact
    def __call__(self, h, _):
      return nn.tanh(nn.Dense(4, name='dense', param_dtype=jnp.float64)(h)), None

  class Stack(nn.Module):

    @nn.compact
    def __call__(self, x):
      return nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)(
          name='blocks')(x, None)[0]

  x = jnp.zeros((2, 4))
  change, shadow = changes(Stack(), x)
  got = alignment_scores(measure.layers(Stack(), x), change, shadow, key=KEY)['blocks/dense'].score
  kernels = [np.asarray(tree['blocks']['dense']['kernel']) for tree in (change, shadow)]
  np.testing.assert_allclose(got, [cosine(a, b) for a, b in zip(*kernels)], rtol=1e-10)
  with jax.numpy_dtype_promotion('standard'):
    rnn, x = RNN(width=4), jnp.zeros((2, 6))
    change, shadow = changes(rnn, x)
    got = alignment_scores(measure.layers(rnn, x), change, shadow, key=KEY)
  assert list(got) == ['_Cell_0/input', '_Cell_0/recurrent', 'Dense_0']
  want = cosine(*(np.asarray(t['_Cell_0']['recurrent']['kernel']) for t in (change, shadow)))
  np.testing.assert_allclose(got['_Cell_0/recurrent'].score, want, rtol=1e-5)


def trained(width, rule):
  """The scores of a 24-N-N-4 ReLU network in NTK parametrisation after 150 steps."""
  x, y = (jnp.asarray(np.random.RandomState(i).randn(32, d), jnp.float32)
          for i, d in ((1, 24), (2, 4)))
  model = MLP(classes=4, hidden=(width, width), activation='relu', parametrization='ntk')
  initial = model.init(KEY, x)['params']
  loss = lambda out: jnp.mean(jnp.square(out - y))
  extra = {'feedback': {'initial': initial}} if rule != 'bp' else {}

  def gradient(rule, params, extra):
    plugged = bioprop.plug(model, rule)
    return jax.grad(lambda p: loss(plugged.apply({'params': p, **extra}, x)))(params)

  def step(both, _):
    own = gradient(rule, both[0], extra)
    shadow = gradient('align_zero', both[0], {'feedback': {'initial': initial}})
    return jax.tree.map(lambda w, g: w - g, both, (own, shadow)), None

  both = jax.jit(lambda: jax.lax.scan(step, (initial, initial), None, 150)[0])()
  change, shadow = (jax.tree.map(jnp.subtract, tree, initial) for tree in both)
  return alignment_scores(measure.layers(model, x), change, shadow, key=KEY)


@pytest.mark.slow
def test_wide_networks_align():
  """The paper's claim for backprop; the first layer under align_ada is the shadow's by definition.

  A prototype of other code got .77, .64, .41 at width 32 and .998, .994, .969 at 1024.
  """
  narrow, wide = trained(32, 'bp'), trained(1024, 'bp')
  for layer, least in zip(wide, (0.98, 0.95, 0.9)):
    assert wide[layer].score > least > 0.85 > narrow[layer].score
    assert wide[layer].control < 0.75
  ada = trained(32, 'align_ada')
  assert float(ada['Dense_0'].score) == pytest.approx(1, abs=1e-4)
  assert ada['Dense_1'].score < 0.99


@pytest.mark.slow
def test_the_benchmark_trains_both(tmp_path):
  """On digits; its shadow is that of align_zero, so that align_zero scores 1."""
  config = base()
  config.update(rule='align_zero', validation=1000, learning_rate=0.02, momentum=0.0)
  config.model_options.hidden = (12,)
  got = align_score.scores(config, None, 1)
  assert [float(value.score) for value in got.values()] == pytest.approx([1, 1], abs=1e-4)
  config.rule = 'fa'
  assert align_score.scores(config, None, 1)['Dense_0'].score < 0.9


@pytest.mark.slow
def test_what_cannot_be_measured():
  """Trees of another model, and no probes."""
  x = jnp.zeros((2, 7))
  model = MLP(hidden=(6,))
  good, layers = model.init(KEY, x)['params'], measure.layers(model, x)
  other = MLP(hidden=(5,)).init(KEY, x)['params']
  with pytest.raises(MeasureError, match=r"shadow.*'Dense_0/kernel', of shape \(7, 6\).*\(7, 5\)"):
    alignment_scores(layers, good, other, key=KEY)
  with pytest.raises(MeasureError, match='change.*not there.*jnp.subtract'):
    alignment_scores(layers, {'params': good}, good, key=KEY)
  with pytest.raises(MeasureError, match='probes is 0'):
    alignment_scores(layers, good, good, key=KEY, probes=0)
