"""Models of one sample that are vmapped inside, and models that are vmapped from outside."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bioprop
from bioprop import errors
from bioprop.rules import OF_TIME

pytestmark = pytest.mark.usefixtures('x64')
F = jnp.float64
N = 4  # Of all axes, so that the samples' axis is not found by its length.
Dense = functools.partial(nn.Dense, N, param_dtype=F)


class Mlp(nn.Module):
  """Two layers."""

  @nn.compact
  def __call__(self, x):
    return Dense()(nn.tanh(Dense()(nn.tanh(Dense()(x)))))


class Images(nn.Module):
  """Convolutions, and a layer that reads all locations."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Conv(N, (3, 3), param_dtype=F)(x))
    x = nn.tanh(nn.Conv(N, (3, 3), strides=2, feature_group_count=2, param_dtype=F)(x))
    return Dense()(nn.tanh(Dense()(x.reshape((*x.shape[:-3], -1)))))


class Lines(nn.Module):
  """Transposed convolutions, and kernels of several axes."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.ConvTranspose(N, (3,), strides=(2,), padding='VALID', param_dtype=F)(x))
    x = nn.tanh(nn.DenseGeneral((2, N), axis=(-2, -1), param_dtype=F)(x))
    return nn.DenseGeneral(N, axis=(-2, -1), param_dtype=F)(x)


class Attention(nn.Module):
  """A transformer of tokens, with a readout for each position or for all."""
  pooled: bool

  @nn.compact
  def __call__(self, tokens):
    h = nn.Embed(9, N, param_dtype=F)(tokens)
    h = h + nn.MultiHeadDotProductAttention(2, param_dtype=F)(h)
    h = h + Dense()(nn.gelu(Dense()(h)))
    return Dense()(h.mean(-2) if self.pooled else h)


class Recurrent(nn.Module):
  """A scan over time."""

  @nn.compact
  def __call__(self, x):
    return Dense()(nn.RNN(nn.GRUCell(N, param_dtype=F))(x)[..., -1, :])


MODELS = {'mlp': (Mlp(), (N, N)), 'images': (Images(), (N,) * 4), 'lines': (Lines(), (N,) * 3),
          'tokens': (Attention(False), None), 'pooled tokens': (Attention(True), None),
          'recurrent': (Recurrent(), (N,) * 3)}
# From a model of one sample to one of a batch.
BATCHED = {
    'vmap': jax.vmap,
    'of the last axis': lambda f: lambda x: jax.vmap(f, in_axes=-1)(jnp.moveaxis(x, 0, -1)),
    'to the last axis': lambda f: lambda x: jnp.moveaxis(jax.vmap(f, out_axes=-1)(x), -1, 0),
    'of a batch of one': lambda f: jax.vmap(lambda x: f(x[None])[0]),
    'of jit': lambda f: jax.vmap(jax.jit(f)),
    'of remat': lambda f: jax.vmap(jax.checkpoint(f)),
    'of vmap': lambda f: lambda x: jax.vmap(jax.vmap(f))(x.reshape((2, 2, *x.shape[1:]))).reshape(
        (4, -1)),
}


def inputs(tools, shape):
  """A batch, of tokens where there is no shape."""
  return jnp.arange(N * N).reshape((N, N)) % 9 if shape is None else tools.draw(*shape)


@functools.cache
def batched(name, rule):
  """A model's gradient and its feedback, on a batch at once."""
  model, _ = MODELS[name]
  plugged = bioprop.plug(lambda p, x: model.apply({'params': p}, x), rule)
  run = jax.jit(jax.grad(lambda p, b, x: jnp.mean(jnp.sin(plugged.apply(p, b, x)))))
  return plugged, run


@pytest.mark.slow
@pytest.mark.parametrize('name, how, rule', [
    *((name, 'vmap', rule) for name in MODELS for rule in ('dfa', 'hebb', 'fa')),
    *(('mlp', how, rule) for how in BATCHED if how not in ('vmap', 'of vmap')
      for rule in ('dfa', 'hebb')), ('mlp', 'of vmap', 'fa'),
    ('images', 'of the last axis', 'dfa'), ('images', 'of a batch of one', 'hebb'),
    ('tokens', 'to the last axis', 'dfa'), ('recurrent', 'of the last axis', 'hebb')])
