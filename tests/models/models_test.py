"""The models that come with the library: published sizes, and every layer learns by the rule."""
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.models import MODELS, RNN, Transformer

# Counted by hand from the papers: LeNet-5 with full connections and a 10-way readout; ResNet-20
# 0.27 M (He et al. 2016, table 6), here with projections in the two shortcuts that change shape.
LENET = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (25 * 16 + 1) * 120 + 121 * 84 + 85 * 10
RESNET20 = (
    27 * 16 + 32 + 3 * (2 * 9 * 16 * 16 + 64)
    + 9 * 16 * 32 + 5 * 9 * 32 * 32 + 6 * 64 + 16 * 32 + 64
    + 9 * 32 * 64 + 5 * 9 * 64 * 64 + 6 * 128 + 32 * 64 + 128
    + 65 * 10)
# Two blocks of width 128: query, key, value, out; up and down; two norms. 10 tokens, 64 places.
TRANSFORMER = (
    2 * (4 * 129 * 128 + 129 * 512 + 513 * 128 + 4 * 128)
    + (10 + 64) * 128 + 2 * 128 + 129 * 10)
SIZES = {
    'mlp': ((28, 28, 1), 785 * 800 + 801 * 800 + 801 * 10),
    'cnn': ((32, 32, 3), 28 * 64 + 6 * 577 * 64 + 65 * 10),
    'lenet': ((28, 28, 1), LENET),
    'resnet20': ((32, 32, 3), RESNET20),
    'resnet18': ((32, 32, 3), None),
    # One number in, 128 from the state before, and a readout of every state.
    'rnn': ((7,), (1 + 1) * 128 + 128 * 128 + 129 * 10),
    'transformer': ((7,), TRANSFORMER),
}


def sample(name):
  """Two inputs: images, or sequences of tokens."""
  shape = SIZES[name][0]
  return jnp.zeros((2, *shape), jnp.int32 if len(shape) == 1 else jnp.float32)


@pytest.mark.parametrize('name', MODELS)
def test_size_and_output(name):
  """Parameters by count, logits [n, 10], or [n, T, 10] for sequences."""
  shape, size = SIZES[name]
  out, variables = jax.eval_shape(lambda key: MODELS[name]().init_with_output(
      key, sample(name), train=True), jax.random.key(0))
  assert out.shape == ((2, *shape, 10) if len(shape) == 1 else (2, 10))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  assert size is None or count == size


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('rule', ['fa', 'dfa'])
@pytest.mark.some(3)
def test_no_weight_is_left_out(name, rule):
  """describe finds a rule for each kernel, and feedback where the input can take a cotangent."""
  report = bioprop.describe(MODELS[name](), rule, sample(name), train=True)
  assert not report.left_out
  kernels = [row for row in report if row.path.endswith('kernel')]
  assert all(row.rule == rule for row in kernels)
  assert {row.path for row in kernels if not row.feedback} == (
      {'_Cell_0/input/kernel'} if name == 'rnn' else set())  # Its bits are cast from integers.


def transformer():
  """A small one with parameters that are nowhere zero, and tokens [2, 7]."""
  random = np.random.RandomState(0)
  model = Transformer(classes=11, width=16, heads=2, positions=7)
  tokens = jnp.asarray(random.randint(0, 11, (2, 7)))
  variables = model.init(jax.random.key(0), tokens)
  return model, jax.tree.map(lambda w: w + 0.1 * random.randn(*w.shape), variables), tokens


@pytest.mark.slow
def test_the_transformer_is_causal():
  """Another token at place 4 changes the outputs of its own sequence from place 4 on, all of them.

  Through attention every later place sees it, and nothing else may.
  """
  model, variables, tokens = transformer()
  other = tokens.at[0, 4].add(1).clip(0, 10)
  assert other[0, 4] != tokens[0, 4]
  moved = jnp.any(model.apply(variables, tokens) != model.apply(variables, other), axis=-1)
  np.testing.assert_array_equal(moved, [[False] * 4 + [True] * 3, [False] * 7])


