"""NNX: B = W gives backprop's gradient through every transform and way to build a model."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop import errors

pytestmark = pytest.mark.usefixtures('quick')
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


class Tied(nnx.Module):
  """One layer under two names, called three times."""

  def __init__(self, rngs):
    self.one = Linear(6, 6, rngs=rngs)
    self.two = self.one

  def __call__(self, x):
    return jnp.tanh(self.two(jnp.tanh(self.one(jnp.tanh(self.one(x))))))


class Remat(nnx.Module):
  """The decorator on a method."""

  def __init__(self, rngs):
    self.block = Block(rngs)

  @nnx.remat
  def __call__(self, x):
    return self.block(x)


class Nested(nnx.Module):
  """Layers in lists, dicts and sequences."""

  def __init__(self, rngs):
    self.blocks = nnx.List([nnx.Dict(a=Linear(6, 6, rngs=rngs), b=nnx.List([Block(rngs)]))
                            for _ in range(2)])
    self.end = nnx.Sequential(Linear(6, 6, rngs=rngs), jnp.tanh)

  def __call__(self, x):
    for block in self.blocks:
      x = block['b'][0](jnp.tanh(block['a'](x)))
    return self.end(x)


class Branch(nnx.Module):
  """nnx.cond on the data."""

  def __init__(self, rngs):
    self.block = Block(rngs)

  def __call__(self, x):
    return nnx.cond(jnp.sum(x) > -1e9, lambda m, x: m(x), lambda m, x: 2 * x, self.block, x)


class Over(nnx.Module):
  """A block, or a stack of three, under a transform."""

  def __init__(self, rngs, call, stacked):
    make = nnx.split_rngs(splits=3)(nnx.vmap(Block)) if stacked else Block
    self.blocks, self.call = make(rngs), call

  def __call__(self, x):
    return self.call(self.blocks, x)


class Recurrent(nnx.Module):
  """A cell over the six numbers as time."""

  def __init__(self, rngs, both=False):
    cell = lambda: nnx.RNN(nnx.SimpleCell(
        1, 4, dtype=F, param_dtype=F, rngs=rngs), return_carry=False, rngs=rngs)
    self.rnn = nnx.Bidirectional(cell(), cell(), rngs=rngs) if both else cell()
    self.out = Linear(8 if both else 4, 6, rngs=rngs)

  def __call__(self, x):
    return self.out(self.rnn(x[..., None])[:, 2])


def apply(block, x):
  """Calls it."""
  return block(x)


def scan(axes=0, body=apply, **kwargs):
  """nnx.scan over blocks, or over one several times."""
  return nnx.scan(body, in_axes=(axes, nnx.Carry), out_axes=nnx.Carry, **kwargs)


def batch_norm(rngs):
  """In float64, its statistics too."""
  norm = nnx.BatchNorm(6, param_dtype=F, rngs=rngs)
  for statistic in (norm.mean, norm.var):
    statistic.set_value(statistic[...].astype(F))
  return norm


over = lambda call, stacked: functools.partial(Over, call=call, stacked=stacked)
SPLIT = nnx.StateAxes({(nnx.Param, bioprop.Feedback, 'feedback'): 0, ...: None})

# What stands between the first layer and the readout; each takes rngs.
MIDDLES = {
    'tied': Tied,
    'remat': Remat,
    'remat_policy': over(nnx.remat(
        apply, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False), False),
    'jit': over(nnx.jit(apply), False),
    'vmap': over(lambda m, x: nnx.vmap(apply, in_axes=(0, None))(m, x).sum(0), True),
    'scan': over(scan(), True),
    'scan_axes': over(scan(SPLIT), True),
    'scan_remat': over(scan(body=nnx.remat(apply)), True),
    'scan_carrying': over(scan(nnx.StateAxes({...: nnx.Carry}), length=3), False),
    'cond': Branch,
    'nested': Nested,
    'subclass': Scaled,
    'rnn': Recurrent,
    'bidirectional': functools.partial(Recurrent, both=True),
    'lora': lambda rngs: nnx.LoRA(6, 2, 6, base_module=Linear(6, 6, rngs=rngs), param_dtype=F,
                                  rngs=rngs),
    'lora_linear': lambda rngs: nnx.LoRALinear(6, 6, lora_rank=2, param_dtype=F,
                                               lora_param_dtype=F, rngs=rngs),
    'dropout': lambda rngs: nnx.Sequential(Block(rngs), nnx.Dropout(0.3, rngs=rngs)),
    'batch_norm': lambda rngs: nnx.Sequential(Block(rngs), batch_norm(rngs)),
}


class Model(nnx.Module):
  """Something in the middle."""

  def __init__(self, middle, rngs):
    self.first = Linear(6, 6, rngs=rngs)
    self.middle = MIDDLES[middle](rngs=rngs)
    self.readout = Linear(6, 3, rngs=rngs)

  def __call__(self, x):
    return self.readout(self.middle(jnp.tanh(self.first(x))))


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


X = (4, 6)


def abstract(middle, rule=None):
  """(graphdef, state) of a model, without computing anything."""
  x = jax.ShapeDtypeStruct(X, F)

  def make():
    model = Model(middle, nnx.Rngs(0))
    return model if rule is None else bioprop.install(model, rule, nnx.Rngs(1), x)

  return nnx.split(nnx.eval_shape(make))


def filled(state, symmetric=False):
  """The state with normals that depend on the path alone; `symmetric`: B = W."""
  flat = {}
  for path, variable in nnx.to_flat_state(state):
    if isinstance(variable, nnx.RngKey):
      value = jax.random.split(jax.random.key(0), variable.shape)
    elif isinstance(variable, nnx.RngCount):
      value = jnp.zeros(variable.shape, variable.dtype)
    else:
      name = str(path[-1]).removeprefix('feedback_') if symmetric else path[-1]
      seed = sum(ord(c) * (i + 1) for i, c in enumerate('/'.join(map(str, (*path[:-1], name)))))
      value = 0.5 * np.random.RandomState(seed).randn(*variable.shape)
      value = jnp.asarray(np.abs(value) if path[-1] == 'var' else value, variable.dtype)
    flat[path] = variable.replace(value) if isinstance(variable, nnx.Variable) else value
  return nnx.from_flat_state(flat)


def gradient(model, x):
  """Of a loss whose error is no multiple of the output."""
  return nnx.to_pure_dict(nnx.grad(lambda model: jnp.mean(jnp.sin(model(x))))(model))


def close(got, want, rtol=1e-12):
  """Equal up to rounding."""
  got, want = jax.tree.map(np.asarray, (got, want))
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale),
               got, want)
  return scale


@pytest.mark.parametrize('middle', MIDDLES)
def test_exact(x64, middle):
  """B = W is backprop; B is not; paths and values of the parameters are the plain model's."""
  with jax.numpy_dtype_promotion('standard'):  # Flax's norms add float32 numbers.
    (plain, state), (plugged, own) = abstract(middle), abstract(middle, 'fa')
    values = filled(state), filled(own, symmetric=True), filled(own)
    want, got, other = jax.jit(lambda values: [gradient(nnx.merge(definition, value), draw(*X))
                                               for definition, value in zip(
        (plain, plugged, plugged), values)])(values)
  scale = close(got, want)
  pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (other, want)))
  away = max(np.abs(a - b).max() for a, b in pairs)
  assert away > 1e-3 * scale, 'its own feedback gives backprop: no layer was plugged'


