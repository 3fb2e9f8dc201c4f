"""NNX: under a transform a rule gives what it gives for the same network written out."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

F = jnp.float64
Linear = functools.partial(nnx.Linear, param_dtype=F)


X = np.random.RandomState(0).randn(4, 6)


class Block(nnx.Module):
  """Residual."""

  def __init__(self, rngs):
    self.linear = Linear(6, 6, rngs=rngs)

  def __call__(self, x):
    return x + jnp.tanh(self.linear(x))


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


def vmapped_pieces(blocks, x):
  """A vmap of JAX's over a stack of states."""
  definition, state = nnx.split(blocks)
  return jax.vmap(lambda own: nnx.merge(definition, own)(x))(state).sum(0)


def filled(state):
  """The state with normals."""
  random = np.random.RandomState(1)
  return jax.tree.map(lambda a: jnp.asarray(0.5 * random.randn(*a.shape)), state)


def gradient(model, x):
  """Of a loss whose error is no multiple of the output."""
  return nnx.to_pure_dict(nnx.grad(lambda model: jnp.mean(jnp.sin(model(x))))(model))


def close(got, want, rtol=1e-12):
  """Equal up to rounding."""
  got, want = jax.tree.map(np.asarray, (got, want))
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)


class Deep(nnx.Module):
  """Three blocks between a first layer and a readout."""

  def __init__(self, make, call, rngs):
    self.first, self.blocks = Linear(6, 6, rngs=rngs), make(rngs)
    self.readout, self.call = Linear(6, 3, rngs=rngs), call

  def __call__(self, x):
    return self.readout(self.call(self.blocks, jnp.tanh(self.first(x))))


def in_turn(blocks, x):
  """One after the other."""
  return functools.reduce(lambda x, block: block(x), blocks, x)


def in_turn_by(transform):
  """Each under a transform."""
  return lambda blocks, x: functools.reduce(lambda x, block: transform(block)(x), blocks, x)


LISTED = lambda rngs: nnx.List([Block(rngs) for _ in range(3)])
STACKED = nnx.split_rngs(splits=3)(nnx.vmap(Block))
beside = lambda blocks, x: sum(block(x) for block in blocks)
apart = lambda blocks, x: sum(block(i * x) for i, block in enumerate(blocks, start=1))
thrice = lambda blocks, x: blocks[0](blocks[0](blocks[0](x)))
multiples = lambda x: jnp.stack([x, 2 * x, 3 * x])
# The blocks, what is done with them, and the same of a list of blocks.
SAME = {
    'scan': (STACKED, scan(), in_turn),
    'scan_remat': (STACKED, scan(body=nnx.remat(apply)), in_turn),
    'scan_pieces': (STACKED, over_pieces, in_turn),
    'vmap': (STACKED, lambda m, x: nnx.vmap(apply, in_axes=(0, None))(m, x).sum(0), beside),
    'vmap_pieces': (STACKED, vmapped_pieces, beside),
    'vmap_apart': (STACKED, lambda m, x: nnx.vmap(apply)(m, multiples(x)).sum(0), apart),
    'checkpoint': (LISTED, in_turn_by(lambda block: jax.checkpoint(lambda x: block(x))), in_turn),
    'remat': (LISTED, in_turn_by(lambda block: lambda x: nnx.remat(apply)(block, x)), in_turn),
    'samples': (LISTED, in_turn_by(jax.vmap), in_turn),
    'scan_of_jax': (LISTED, lambda m, x: jax.lax.scan(
        lambda x, _: (m[0](x), None), x, None, 3)[0], thrice),
    'scan_carrying': (LISTED, lambda m, x: scan(nnx.StateAxes({...: nnx.Carry}), length=3)(m[0], x),
                      thrice),
}


def stacked(tree, transform):
  """Three blocks' trees by their number as one; direct feedback as the one product has it."""

  def stack(path, *leaves):
    if path[-1].key == 'error' and transform == 'vmap_apart':  # Its input is [samples, layer, x].
      return jnp.concatenate(leaves, -1)
    return sum(leaves) if path[-1].key == 'error' and 'vmap' in transform else jnp.stack(leaves)

  return jax.tree_util.tree_map_with_path(stack, *(tree[i] for i in sorted(tree)))


