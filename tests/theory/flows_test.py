"""Alignment that gradient flow guarantees, and what two-layer linear networks then learn."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.errors import TheoryError
from bioprop.theory import flows

pytestmark = pytest.mark.usefixtures('x64')

SAMPLES, INPUTS, HIDDEN = 6, 15, 12


def squares(*arrays):
  """|a|^2 of all together."""
  return sum(np.sum(np.square(np.asarray(a))) for a in arrays)


def chain(seed=0):
  """W [.., in, out] and b of a convolution and three dense layers; the third has no bias."""
  rng = np.random.RandomState(seed)
  shapes = [(3, 3, 2, 8), (8, 30), (30, 5), (5, 4)]
  biases = [None if at == 2 else rng.randn(shape[-1]) for at, shape in enumerate(shapes)]
  return [rng.randn(*shape) for shape in shapes], biases


@pytest.mark.parametrize('degrees', [1, 2, (1, 2, 0.5)], ids=str)
def test_a_start_that_stays_aligned(degrees):
  """Each layer has its own direction, and the norm of the next one or its own; B is W."""
  weights, biases = chain()
  start = flows.aligned(weights, biases, degrees)
  degrees = np.broadcast_to(degrees, 3)
  norm = np.sqrt(squares(weights[3]))
  np.testing.assert_array_equal(start.weights[3], weights[3])
  np.testing.assert_array_equal(start.biases[3], biases[3])
  for at in (2, 1, 0):
    own = [a for a in (weights[at], biases[at]) if a is not None]
    got = [a for a in (start.weights[at], start.biases[at]) if a is not None]
    total = np.sqrt(squares(*own))
    factor = min(total, np.sqrt(degrees[at]) * norm) / total
    assert len(got) == len(own)
    for a, b in zip(got, own):
      np.testing.assert_allclose(a, factor * b, rtol=1e-13)
    norm = factor * np.sqrt(squares(weights[at]))
  assert start.feedback[0] is None
  for w, b in zip(start.weights[1:], start.feedback[1:]):
    np.testing.assert_array_equal(w, b)
    assert w is not b  # Buffers of their own, which a step may be given to use up.
  bound, holds = flows.alignment_bound(*start, tuple(degrees))
  assert holds.shape == (3,) and holds.all()
  for at, b in enumerate(start.feedback[1:]):
    assert bound[at] >= 0.5 * squares(b) * (1 - 1e-13)


def test_small_layers_stay_as_they_are():
  """Zeros, too, in the first; its bias is scaled alone."""
  weights, biases = chain()
  weights = [1e-3 * w for w in weights[:3]] + weights[3:]
  weights[0] *= 0
  start = flows.aligned(weights, [None, *biases[1:]])
  for at in (0, 3):
    np.testing.assert_array_equal(start.weights[at], weights[at])
  small = flows.aligned([1e-4 * weights[1], 1e-3 * weights[2], weights[3]])
  for got, want in zip(small.weights, (1e-4 * weights[1], 1e-3 * weights[2], weights[3])):
    np.testing.assert_array_equal(got, want)


def test_bound_of_any_start():
  """Written out; independent feedback guarantees nothing."""
  weights, biases = chain()
  feedback = chain(1)[0]
  bound, holds = flows.alignment_bound(weights, [None, *feedback[1:]], biases, 2)
  for at in range(3):
    own = [a for a in (weights[at], biases[at]) if a is not None]
    want = np.sum(weights[at + 1] * feedback[at + 1]) - squares(*own) / 4
    np.testing.assert_allclose(bound[at], want, rtol=1e-13)
    assert holds[at] == (want > 0)
  assert not holds.any()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_dtypes(dtype):
  """Norms are sums in float32 or better."""
  weights = [jnp.ones((40, 400), dtype), jnp.ones((400, 7), dtype)]
  start = flows.aligned(weights)
  assert [w.dtype for w in start.weights] == [start.feedback[1].dtype, dtype] == [dtype] * 2
  np.testing.assert_allclose(start.weights[0].astype(float), np.sqrt(2800 / 16000), rtol=4e-3)


def problem(seed=0):
  """X, y and B = W_2."""
  rng = np.random.RandomState(seed)
  x = rng.randn(SAMPLES, INPUTS) / np.sqrt(INPUTS)
  return x, rng.randn(SAMPLES, 1), rng.randn(HIDDEN, 1) / 2, rng


def starts(x, w2, rng):
  """W_1(0), no larger than W_2."""
  generic = rng.randn(INPUTS, HIDDEN)
  inside = x.T @ rng.randn(SAMPLES, HIDDEN)
  smaller = lambda w: 0.9 * w * np.sqrt(squares(w2) / squares(w))
  return {'zero': 0 * generic, 'in the span': smaller(inside), 'generic': smaller(generic)}


def distance(x, y, w1, w2, b, rate=0.05, steps=4000):
  """Of what is learned to the solution of minimum norm, relative; and the flow."""
  flow = flows.two_layer_linear(x, y, w1, w2, b, rate, steps)
  smallest = x.T @ np.linalg.solve(x @ x.T, y)
  return np.sqrt(squares(flow.w - smallest) / squares(smallest)), flow


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_theorem_2(seed):
  """The minimum norm from columns in the span, another solution from elsewhere; and its rate."""
  x, y, w2, rng = problem(seed)
  smallest = flows.minimum_norm(x, y)
  np.testing.assert_allclose(smallest, x.T @ np.linalg.solve(x @ x.T, y), rtol=1e-11)
  rate, steps = 0.05, 200
  for name, w1 in starts(x, w2, rng).items():
    off, flow = distance(x, y, w1, w2, w2)
    assert flow.residual.shape == flow.inner.shape == (4001,)
    assert flow.residual[-1] < 1e-12 * flow.residual[0]
    np.testing.assert_allclose(flow.w, flow.w1 @ flow.w2, rtol=1e-12, atol=1e-12)
    assert off > 0.1 if name == 'generic' else off < 1e-12, (name, off)
    # A step of Euler multiplies what is left by 1 - rate r <= exp(-rate r), to first order.
    bound = flows.rate_bound(x, flow.inner[:steps + 1])
    lowest = np.linalg.eigvalsh(x @ x.T)[0]
    np.testing.assert_allclose(bound, np.min(flow.inner[:steps + 1]) * lowest, rtol=1e-10)
    got = np.log(flow.residual[0] / flow.residual[steps]) / (rate * steps)
    assert got > bound > 0, (name, got, bound)
    # At all times alignment is above what the start guarantees, here also in steps.
    promised = flows.alignment_bound([w1, w2], [None, w2]).bound[0]
    assert promised >= squares(w2) / 2
    drift = rate**2 * np.sum(flow.residual**2) * squares(x) * squares(w2) / 2
    assert np.min(flow.inner) >= promised - drift


def test_product_in_the_span_does_not_suffice():
  """W_1(0) W_2(0) is zero here, and the columns of W_1(0) are not in the span."""
  x, y, w2, rng = problem()
  w1 = starts(x, w2, rng)['generic']
  w1 = w1 - w1 @ w2 @ w2.T / squares(w2)
  np.testing.assert_allclose(w1 @ w2, 0, atol=1e-14)
  assert distance(x, y, w1, w2, w2)[0] > 0.02


class Linear(nn.Module):
  """Two layers without biases."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(HIDDEN, use_bias=False, param_dtype=jnp.float64)(x)
    return nn.Dense(1, use_bias=False, param_dtype=jnp.float64)(x)


