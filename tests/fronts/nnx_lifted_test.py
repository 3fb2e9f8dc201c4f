"""NNX: B = W gives backprop's gradient through every transform and every way to build a model."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

F = jnp.float64
Linear = functools.partial(nnx.Linear, param_dtype=F)


class Block(nnx.Module):
  """Residual."""

  def __init__(self, rngs):
    self.linear = Linear(6, 6, rngs=rngs)

  def __call__(self, x):
    return x + jnp.tanh(self.linear(x))


class Scaled(nnx.Linear):
  """Overrides __call__, calls super's, has a parameter and a layer of its own."""

  def __init__(self, rngs):
    super().__init__(6, 6, param_dtype=F, rngs=rngs)
    self.inner, self.gain = Linear(6, 6, rngs=rngs), nnx.Param(jnp.ones((1, 6), F))

  def __call__(self, x):
    return super().__call__(jnp.tanh(self.inner(x))) * self.gain[...]


class Heavy(Scaled):
  """Does not call super's."""

  def __call__(self, x):
    return jnp.einsum('ni,io->no', jnp.tanh(self.inner(x)), self.kernel[...] * self.gain[...].T)


class Tied(nnx.Module):
  """One layer under two names, called three times; another with its kernel."""

  def __init__(self, rngs):
    self.one = Linear(6, 6, rngs=rngs)
    self.two, self.other = self.one, Linear(6, 6, rngs=rngs)
    self.other.kernel = self.one.kernel

  def __call__(self, x):
    x = jnp.tanh(self.two(jnp.tanh(self.one(jnp.tanh(self.one(x))))))
    return jnp.tanh(self.other(x)) @ self.one.kernel[...].T


class Raw(nnx.Module):
  """Parameters that multiply data without a layer: transposed, cast, concatenated, joined."""

  def __init__(self, rngs):
    init = lambda *shape: nnx.Param(jax.random.normal(rngs.params(), shape, F))
    self.a, self.b, self.c = init(6, 5), init(2, 6, 5), init(6, 1)
    self.d, self.e, self.gain = init(6, 2), init(2, 6), init(6)

  def __call__(self, x):
    h = jnp.tanh(x @ jnp.concatenate([self.a[...], self.c[...]], 1)) * self.gain[...][None]
    h = jnp.tanh(jnp.einsum('ni,hio->nho', h, self.b[...])).sum(1) @ self.a[...].T
    return h @ (self.d[...] @ self.e[...])


class Held(nnx.Module):
  """Parameters in containers that are no modules."""

  def __init__(self, rngs):
    init = lambda: nnx.Param(jax.random.normal(rngs.params(), (6, 6), F))
    self.pair, self.named = nnx.data(({'w': init()}, init())), nnx.data({'w': init()})

  def __call__(self, x):
    for w in (self.pair[0]['w'], self.pair[1], self.named['w']):
      x = jnp.tanh(x @ w[...])
    return x


class Remat(Block):
  """The decorator on a method."""
  __call__ = nnx.remat(Block.__call__)


class Nested(nnx.Module):
  """Layers in lists, dicts and sequences."""

  def __init__(self, rngs):
    self.blocks = nnx.List([nnx.Dict(a=Linear(6, 6, rngs=rngs), b=nnx.List([Block(rngs)]))
                            for _ in range(2)])
    self.end = nnx.Sequential(Linear(6, 6, rngs=rngs), jnp.tanh)

  def __call__(self, x):
    for block in self.blocks:
      x = block.get('b')[0](jnp.tanh(block['a'](x)))
    return self.end(x)


class Over(nnx.Module):
  """A block, or a stack of three, under a transform."""

  def __init__(self, rngs, call, stacked):
    make = nnx.split_rngs(splits=3)(nnx.vmap(Block)) if stacked else Block
    self.blocks, self.call = make(rngs), call

  def __call__(self, x):
    return self.call(self.blocks, x)


class Recurrent(nnx.Module):
  """A cell over the six numbers as time."""

  def __init__(self, rngs, cell=nnx.SimpleCell, both=False):
    make = lambda: nnx.RNN(cell(1, 4, dtype=F, param_dtype=F, rngs=rngs), return_carry=False,
                           rngs=rngs)
    self.rnn = nnx.Bidirectional(make(), make(), rngs=rngs) if both else make()
    self.out = Linear(8 if both else 4, 6, rngs=rngs)

  def __call__(self, x):
    return self.out(self.rnn(x[..., None])[:, 2])


class Attention(nnx.Module):
  """Over the six numbers as positions."""

  def __init__(self, rngs):
    self.inside = Linear(1, 4, rngs=rngs)
    # Dropout, though off, keeps it from jax.nn.dot_product_attention, whose softmax is float32.
    self.attention = nnx.MultiHeadAttention(2, 4, param_dtype=F, decode=False, dropout_rate=0.1,
                                            deterministic=True, rngs=rngs)

  def __call__(self, x):
    return self.attention(self.inside(x[..., None])).sum(-1)


