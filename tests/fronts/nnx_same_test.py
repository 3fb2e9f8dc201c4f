"""linen and NNX give the same update, number for number, from the same weights and feedback."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

F = jnp.float64
Dense = functools.partial(nn.Dense, param_dtype=F)
Conv = functools.partial(nn.Conv, param_dtype=F)
Transpose = functools.partial(nn.ConvTranspose, param_dtype=F)
General = functools.partial(nn.DenseGeneral, param_dtype=F)
XLinear = functools.partial(nnx.Linear, param_dtype=F)
XConv = functools.partial(nnx.Conv, param_dtype=F)
XTranspose = functools.partial(nnx.ConvTranspose, param_dtype=F)
XGeneral = functools.partial(nnx.LinearGeneral, param_dtype=F)
MASK = (np.random.RandomState(1).rand(3, 3, 4, 5) > 0.5).astype(np.float64)

SHAPES = {'flat': (4, 6), 'line': (3, 8, 4), 'image': (2, 6, 7, 4)}


def convolution(*args, **kwargs):
  """A linen convolution of four channels, and its twin."""
  return Conv(*args, **kwargs), functools.partial(XConv, 4, *args, **kwargs)


def transposed(*args, **kwargs):
  """A linen transposed convolution of four channels, and its twin."""
  return Transpose(*args, **kwargs), functools.partial(XTranspose, 4, *args, **kwargs)


# Shape of the input, and a layer twice: each class of NNX in its most intricate forms.
LAYERS = {
    'general_from_inner_axis': ('image', General((3, 2), axis=(1, 3)),
                                functools.partial(XGeneral, (6, 4), (3, 2), axis=(1, 3))),
    'general_batched': ('line', General(5, axis=-1, batch_dims=(0,)),
                        functools.partial(XGeneral, 4, 5, axis=-1, batch_axis={0: 3})),
    'conv_causal': ('line', *convolution(5, (3,), padding='CAUSAL')),
    'conv_grouped': ('image', *convolution(6, (3, 3), strides=(2, 1), feature_group_count=2)),
    'conv_masked': ('image', *convolution(5, (3, 3), padding='CIRCULAR', mask=MASK)),
    'transpose_circular': ('image', *transposed(5, (3, 3), strides=(2, 2), padding='CIRCULAR')),
    'transpose_flipped': ('line', *transposed(
        5, (3,), strides=(2,), padding='VALID', transpose_kernel=True)),
    'einsum': ('line', nn.Einsum((4, 8, 2), 'ntd,dtb->ntb', param_dtype=F),
               functools.partial(nnx.Einsum, 'ntd,dtb->ntb', (4, 8, 2), (8, 2), param_dtype=F)),
}


class Between(nn.Module):
  """A pointwise layer, the op, a readout: the op's feedback decides for the first layer."""
  op: nn.Module

  @nn.compact
  def __call__(self, x):
    x = self.op(nn.tanh(Dense(x.shape[-1], name='first')(x)))
    return Dense(3, name='readout')(nn.tanh(x).reshape((x.shape[0], -1)))


class XBetween(nnx.Module):
  """Its twin."""

  def __init__(self, op, rngs, params):
    self.first = XLinear(*params['first']['kernel'].shape, rngs=rngs)
    self.op = op(rngs=rngs)
    self.readout = XLinear(*params['readout']['kernel'].shape, rngs=rngs)

  def __call__(self, x):
    x = self.op(jnp.tanh(self.first(x)))
    return self.readout(jnp.tanh(x).reshape((x.shape[0], -1)))