def test_is_the_plugged_network():
  """Step by step, with feedback of its own."""
  x, y, w2, rng = problem()
  w1, b, rate = rng.randn(INPUTS, HIDDEN), rng.randn(HIDDEN, 1), 0.02
  model = bioprop.plug(Linear(), 'fa')
  variables = model.init(jax.random.key(0), x)
  rest = {'feedback': {**variables['feedback'], 'Dense_1': {'kernel': jnp.asarray(b)}}}
  params = {'Dense_0': {'kernel': jnp.asarray(w1)}, 'Dense_1': {'kernel': jnp.asarray(w2)}}

  @jax.jit
  def step(params):
    res = lambda params: model.apply({**rest, 'params': params}, x) - y
    grads = jax.grad(lambda params: jnp.sum(jnp.square(res(params))) / 2)(params)
    return jnp.linalg.norm(res(params)), jax.tree.map(lambda w, g: w - rate * g, params, grads)

  residuals, inner = [], []
  for _ in range(31):
    inner.append(np.sum(b * params['Dense_1']['kernel']))
    residual, new = step(params)
    residuals.append(residual)
    last, params = params, new
  flow = flows.two_layer_linear(x, y, w1, w2, b, rate, 30)
  np.testing.assert_allclose(flow.residual, residuals, rtol=1e-12)
  np.testing.assert_allclose(flow.inner, inner, rtol=1e-12, atol=1e-12)
  for got, name in ((flow.w1, 'Dense_0'), (flow.w2, 'Dense_1')):
    np.testing.assert_allclose(got, last[name]['kernel'], rtol=1e-12, atol=1e-12)
  assert flow.residual[-1] < 0.9 * flow.residual[0]