@pytest.mark.parametrize('rule, middle', [
    *(('dfa', middle) for middle in ('jit', 'vmap', 'scan_axes', 'scan_remat', 'cond', 'lora')),
    *(('brsf', middle) for middle in ('remat', 'scan', 'scan_axes', 'rnn'))])
def test_ports_and_streams_reach_into_transforms(x64, rule, middle):
  """dfa's first layer depends on the error alone, not on the readout; brsf draws there."""
  definition, state = abstract(middle, rule)
  values, e = filled(state), draw(4, 3)

  def sent(values):
    params, rest = nnx.split_state(values, nnx.Param, ...)
    run = lambda p: nnx.merge(definition, p, rest, copy=True)(draw(*X))
    return nnx.to_pure_dict(jax.vjp(run, params)[1](e)[0])

  def both(values, key):
    other = nnx.from_flat_state([
        (path, variable.replace(2 * variable[...] + 1) if path == ('readout', 'kernel')
         else variable.replace(jax.random.split(key, variable.shape))
         if path == ('readout', 'feedback_stream', 'key') else variable)
        for path, variable in nnx.to_flat_state(values)])
    return sent(values), sent(other)

  one, two = jax.jit(both)(values, jax.random.key(5))
  assert np.any(one['first']['kernel'])
  if rule == 'dfa':
    jax.tree.map(np.testing.assert_array_equal, one['first'], two['first'])
  else:
    assert np.abs(one['first']['kernel'] - two['first']['kernel']).max() > 1e-3