def test_one_sample_at_a_time(tools, name, how, rule):
  """Equal to the batch at once, with the same feedback."""
  model, shape = MODELS[name]
  x = inputs(tools, shape)
  with jax.numpy_dtype_promotion('standard'):
    params = tools.fill(jax.eval_shape(model.init, jax.random.key(0), x))['params']
    plugged, want = batched(name, rule)
    feedback = tools.feedback_of(plugged, params, x)
    single = bioprop.plug(
        lambda p, x: BATCHED[how](lambda x: model.apply({'params': p}, x))(x), rule)
    own = tools.feedback_of(single, params, x)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, feedback)
    got = tools.gradient(lambda p: single.apply(p, feedback, x), params)
    tools.same(got, want(params, feedback, x))


def turned(h):
  """The samples' axis is the last one after it."""
  return jnp.sin(h).T


# What stands between two layers, and holds no parameter: it is not entered.
BETWEEN = {
    'jit': jax.jit(turned),
    'remat': jax.checkpoint(turned),
    'custom_jvp': jax.custom_jvp(turned),
    'custom_vjp': jax.custom_vjp(turned),
    'scan': lambda h: jax.lax.scan(lambda c, _: (c, turned(c)), h, None, 2)[1][1],
    'scan, in pieces': lambda h: jax.lax.scan(lambda _, row: (None, jnp.sin(row)), None, h.T)[1],
    'cond': lambda h: jax.lax.cond(jnp.sum(h**2) > 0, turned, lambda h: h.T, h),
    'stack': lambda h: jnp.stack([jnp.sin(h), jnp.cos(h)])[0].T,
}
BETWEEN['custom_jvp'].defjvps(lambda dh, _, h: (jnp.cos(h) * dh).T)
BETWEEN['custom_vjp'].defvjp(lambda h: (turned(h), h), lambda h, g: (jnp.cos(h) * g.T,))


@pytest.mark.parametrize('rule', ['dfa', bioprop.make('hebb', activation='identity')], ids=str)
@pytest.mark.parametrize('name', BETWEEN)
def test_samples_are_found_behind(tools, name, rule):
  """Equal to layers that have the samples first."""
  params = tools.fill({name: jax.ShapeDtypeStruct((N, N), F) for name in 'abc'})
  x = tools.draw(N, N)
  columns = bioprop.plug(lambda p, x: (p['c'].T @ jnp.tanh(
      p['b'].T @ BETWEEN[name](jnp.tanh(x @ p['a'])))).T, rule)
  rows = bioprop.plug(lambda p, x: jnp.tanh(
      jnp.sin(jnp.tanh(x @ p['a'])) @ p['b']) @ p['c'], rule)
  feedback = tools.feedback_of(rows, params, x)
  got, want = (tools.gradient(lambda p, f=f: f.apply(p, feedback, x), params)
               for f in (columns, rows))
  tools.same(got, want)


def masked(p, x, mask):
  """Attention of as many positions as there are samples."""
  h = jnp.tanh(x @ p['a'])
  a = jnp.einsum('nti,nsi->nts', h @ p['b'], h)
  return jnp.tanh(nn.softmax(jnp.where(mask[None], a, -9.0)) @ h @ p['c']) @ p['d']


def test_an_input_of_no_samples(tools):
  """A mask of positions that is given to the model is as one that it has."""
  params = tools.fill({name: jax.ShapeDtypeStruct((N, N), F) for name in 'abcd'})
  x, mask = tools.draw(N, N, N), jnp.tril(jnp.ones((N, N), bool))
  given = bioprop.plug(masked, 'dfa')
  held = bioprop.plug(lambda p, x: masked(p, x, mask), 'dfa')
  feedback = tools.feedback_of(held, params, x)
  tools.same(tools.gradient(lambda p: given.apply(p, feedback, x, mask), params),
             tools.gradient(lambda p: held.apply(p, feedback, x), params))