class Language(nn.Module):
  """Tokens in, logits out through the same matrix."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(11, 6, param_dtype=F, name='embed')
    h = embed(tokens)
    return embed.attend(h + nn.tanh(Dense(6, name='hidden')(h)))


class XLanguage(nnx.Module):
  """Its twin."""

  def __init__(self, rngs, params):
    self.embed = nnx.Embed(11, 6, param_dtype=F, rngs=rngs)
    self.hidden = XLinear(6, 6, rngs=rngs)

  def __call__(self, tokens):
    h = self.embed(tokens)
    return self.embed.attend(h + jnp.tanh(self.hidden(h)))


class Attention(nn.Module):
  """Self-attention, then cross-attention with normalised queries and keys."""

  @nn.compact
  def __call__(self, x):
    attend = functools.partial(nn.MultiHeadDotProductAttention, 2, param_dtype=F)
    h = Dense(8, name='first')(x)
    h = h + attend(name='own')(nn.RMSNorm(param_dtype=F, name='norm')(h))
    h = h + attend(normalize_qk=True, name='cross')(h, h[:, :2], h[:, :2])
    return Dense(5, name='readout')(nn.gelu(h))


class XAttention(nnx.Module):
  """Its twin."""

  def __init__(self, rngs, params):
    # Dropout, though off, keeps it from jax.nn.dot_product_attention, whose softmax is float32.
    attend = functools.partial(nnx.MultiHeadAttention, 2, 8, param_dtype=F, decode=False,
                               dropout_rate=0.1, deterministic=True, rngs=rngs)
    self.first, self.readout = XLinear(4, 8, rngs=rngs), XLinear(8, 5, rngs=rngs)
    self.norm = nnx.RMSNorm(8, param_dtype=F, rngs=rngs)
    self.own, self.cross = attend(), attend(normalize_qk=True)

  def __call__(self, x):
    h = self.first(x)
    h = h + self.own(self.norm(h))
    h = h + self.cross(h, h[:, :2], h[:, :2])
    return self.readout(nnx.gelu(h))


class Recurrent(nn.Module):
  """A cell over time between two dense layers."""
  cell: type[nn.Module]

  @nn.compact
  def __call__(self, x):
    x = nn.RNN(self.cell(5, dtype=F, param_dtype=F, name='cell'))(Dense(4, name='first')(x))
    return Dense(3, name='readout')(x)


class XRecurrent(nnx.Module):
  """Its twin."""

  def __init__(self, cell, rngs, params):
    self.first, self.readout = XLinear(3, 4, rngs=rngs), XLinear(5, 3, rngs=rngs)
    self.rnn = nnx.RNN(cell(4, 5, dtype=F, param_dtype=F, rngs=rngs), rngs=rngs)

  def __call__(self, x):
    return self.readout(self.rnn(self.first(x)))


# A linen cell, its twin, and the twin's layers as linen's gates, which it multiplies by at once.
CELLS = {
    'lstm': (nn.LSTMCell, nnx.LSTMCell, {
        ('if_' if name == 'if' else name): (name,)
        for name in ('ii', 'if', 'ig', 'io', 'hi', 'hf', 'hg', 'ho')}),
    'optimized_lstm': (nn.OptimizedLSTMCell, nnx.OptimizedLSTMCell, {
        'dense_i': ('ii', 'if', 'ig', 'io'), 'dense_h': ('hi', 'hf', 'hg', 'ho')}),
    'gru': (nn.GRUCell, nnx.GRUCell, {
        'dense_i': ('ir', 'iz', 'in'), 'dense_h': ('hr', 'hz', 'hn')}),
    'simple': (nn.SimpleCell, nnx.SimpleCell, {'dense_i': ('i',), 'dense_h': ('h',)}),
}


def same(tree):
  """The converter of most models: the trees have the same names."""
  return tree


def fused(gates):
  """The converter of recurrent models: several gates' arrays make one."""

  def join(layers):
    joined = {}
    for name in sorted({name for layer in layers for name in layer}):
      arrays = [layer[name] for layer in layers if name in layer]
      if name == 'error':  # Each gate sends B e of its own, and the sums of these arrive.
        joined[name] = sum(arrays)
      elif len(arrays) == len(layers):  # nnx.GRUCell lacks linen's hn/bias.
        joined[name] = jnp.concatenate(arrays, -1)
    return joined

  def convert(tree):
    own = {name: join([tree['cell'][gate] for gate in names if gate in tree['cell']])
           for name, names in gates.items() if names[0] in tree.get('cell', {})}
    rest = {name: value for name, value in tree.items() if name != 'cell'}
    return {**rest, 'rnn': {'cell': own}}

  return convert


