"""Product feedback alignment against the paper's two matrices, step by step, by loops in NumPy."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bioprop
from bioprop import errors

F = jnp.float64
RATE, MOMENTUM, DECAY, STEPS = 0.05, 0.9, 0.02, 6


class Mlp(nn.Module):
  """Three layers, tanh."""

  @nn.compact
  def __call__(self, x):
    for name, width in (('first', 6), ('second', 5)):
      x = nn.tanh(nn.Dense(width, param_dtype=F, name=name)(x))
    return nn.Dense(3, param_dtype=F, name='last')(x)


class Cnn(nn.Module):
  """Two convolutions without padding, tanh, and a readout."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(4, (2, 2), padding='VALID', param_dtype=F, name='first')(x))
    x = nn.tanh(nn.Conv(3, (2, 2), padding='VALID', param_dtype=F, name='second')(x))
    return nn.Dense(2, param_dtype=F, name='last')(x.reshape((x.shape[0], -1)))


def patches(x, size):
  """[n, h, w, c] to [n, rows, columns, size * size * c]."""
  rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
  return np.concatenate([x[:, i:i + rows, j:j + columns] for i in range(size)
                         for j in range(size)], -1)


def scattered(d, size, shape):
  """The transpose of `patches`."""
  x = np.zeros(shape)
  rows, columns, c = d.shape[1], d.shape[2], shape[-1]
  for number in range(size * size):
    i, j = divmod(number, size)
    x[:, i:i + rows, j:j + columns] += d[..., number * c:(number + 1) * c]
  return x


def by_hand(params, grams, x, y, steps):
  """SGD with momentum and decay of W, b and R, errors through B and then R, as the paper has it.

  Kernels are matrices here, of patches where they are of convolutions. B is any root of the Gram
  matrix, with more columns than rows, and R any matrix whose product with it is P(0).
  """
  names = list(params)
  w = {n: np.asarray(p['kernel']).reshape(-1, p['kernel'].shape[-1]) for n, p in params.items()}
  bias = {n: np.asarray(p['bias']) for n, p in params.items()}
  b, r = {}, {}
  for n, p in params.items():
    out = w[n].shape[1]
    basis = np.linalg.qr(np.random.RandomState(1).randn(3 * out, out))[0].T  # [out, 3 out]
    b[n] = np.linalg.cholesky(grams[n]) @ basis
    start = np.asarray(p['feedback_kernel']).reshape(w[n].shape)
    r[n] = np.linalg.lstsq(b[n], start.T, rcond=None)[0].T
  held = [w, bias, r]
  speed = [{n: np.zeros_like(a) for n, a in group.items()} for group in held]
  for _ in range(steps):
    h, inputs, outs = x, {}, {}
    for n in names:
      conv = params[n]['kernel'].ndim == 4
      before = h.shape
      h = patches(h, 2) if conv else h.reshape(len(h), -1)
      inputs[n] = (h, before)
      h = h @ w[n] + bias[n]
      h = outs[n] = h if n == 'last' else np.tanh(h)
    g, grads = (h - y) / len(x), [{}, {}, {}]
    for n in reversed(names):
      flat, wide = inputs[n][0].reshape(-1, w[n].shape[0]), g.reshape(-1, w[n].shape[1])
      middle = wide @ b[n]
      grads[0][n], grads[1][n], grads[2][n] = flat.T @ wide, wide.sum(0), flat.T @ middle
      sent = (middle @ r[n].T).reshape(inputs[n][0].shape)
      sent = scattered(sent, 2, inputs[n][1]) if params[n]['kernel'].ndim == 4 else sent
      if n != names[0]:
        below = outs[names[names.index(n) - 1]]
        g = sent.reshape(below.shape) * (1 - below**2)
    for group, grad, v in zip(held, grads, speed):
      for n in names:
        v[n] = MOMENTUM * v[n] + grad[n] + DECAY * group[n]
        group[n] = group[n] - RATE * v[n]
    w, bias, r = held
  return w, bias, {n: r[n] @ b[n].T for n in names}


@pytest.mark.slow
@pytest.mark.parametrize('cls, shape', [(Mlp, (7, 4)), (Cnn, (5, 4, 4, 2))])
def test_training_is_that_of_two_matrices(x64, cls, shape):
  """Several steps, with momentum and decay: the product is kept, and nothing is lost by it."""
  x = np.random.RandomState(0).randn(*shape)
  model = bioprop.plug(cls(), bioprop.make('pfa', expansion=2.0))
  variables = model.init(jax.random.key(0), x)
  params, stored = variables['params'], variables['feedback']
  y = np.random.RandomState(2).randn(*model.apply(variables, x).shape)
  tx = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, MOMENTUM))
  state, now = tx.init(params), params
  loss = lambda p: 0.5 * jnp.mean(jnp.sum(
      (model.apply({'params': p, 'feedback': stored}, x) - y)**2, -1))
  gradient = jax.jit(jax.grad(loss))
  for _ in range(STEPS):
    updates, state = tx.update(gradient(now), state, now)
    now = optax.apply_updates(now, updates)

  order = [n for n in ('first', 'second', 'last') if n in params]
  w, bias, products = by_hand({n: params[n] for n in order},
                              {n: np.asarray(stored[n]['gram']) for n in order}, x, y, STEPS)
  for n in order:
    assert np.abs(np.asarray(now[n]['kernel'] - params[n]['kernel'])).max() > 1e-2
    for leaf, want in (('kernel', w), ('bias', bias), ('feedback_kernel', products)):
      np.testing.assert_allclose(np.asarray(now[n][leaf]).ravel(), want[n].ravel(), rtol=1e-9)