def apply(block, x):
  """Calls it."""
  return block(x)


def scan(axes=0, body=apply, **kwargs):
  """nnx.scan over blocks, or over one several times."""
  return nnx.scan(body, in_axes=(axes, nnx.Carry), out_axes=nnx.Carry, **kwargs)


def over_pieces(blocks, x):
  """A scan of JAX's over a stack of states."""
  definition, state = nnx.split(blocks)
  return jax.lax.scan(lambda x, own: (nnx.merge(definition, own)(x), None), x, state)[0]


def checkpointed_pieces(block, x):
  """A remat of JAX's of a state."""
  definition, state = nnx.split(block)
  return jax.checkpoint(lambda state, x: nnx.merge(definition, state)(x))(state, x)


def batch_norm(rngs):
  """In float64, its statistics too."""
  norm = nnx.BatchNorm(6, param_dtype=F, rngs=rngs)
  for statistic in (norm.mean, norm.var):
    statistic.set_value(statistic[...].astype(F))
  return norm


over = lambda call, stacked: functools.partial(Over, call=call, stacked=stacked)

# No transform names anything of ours. Each takes rngs.
CALLS = {
    'jit': over(nnx.jit(apply), False),
    'cond': over(lambda m, x: nnx.cond(jnp.sum(x) > -1e9, apply, lambda m, x: 2 * x, m, x), False),
    'switch': over(lambda m, x: nnx.switch(
        jnp.argmax(x[0]), (apply,) * 5 + (lambda m, x: m(m(x)),), m, x), False),
    'remat': Remat,
    'checkpoint': over(lambda m, x: jax.checkpoint(lambda x: m(x))(x), False),
    'checkpoint_pieces': over(checkpointed_pieces, False),
    'attention': Attention,
}
STACKS = {
    'vmap': over(lambda m, x: nnx.vmap(apply, in_axes=(0, None))(m, x).sum(0), True),
    'scan': over(scan(), True),
    'scan_axes': over(scan(nnx.StateAxes({nnx.Param: 0, ...: None})), True),
    'scan_remat': over(scan(body=nnx.remat(apply)), True),
    'scan_pieces': over(over_pieces, True),
}
REPEATED = {
    'samples': over(lambda m, x: nnx.vmap(apply, in_axes=(None, 0))(m, x), False),
    'samples_of_jax': over(lambda m, x: jax.vmap(m)(x), False),
    'fori_loop': over(lambda m, x: nnx.fori_loop(
        0, 3, lambda i, c: (c[0], c[0](c[1])), (m, x))[1], False),
    'scan_carrying': over(scan(nnx.StateAxes({...: nnx.Carry}), length=3), False),
    'scan_of_jax': over(lambda m, x: jax.lax.scan(lambda x, _: (m(x), None), x, None, 2)[0], False),
    'tied': Tied,
}
MODULES = {
    'nested': Nested,
    'subclass': Scaled,
    'override': Heavy,
    'raw': Raw,
    'lora': lambda rngs: nnx.LoRA(6, 2, 6, base_module=Linear(6, 6, rngs=rngs), param_dtype=F,
                                  rngs=rngs),
    'lora_linear': lambda rngs: nnx.LoRALinear(6, 6, lora_rank=2, param_dtype=F,
                                               lora_param_dtype=F, rngs=rngs),
}
NORMS = {
    'spectral_norm': lambda rngs: nnx.SpectralNorm(
        Linear(6, 6, rngs=rngs), param_dtype=F, rngs=rngs),
    'weight_norm': lambda rngs: nnx.WeightNorm(Linear(6, 6, rngs=rngs), param_dtype=F, rngs=rngs),
    'batch_norm': lambda rngs: nnx.Sequential(Block(rngs), batch_norm(rngs)),
    'dropout': lambda rngs: nnx.Sequential(Block(rngs), nnx.Dropout(0.3, rngs=rngs)),
}
CELLS = {
    'bidirectional': functools.partial(Recurrent, both=True),
    'lstm': functools.partial(Recurrent, cell=nnx.LSTMCell),
    'optimized_lstm': functools.partial(Recurrent, cell=nnx.OptimizedLSTMCell),
}
# Of each: whether learned feedback and rules of the whole network are looked at too.
CHAINS = {'calls': (CALLS, False), 'stacks': (STACKS, True), 'repeated': (REPEATED, True),
          'modules': (MODULES, True), 'held': ({'held': Held}, True), 'norms': (NORMS, True),
          'cells': (CELLS, False)}