@pytest.mark.parametrize('rule', ['dfa', 'hebb'])
def test_one_sample(tools, rule):
  """Its axis is not taken for another, whatever is reshaped; with itself again it is a batch."""
  params = tools.fill({name: jax.ShapeDtypeStruct((N * N, N * N), F) for name in 'abc'})
  net = lambda p, x: jnp.tanh(jnp.tanh(x.reshape((len(x), -1)) @ p['a']).reshape(
      (-1, N, N)).reshape((-1, N * N)) @ p['b']) @ p['c']
  plugged, x = bioprop.plug(net, rule), tools.draw(1, N, 1, N)
  feedback = tools.feedback_of(plugged, params, x)
  one, two = (tools.gradient(lambda p, x=x: plugged.apply(p, feedback, x), params)
              for x in (x, jnp.concatenate([x, x])))
  tools.same(one, two)


UNTOLD = {
    'sums of segments': (lambda h: jax.ops.segment_sum(h, jnp.asarray([1, 0, 1, 0]), 2),
                         r"weight 'a'.*\(4, 4\).*\(2, 4\).*'fa'"),
    'samples last': (lambda h: h.T, r'along axis 1.*jnp\.moveaxis\(out, 1, 0\)'),
}


@pytest.mark.parametrize('rule', ['dfa', 'hebb', 'drtp'])
@pytest.mark.parametrize('name', UNTOLD)
def test_whose_error_it_is_must_be_known(tools, name, rule):
  """Where it cannot be seen, nothing is guessed."""
  after, message = UNTOLD[name]
  params = tools.fill({name: jax.ShapeDtypeStruct((N, N), F) for name in 'ab'})
  net = lambda p, x: after(jnp.tanh(x @ p['a']) @ p['b'])
  with pytest.raises(errors.ErrorShapeError, match=message):
    bioprop.plug(net, rule).init_feedback(jax.random.key(0), params, tools.draw(N, N))


def test_describe_refuses_what_wrap_does(tools):
  """It shows no feedback that there will not be."""

  class Sums(nn.Module):
    """A graph's nodes, and a readout of groups of them."""

    @nn.compact
    def __call__(self, x):
      return Dense()(jax.ops.segment_sum(jnp.tanh(Dense()(x)), jnp.asarray([1, 0, 1, 0]), 2))

  for refused in (lambda: bioprop.describe(Sums(), 'dfa', tools.draw(N, N)),
                  lambda: bioprop.plug(Sums(), 'dfa').init(jax.random.key(0), tools.draw(N, N))):
    with pytest.raises(errors.ErrorShapeError, match="'Dense_1/kernel'.*'fa'"):
      refused()


class Block(nn.Module):
  """A residual layer, as the body of a scan."""

  @nn.compact
  def __call__(self, x, _):
    return x + nn.relu(Dense()(x)), None


class Deep(nn.Module):
  """A scan of remats, and a branch."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(Dense()(x))
    x, _ = nn.scan(nn.remat(Block), variable_axes={'params': 0}, split_rngs={'params': True},
                   length=2)()(x, None)
    return Dense()(jax.lax.cond(jnp.sum(x) > 0, lambda x: x, lambda x: -x, x))


class Flat(nn.Module):
  """What gln can gate."""

  @nn.compact
  def __call__(self, x):
    return Dense()(nn.relu(Dense()(nn.relu(Dense()(x)))))


@pytest.mark.parametrize('rule', [
    rule if rule in ('fa', 'dfa', 'kp') else pytest.param(rule, marks=pytest.mark.slow)
    for rule in bioprop.RULES if rule not in OF_TIME])
def test_many_seeds_at_once(tools, rule):
  """vmap of the gradient over parameters, feedback and keys is a loop over them."""
  model, x = bioprop.plug(Flat() if rule == 'gln' else Deep(), rule), tools.draw(N, N)
  one = jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0))
  variables = [tools.fill(one, seed) for seed in range(3)]
  keys = jax.random.split(jax.random.key(1), 3)

  def loss(params, variables, key):
    out = model.apply({**variables, 'params': params}, x, rngs={'feedback': key})
    return jnp.mean(jnp.sin(out))

  each = jax.jit(lambda v, key: jax.grad(loss)(v['params'], v, key))
  stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  tools.same(jax.jit(jax.vmap(each))(stack(*variables), keys), stack(*map(each, variables, keys)))