def test_the_transformer_begins_with_blocks_that_add_nothing():
  """All outputs are equal, and the stream is the embeddings."""
  model, _, tokens = transformer()
  variables = model.init(jax.random.key(0), tokens)
  logits, seen = model.apply(variables, tokens, capture_intermediates=True)
  assert not np.any(logits)
  params, seen = variables['params'], seen['intermediates']
  np.testing.assert_array_equal(
      seen['block_1']['__call__'][0],
      params['tokens']['embedding'][tokens] + params['places']['embedding'][None, :])


def test_the_transformer_knows_places():
  """The same token everywhere: attention to equals is blind to places, embeddings are not."""
  model, variables, _ = transformer()
  logits = model.apply(variables, jnp.zeros((1, 7), jnp.int32))
  assert jnp.abs(logits[0, 3] - logits[0, 4]).max() > 1e-2


def test_the_transformer_refuses_more_tokens_than_places():
  """A place without an embedding would be NaN."""
  model, variables, _ = transformer()
  with pytest.raises(ValueError, match=r'8 tokens.*has 7.*positions=8'):
    model.apply(variables, jnp.zeros((1, 8), jnp.int32))


def rnn(channels=1, **options):
  """A small recurrent network with parameters ~ N(0, 1), its layers by name, and x [4, 6, c]."""
  model = RNN(classes=3, width=5, **options)
  random = np.random.RandomState(0)
  x = random.randn(4, 6, channels).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda w: random.randn(*w.shape).astype(np.float32), shapes)
  flat = flax.traverse_util.flatten_dict(variables['params'])
  return model, variables, {path[-2:]: w.astype(np.float64) for path, w in flat.items()}, x


PHI = {'relu': lambda a: np.maximum(a, 0), 'tanh': np.tanh}


@pytest.mark.parametrize('parametrization', ['standard', 'ntk'])
@pytest.mark.parametrize('activation, channels', [('relu', 1), ('relu', 3), ('tanh', 2)])
def test_the_rnn_is_a_loop_over_time(parametrization, activation, channels):
  """s_t = phi(x_t W_in + s_{t-1} W_rec + b), each product over the root of its fan-in in ntk."""
  model, variables, w, x = rnn(channels, activation=activation, parametrization=parametrization)
  assert set(w) == {('input', 'kernel'), ('input', 'bias'), ('recurrent', 'kernel'),
                    ('Dense_0', 'kernel'), ('Dense_0', 'bias')}
  root = np.sqrt if parametrization == 'ntk' else np.ones_like
  into, recurrent, out = (w[name, 'kernel'] / root(float(len(w[name, 'kernel'])))
                          for name in ('input', 'recurrent', 'Dense_0'))
  state, want = np.zeros((4, 5)), []
  for t in range(6):
    state = PHI[activation](x[:, t] @ into + state @ recurrent + w['input', 'bias'])
    want.append(state @ out + w['Dense_0', 'bias'])
  got = model.apply(variables, x)
  assert got.shape == (4, 6, 3) and got.dtype == jnp.float32
  np.testing.assert_allclose(got, np.stack(want, 1), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.float32])
def test_the_rnn_takes_numbers_of_any_kind(dtype):
  """[n, T] is [n, T, 1], and integers are the numbers that they are."""
  model, variables, *_ = rnn()
  bits = np.random.RandomState(1).randint(0, 3, (4, 6))
  want = model.apply(variables, bits[..., None].astype(np.float32))
  assert np.ptp(want) > 1
  for x in (bits, bits[..., None]):
    np.testing.assert_array_equal(model.apply(variables, jnp.asarray(x, dtype)), want)


def test_the_rnn_sees_nothing_that_is_to_come():
  """Another number at step 2 changes the outputs of its own sequence from there on."""
  model, variables, _, x = rnn(activation='tanh')
  other = x.copy()
  other[1, 2] += 1
  moved = np.any(model.apply(variables, x) != model.apply(variables, other), axis=-1)
  np.testing.assert_array_equal(moved, [[False] * 6, [False] * 2 + [True] * 4,
                                        [False] * 6, [False] * 6])