@pytest.mark.parametrize('expansion', [1.0, 4.0])
def test_the_gram_matrix_is_a_wishart_matrix(expansion):
  """Mean 1, off the diagonal the variance of products of normal vectors: 1 / their length."""
  x = jnp.ones((1, 3))
  stored = bioprop.plug(nn.Dense(300), bioprop.make('pfa', expansion=expansion)).init(
      jax.random.key(0), x)['feedback']['gram']
  gram, count = np.asarray(stored, np.float64), 300 * 299 / 2
  np.testing.assert_allclose(np.trace(gram), 300, rtol=1e-5)
  off = gram[np.triu_indices(300, 1)]
  assert abs(off.mean()) < 5 / math.sqrt(count * 300 * expansion)
  assert abs((off**2).mean() * 300 * expansion - 1) < 5 * math.sqrt(3 / count) + 2 / 300
  np.testing.assert_array_equal(gram, gram.T)


@pytest.mark.parametrize('expansion', [1.0, 4.0])
def test_decay_leaves_the_cosine_of_the_expansion(expansion):
  """From P(0) = 0 under plain descent P = (W - W(0)) G: 1 / sqrt(1 + 1 / expansion)."""
  x = jax.random.normal(jax.random.key(1), (400, 100))
  model = bioprop.plug(nn.Dense(200, kernel_init=nn.initializers.zeros), bioprop.make(
      'pfa', expansion=expansion, scale=0.0))
  variables = model.init(jax.random.key(0), x)
  y = jax.random.normal(jax.random.key(2), (400, 200))
  grads = jax.grad(lambda p: jnp.sum(y * model.apply({**variables, 'params': p}, x)))(
      variables['params'])
  w, b = (np.asarray(grads[name], np.float64) for name in ('kernel', 'feedback_kernel'))
  cosine = (w * b).sum() / np.linalg.norm(w) / np.linalg.norm(b)
  assert abs(cosine - 1 / math.sqrt(1 + 1 / expansion)) < 0.02


@pytest.mark.slow
def test_decay_of_all_feedback_changes_nothing(x64):
  """An optimiser that is handed the frozen part too, as that of a function may be."""
  x = np.random.RandomState(0).randn(5, 4)
  plugged = bioprop.plug(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], 'pfa')
  params = {'a': jax.random.normal(jax.random.key(0), (4, 3)),
            'b': jax.random.normal(jax.random.key(1), (3, 2))}
  feedback = plugged.init_feedback(jax.random.key(2), params, x)
  smaller = {name: 0.3 * leaf if name.endswith('gram') else leaf
             for name, leaf in feedback.items()}
  assert sum(name.endswith('gram') for name in feedback) == 2
  gradient = jax.grad(lambda p, f: jnp.sum(plugged.apply(p, f, x)**2), argnums=(0, 1))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
               gradient(params, feedback), gradient(params, smaller))


@pytest.mark.slow
def test_stacks_have_one_each():
  """Of layers in a scan, each its own matrix; of a tied readout, of the weight as it multiplies."""

  class Stack(nn.Module):

    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(7, 4, name='embed')
      scan = nn.scan(lambda layer, carry, _: (nn.tanh(layer(carry)), None), length=3,
                     variable_axes={'params': 0}, split_rngs={'params': True})
      return embed.attend(scan(nn.Dense(4, name='loop'), embed(tokens), None)[0])

  x = jnp.zeros((2, 5), jnp.int32)
  model = bioprop.plug(Stack(), 'pfa')
  variables = model.init(jax.random.key(0), x)
  gram = variables['feedback']['loop']['gram']
  assert gram.shape == (3, 4, 4) and float(jnp.abs(gram[0] - gram[1]).max()) > 0.01
  grads = jax.grad(lambda p: jnp.sum(model.apply({**variables, 'params': p}, x)**2))(
      variables['params'])
  got, dw = grads['loop']['feedback_kernel'], grads['loop']['kernel']
  np.testing.assert_allclose(got, np.einsum('lio,lop->lip', dw, gram), rtol=1e-4, atol=1e-6)
  assert bool(jnp.any(grads['embed']['feedback_embedding']))


def test_bad_options():
  with pytest.raises(errors.RuleOptionError, match=r'expansion=0\.5.*at least 1'):
    bioprop.make('pfa', expansion=0.5)


def test_large_matrices_are_refused():
  """What it says to type works."""
  x = jnp.ones((1, 3))
  with pytest.raises(errors.FeedbackMemoryError, match=(
      r"'last' would be float32 \(400, 4000\), which takes 0.00596 GiB.*'kp', '\*': 'pfa'")):
    bioprop.plug(Wide(), bioprop.make('pfa', max_gib=0.005)).init(jax.random.key(0), x)
  bioprop.plug(Wide(), {'last': 'kp', '*': bioprop.make('pfa', max_gib=0.005)}).init(
      jax.random.key(0), x)


class Wide(nn.Module):
  """A wide readout."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(400, name='last')(nn.tanh(nn.Dense(4, name='first')(x)))


def test_install_needs_a_sample():
  """The matrix is of the weight as it multiplies, which plug must see."""
  model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
  with pytest.raises(errors.FeedbackMissingError, match='ProductFeedbackAlignment.*no sample'):
    bioprop.plug(model, 'pfa', nnx.Rngs(1))