def flat(tree, *above):
  """The leaves of a dict of dicts by path."""
  return {(*above, *(key.key for key in path)): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def to_nnx(variables, convert):
  """linen's variables by the paths that they have in an NNX model."""
  return {**flat(convert(variables['params'])),
          **flat(convert(variables.get('feedback', {})), 'bioprop_feedback')}


def normals(shapes):
  """Arrays of these shapes, none of them like a kernel's initialiser would draw it."""
  random = np.random.RandomState(7)
  arrays = jax.tree.map(lambda s: jnp.asarray(0.5 * random.randn(*s.shape), s.dtype), shapes)
  if 'hn' in arrays['params'].get('cell', {}):  # linen's GRU adds a bias here, and NNX's none.
    arrays['params']['cell']['hn']['bias'] *= 0
  return arrays


def loss(out):
  """Its error is no multiple of the output."""
  return jnp.mean(jnp.sin(out))


def differentiate(objective, params, x):
  """Gradients of the parameters, and of the input unless it holds tokens."""
  if jnp.issubdtype(x.dtype, jnp.integer):
    return jax.grad(objective)(params, x), jnp.zeros(())
  return jax.grad(objective, argnums=(0, 1))(params, x)


def merged(graphdef, state, values):
  """A model with these values."""
  flat_state = dict(nnx.to_flat_state(state))
  used = set()
  for path, variable in flat_state.items():
    if path in values:
      assert variable.shape == values[path].shape, path
      flat_state[path], _ = variable.replace(values[path]), used.add(path)
    elif path[-1] == 'mask':
      flat_state[path] = MASK
    elif isinstance(variable, nnx.RngKey):
      flat_state[path] = variable.replace(jax.random.key(0))
    else:
      assert isinstance(variable, nnx.RngCount), path
      flat_state[path] = variable.replace(jnp.zeros(variable.shape, variable.dtype))
  assert used == set(values), set(values) - used
  return nnx.merge(graphdef, nnx.from_flat_state(flat_state))


def check(linen, twin, x, rules, convert=same):
  """Both gradients under each rule, in one program.

  Args:
    linen: the linen model.
    twin: maps (rngs, shapes of linen's parameters) to the NNX model.
    x: the input.
    rules: names of rules.
    convert: maps a tree of linen's to the tree that NNX has.
  """
  both = {}
  for rule in rules:
    plugged = bioprop.plug(linen, rule)
    shapes = jax.eval_shape(plugged.init, jax.random.key(0), x)
    graphdef, state = nnx.split(nnx.eval_shape(lambda rule=rule, shapes=shapes: bioprop.plug(
        twin(rngs=nnx.Rngs(0), params=shapes['params']), rule, nnx.Rngs(1), x)))
    both[rule] = plugged, graphdef, state, normals(shapes)

  def gradients(variables, x):
    found = {}
    for rule, (plugged, graphdef, state, _) in both.items():
      own = variables[rule]
      objective = lambda p, x, plugged=plugged, own=own: loss(
          plugged.apply({**own, 'params': p}, x))
      params, of_x = differentiate(objective, own['params'], x)
      model = merged(graphdef, state, to_nnx(own, convert))
      definition, learned, rest = nnx.split(model, nnx.Param, ...)
      objective = lambda p, x, definition=definition, rest=rest: loss(
          nnx.merge(definition, p, rest, copy=True)(x))
      got, got_x = differentiate(objective, learned, x)
      found[rule] = (flat(convert(params)), of_x), (
          {path: leaf[...] for path, leaf in nnx.to_flat_state(got)}, got_x)
    return found

  found = jax.jit(gradients)({rule: row[-1] for rule, row in both.items()}, x)
  found = jax.tree.map(np.asarray, found)
  for rule, ((want, want_x), (got, got_x)) in found.items():
    assert set(got) == set(want), rule
    scale = max(np.abs(leaf).max() for leaf in want.values())
    close = dict(rtol=1e-12, atol=1e-12 * scale, err_msg=rule)
    for path, leaf in want.items():
      np.testing.assert_allclose(got[path], leaf, **{**close, 'err_msg': f'{rule} {path}'})
    np.testing.assert_allclose(got_x, want_x, **close)
  kernels = [[leaf for path, leaf in sorted(want.items()) if 'kernel' in path[-1]][0]
             for (want, _), _ in found.values()]
  assert all(np.abs(a - b).max() > 1e-6 for i, a in enumerate(kernels) for b in kernels[:i])


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.some(2)
def test_layers(x64, name):
  """fa, and dfa, of every class of layers that reads an array."""
  shape, layer, twin = LAYERS[name]
  check(Between(layer), functools.partial(XBetween, twin), draw(*SHAPES[shape]), ['fa', 'dfa'])


def test_rules(x64):
  """Feedback shaped like weights or activities, learned or not, Hebbian updates, and backprop."""
  check(Between(Dense(5)), functools.partial(XBetween, functools.partial(XLinear, 6, 5)),
        draw(*SHAPES['flat']),
        ['fa', 'dfa', 'drtp', 'kp', 'hebb', 'usf', 'frsf', 'align_ada', 'bp'])


def test_tied_embedding(x64):
  """Lookup and readout share a matrix."""
  check(Language(), XLanguage, jnp.arange(12).reshape(4, 3) % 11, ['fa', 'dfa', 'kp'])


@pytest.mark.slow
def test_attention(x64):
  """Query, key, value and output projections."""
  with jax.numpy_dtype_promotion('standard'):  # Flax's RMSNorm adds a float32 epsilon.
    check(Attention(), XAttention, draw(2, 3, 4), ['fa', 'dfa'])


@pytest.mark.slow
@pytest.mark.parametrize('cell', CELLS)
def test_recurrent_cells(x64, cell):
  """nnx.RNN over each cell; where NNX multiplies by all gates at once, linen's gates are joined."""
  linen, twin, gates = CELLS[cell]
  with jax.numpy_dtype_promotion('standard'):
    check(Recurrent(linen), functools.partial(XRecurrent, twin), draw(2, 5, 3),
          ['fa', 'dfa'], fused(gates))