# What each middle computes of x, with layer(path, x) for each of its layers.
BODIES = {
    'tied': lambda layer, x: functools.reduce(
        lambda x, _: jnp.tanh(layer('one', x)), range(3), x),
    'remat': lambda layer, x: x + jnp.tanh(layer('block/linear', x)),
    'scan': lambda layer, x: functools.reduce(
        lambda x, i: x + jnp.tanh(layer('blocks/linear', x, i)), range(3), x),
    'scan_carrying': lambda layer, x: functools.reduce(
        lambda x, _: x + jnp.tanh(layer('blocks/linear', x)), range(3), x),
    'rnn': lambda layer, x: layer('out', list(itertools.accumulate(
        range(6), lambda h, t: jnp.tanh(layer('rnn/cell/dense_i', x[:, t, None])
                                        + layer('rnn/cell/dense_h', h)),
        initial=jnp.zeros((4, 4))))[3]),
}


@pytest.mark.parametrize('middle', BODIES)
def test_direct_feedback_against_a_surrogate(x64, middle):
  """The gradient of <e, y> + sum <x, B e> over layers that let nothing through their weights."""
  definition, state = abstract(middle, 'dfa')
  values, x, e = filled(state), draw(*X), draw(4, 3)
  params, rest = nnx.split_state(values, nnx.Param, ...)

  def want(params, x):
    total = []

    def layer(path, x, i=...):
      own, fixed = params, rest
      for name in path.split('/'):
        own, fixed = own[name], fixed[name]
      total.append(jnp.sum(x * (e @ fixed['feedback_error'][i])))
      bias = own['bias'][...][i] if 'bias' in own else jnp.zeros(())
      return jax.lax.stop_gradient(x) @ own['kernel'][...][i] + jnp.expand_dims(
          bias, tuple(range(2 - bias.ndim)))

    inside = lambda path, x, i=...: layer(f'middle/{path}', x, i)
    h = BODIES[middle](inside, jnp.tanh(layer('first', x)))
    return jnp.sum(layer('readout', h) * e) + sum(total)

  got = lambda p, x: jnp.sum(e * nnx.merge(definition, p, rest, copy=True)(x))
  results = jax.jit(lambda p, x: [jax.tree.leaves(jax.grad(f, argnums=(0, 1))(p, x))
                                  for f in (got, want)])(params, x)
  close(*results)


def test_stacks_have_feedback_of_their_own(x64):
  """No two of a scan's layers share B."""
  model = bioprop.install(Over(nnx.Rngs(0), scan(), True), 'fa', nnx.Rngs(1))
  flat = np.asarray(model.blocks.linear.feedback_kernel[...]).reshape(3, 36)
  assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 5 / 6
  spread = np.asarray(model.blocks.linear.kernel[...]).reshape(3, 36).std(1)
  np.testing.assert_allclose(flat.std(1), 0.3 * spread, rtol=0.5)


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
  model = bioprop.install(Masked(nnx.Rngs(0)), {'first': 'bp', '*': 'fa'}, nnx.Rngs(1), x)
  grad = nnx.jit(lambda model: gradient(model, x))
  want, other = grad(Masked(nnx.Rngs(0))), grad(model)
  assert np.abs(other['first']['kernel'] - want['first']['kernel']).max() > 1e-3
  model.stack.feedback_kernel.set_value(model.stack.kernel[...])
  close(grad(model), want, 1e-5)


@pytest.mark.parametrize('rule, state', [
    ('fa', 'bioprop.Feedback'), ('frsf', 'bioprop.Feedback'), ('dfa', 'bioprop.Feedback'),
    ('hebb', 'bioprop.Feedback'), ('brsf', "'feedback'")])
def test_a_scan_that_splits_only_parameters_is_refused(x64, rule, state):
  """The message has the line to type, and the line works."""
  x = jnp.ones((3, 6))  # As many samples as layers: their ports could be taken for one another.

  def run(axes):
    model = bioprop.install(Over(nnx.Rngs(0), scan(axes), True), rule, nnx.Rngs(1), x)
    return nnx.jit(nnx.grad(lambda model: model(x).sum()))(model)

  with pytest.raises(errors.LiftedTransformError) as caught:
    run(nnx.StateAxes({nnx.Param: 0, ...: None}))
  line = f'nnx.StateAxes({{(nnx.Param, {state}): 0, ...: None}})'
  assert line in str(caught.value) and '\n' not in str(caught.value)
  grads = run(eval(line, {'nnx': nnx, 'bioprop': bioprop}))
  assert np.any(grads['blocks']['linear']['kernel'][...])