class Chain(nnx.Module):
  """One after the other, between a first layer and a readout."""

  def __init__(self, makers, rngs):
    self.first, self.readout = Linear(6, 6, rngs=rngs), Linear(6, 3, rngs=rngs)
    self.links = nnx.Dict({name: make(rngs=rngs) for name, make in makers.items()})
    self.order = tuple(makers)

  def __call__(self, x):
    x = jnp.tanh(self.first(x))
    for name in self.order:
      x = jnp.tanh(self.links[name](x))
    return self.readout(x)


class Language(nnx.Module):
  """Tokens in, logits out through the same matrix."""

  def __init__(self, rngs):
    self.embed, self.hidden = nnx.Embed(11, 6, param_dtype=F, rngs=rngs), Linear(6, 6, rngs=rngs)

  def __call__(self, tokens):
    h = self.embed(tokens)
    return (h + jnp.tanh(self.hidden(h))) @ self.embed.embedding[...].T


def filled(state):
  """The state with normals, variances with the size of these."""
  random = np.random.RandomState(1)

  def fill(path, a):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), a.shape)
    drawn = random.randn(*a.shape) / 2
    return jnp.asarray(abs(drawn) if 'var' in jax.tree_util.keystr(path) else drawn, a.dtype)

  return jax.tree_util.tree_map_with_path(fill, state)


def gradient(model, x):
  """Of a loss whose error is no multiple of the output."""
  return nnx.to_pure_dict(nnx.grad(lambda model: jnp.mean(jnp.sin(model(x))))(model))


def symmetric(model):
  """Learned feedback := the weights it is beside."""
  nodes = {tuple(map(str, path)): node for path, node in nnx.iter_graph(model)}
  for weight, at in model.bioprop_learned:
    nodes[at].set_value(nodes[weight][...])
  return model


def close(got, want, rtol=1e-12):
  """Equal up to rounding."""
  got, want = jax.tree.map(np.asarray, (got, want))
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)


def parted(grads, weights):
  """Gradients of the parameters, and of learned feedback by the weights that it is beside."""
  own, learned = {}, {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
    path = tuple(str(key.key) for key in path)
    (learned if path in weights else own)[weights.get(path, path)] = leaf
  return own, learned


def check(model, x, every_way):
  """B = W is backprop's gradient.

  Args:
    model: plain, of shapes.
    x: its input.
    every_way: B = W in every way that there is.

  Returns:
    The paths of the matrices that learn as under backprop where signs are sent.
  """
  definition, state = nnx.split(model)
  weights = {}  # By where the feedback is that is beside them.
  rules = ['align_prop', 'usf', *(('kp', 'align_ada') if every_way else ())]

  @jax.jit
  def gradients(state, x, key):
    found = {'plain': gradient(nnx.merge(definition, state, copy=True), x)}
    for rule in rules:
      model = bioprop.plug(nnx.merge(definition, state, copy=True), rule, key, x)
      weights.update((at, weight) for weight, at in getattr(model, 'bioprop_learned', ()))
      found[rule] = gradient(symmetric(model) if rule == 'kp' else model, x)
    return found

  with jax.numpy_dtype_promotion('standard'):  # Flax's norms and cells add float32 numbers.
    grads = gradients(filled(state), x, jax.random.key(1))
  found = {name: parted(own, weights) for name, own in grads.items()}
  (want, _), (own, _) = found.pop('plain'), found.pop('usf')
  for rule, (got, learned) in found.items():
    close(got, want)
    for path, leaf in learned.items():  # It receives the update of the weight.
      np.testing.assert_array_equal(leaf, got[path])
    assert bool(learned) == (rule == 'kp')
  return {path for path, w in want.items() if w.ndim > 1
          and np.abs(own[path] - w).max() < 1e-3 * np.abs(w).max()}


@pytest.mark.parametrize('chain', [
    pytest.param(chain, marks=pytest.mark.slow) if chain in ('cells', 'modules', 'calls') else chain
    for chain in CHAINS])
@pytest.mark.some(2)
def test_exact(x64, chain):
  """B = W is backprop; with signs all weights learn otherwise, but for the readout's."""
  makers, every_way = CHAINS[chain]
  make = lambda: Chain(makers, nnx.Rngs(0))
  # WeightNorm has arrays that are no variables, which are no arrays as shapes.
  model = make() if chain == 'norms' else nnx.eval_shape(make)
  x = np.random.RandomState(0).randn(4, 6)
  assert check(model, x, every_way) == {('readout', 'kernel')}


def test_tied_embedding(x64):
  """Lookup and readout are one matrix."""
  model = nnx.eval_shape(lambda: Language(nnx.Rngs(0)))
  assert not check(model, jnp.arange(12).reshape(4, 3) % 11, True)