@pytest.mark.slow
@pytest.mark.parametrize('transform', SAME)
def test_as_written_out(x64, transform):
  """Rules that broadcast the error give what they give without a transform, and fa too."""
  make, call, plainly = SAME[transform]
  one, two = (nnx.eval_shape(lambda make=make, call=call: Deep(make, call, nnx.Rngs(0)))
              for make, call in ((make, call), (LISTED, plainly)))
  definitions = nnx.graphdef(one), nnx.graphdef(two)
  as_one = lambda tree: tree if make is LISTED else {
      name: stacked(own, transform) if name == 'blocks' else own for name, own in tree.items()}

  def move(model, kind, tree):
    state = nnx.state(model, kind)
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(model, state)

  @jax.jit
  def gradients(params, x, key):
    found = {}
    for rule in ('fa', 'dfa', 'drtp', 'hebb'):
      want = nnx.merge(definitions[1], params, copy=True)
      got = nnx.merge(definitions[0], nnx.state(one), copy=True)
      move(got, nnx.Param, as_one(nnx.to_pure_dict(params)))
      for model in (got, want):
        bioprop.plug(model, rule, key, x)
      if rule != 'hebb':
        own = filled(nnx.state(want, bioprop.Feedback))  # By paths, and so the same for both.
        nnx.update(want, own)
        move(got, bioprop.Feedback, {'bioprop_feedback': as_one(
            nnx.to_pure_dict(own)['bioprop_feedback'])})
      found[rule] = gradient(got, x), as_one(gradient(want, x))
    return found

  found = gradients(filled(nnx.state(two)), X, jax.random.key(1))
  for got, want in found.values():
    close(got, want)
  firsts = [np.asarray(want['first']['kernel']) for _, want in found.values()]
  assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(firsts) for b in firsts[:i])


@pytest.mark.slow
def test_stacks_have_feedback_of_their_own(x64):
  """No two of a scan's layers share B, whatever its shape."""
  rules = {'fa': 'kernel', 'dfa': 'error'}
  models = nnx.jit(lambda: [bioprop.plug(
      Deep(STACKED, scan(), nnx.Rngs(0)), rule, nnx.Rngs(1), jax.ShapeDtypeStruct(X.shape, F))
                            for rule in rules])()
  for model, name in zip(models, rules.values()):
    own = np.asarray(model.bioprop_feedback['blocks']['linear'][name][...]).reshape(3, -1)
    assert np.abs(np.corrcoef(own) - np.eye(3)).max() < 0.8
    if name == 'kernel':
      spread = np.asarray(model.blocks.linear.kernel[...]).reshape(3, 36).std(1)
      np.testing.assert_allclose(own.std(1), 0.3 * spread, rtol=0.5)


@pytest.mark.parametrize('transform', ['scan', 'scan_pieces', 'scan_of_jax', 'remat'])
@pytest.mark.some(2)
def test_streams_reach_into_transforms(x64, transform):
  """brsf draws in there: with another key another signal is sent, and not with the same."""
  definition, state = nnx.split(nnx.eval_shape(
      lambda: Deep(*SAME[transform][:2], nnx.Rngs(0))))

  @jax.jit
  def first(state, keys):
    model = lambda key: bioprop.plug(nnx.merge(definition, state, copy=True),
                                        {'blocks': 'brsf', '*': 'usf'}, key, X)
    found = []
    for key in keys:
      own = model(jax.random.key(1))
      own.bioprop_stream.key.set_value(key)
      found.append(gradient(own, X)['first']['kernel'])
    return found

  keys = [jax.random.key(i) for i in (0, 0, 1)]
  one, same, other = map(np.asarray, first(filled(state), keys))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


class Masked(nnx.Module):
  """Two masked convolutions side by side; the masks are arrays of the stack's state."""

  def __init__(self, rngs):
    self.first, mask = nnx.Linear(6, 6, rngs=rngs), np.float32([[[1]], [[1]], [[0]]])
    self.stack = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: nnx.Conv(
        1, 1, (3,), mask=jnp.asarray(mask), rngs=rngs)))(rngs)

  def __call__(self, x):
    h = jnp.tanh(self.first(x))[..., None]
    return nnx.vmap(apply, in_axes=(0, None))(self.stack, h).sum(0)[..., 0]


def test_a_stack_of_masks():
  """An array that is no variable is of the transform's trace too."""
  x = jnp.asarray(np.random.RandomState(0).randn(4, 6), jnp.float32)
  definition, state = nnx.split(Masked(nnx.Rngs(0)))

  @jax.jit
  def gradients(state, key):
    rules = 'bp', 'align_prop', {'first': 'bp', '*': 'usf'}
    return [gradient(bioprop.plug(nnx.merge(definition, state, copy=True), rule, key, x), x)
            for rule in rules]

  want, got, other = gradients(state, jax.random.key(1))
  close(got, want, 1e-5)
  assert np.abs(other['first']['kernel'] - want['first']['kernel']).max() > 1e-3