@pytest.mark.parametrize('n, d', [(4, 9), (9, 4)])
def test_minimum_norm(n, d):
  """The pseudo-inverse's, of vectors and matrices, of dependent rows and of too many."""
  rng = np.random.RandomState(0)
  full, y = rng.randn(n, d), rng.randn(n, 3)
  for x in (full, np.vstack([full[:1], full[:1], full[2:]])):
    want = np.linalg.pinv(x) @ y
    np.testing.assert_allclose(flows.minimum_norm(x, y), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flows.minimum_norm(x, y[:, 0]), want[:, 0], rtol=1e-10, atol=1e-12)


ONE, TWO = np.ones((3, 2)), np.ones((2, 4))
X, COLUMN = np.eye(3, 5), np.ones((3, 1))


@pytest.mark.parametrize('call, match', [
    (lambda: flows.aligned([ONE]), 'two or more'),
    (lambda: flows.aligned([ONE, 0 * TWO]), r'layer 2 of 2 have \|W\|\^2 = 0'),
    (lambda: flows.aligned([ONE, TWO, np.full((4, 1), np.nan)]), 'layer 3 of 3'),
    (lambda: flows.aligned([ONE, TWO], [None]), '1 biases and 1 degrees'),
    (lambda: flows.aligned([ONE, TWO], degree=(1, 1)), '2 biases and 2 degrees'),
    (lambda: flows.aligned([ONE, TWO], degree=0), 'normalisation'),
    (lambda: flows.alignment_bound([ONE, TWO], [None, ONE]), r'\[None, B_2'),
    (lambda: flows.alignment_bound([ONE, TWO], [None]), r'\[None, B_2'),
    (lambda: flows.minimum_norm(ONE, np.ones(2)), 'one row for each sample'),
    (lambda: flows.minimum_norm(np.ones(3), np.ones(3)), 'one row for each sample'),
    (lambda: flows.rate_bound(ONE, [1.0]), r'\(3, 2\).*n <= d'),
    (lambda: flows.rate_bound(np.ones(3), [1.0]), r'\[samples, features\]'),
    (lambda: flows.rate_bound(X, []), 'falls to nan'),
    (lambda: flows.minimum_norm(ONE * np.nan, np.ones(3)), 'infinite or NaN'),
    (lambda: flows.rate_bound(np.vstack([X, X[:1] + X[1:2]]), [1.0]), 'depend on each other'),
    (lambda: flows.rate_bound(X, [1.0, -0.5, 1.0]), r'falls to -0\.5'),
    (lambda: flows.two_layer_linear(X, np.ones(3), np.ones((5, 2)), np.ones((2, 1)),
                                    np.ones((2, 1)), 0.1, 1), r'y\[:, None\]'),
    (lambda: flows.two_layer_linear(X, COLUMN, np.ones((2, 5)), np.ones((2, 1)),
                                    np.ones((2, 1)), 0.1, 1), r'\[d, m\]'),
    (lambda: flows.two_layer_linear(X, COLUMN, np.ones((5, 2)), np.ones((2, 1)),
                                    np.ones((2, 1)), 1e3, 100), 'learning_rate=100'),
], ids=range(19))
def test_errors(call, match):
  """What the theorems do not hold for."""
  with pytest.raises(TheoryError, match=match):
    call()
