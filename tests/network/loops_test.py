"""Loops, branches and transforms of plain functions: as if the same network were written out."""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

pytestmark = pytest.mark.usefixtures('x64')
BROADCAST = ('dfa', 'drtp', 'hebb')


def layer(w, b, h):
  """One layer, of a sample or of a batch."""
  return jnp.tanh(h @ w + b.reshape((1,) * (h.ndim - 1) + (-1,)))


def between(middle):
  """A network whose middle is three layers."""
  return lambda p, x: middle(p, jnp.tanh(x @ p['a'])) @ p['o']


def scan(p, h, one=layer, **options):
  return jax.lax.scan(lambda h, wb: (one(*wb, h), None), h, (p['w'], p['b']), **options)[0]


def loop(p, h, one=layer):
  for i in range(3):
    h = one(p['w'][i], p['b'][i], h)
  return h


def backwards(p, h):
  """The stack is upside down."""
  return scan({'w': p['w'][::-1], 'b': p['b'][::-1]}, h, reverse=True)


def groups(p, h):
  """One layer, then a scan of two, in a scan of scans."""
  stack = lambda a, cut: a[cut].reshape((1, -1, *a.shape[1:]))
  two = jax.tree.map(lambda a: stack(a, slice(1, 3)), {'w': p['w'], 'b': p['b']})
  return jax.lax.scan(lambda h, q: (scan(q, h), None), layer(p['w'][0], p['b'][0], h), two)[0]


def chosen(w, b, h):
  """The layer stands in one of two branches."""
  return jax.lax.cond(jnp.sum(h**2) > 0, layer, lambda w, b, h: h, w, b, h)


def switched(w, b, h):
  """In one of three, by a number that is computed."""
  return jax.lax.switch(jnp.sum(h**2 > 0) % 1 + 1, [
      lambda w, b, h: h, layer, lambda w, b, h: -layer(w, b, h)], w, b, h)


# Each is the middle of a network, and is run on a batch.
FORMS = {
    'scan': scan,
    'scan, unrolled': lambda p, h: scan(p, h, unroll=3),
    'scan, backwards': backwards,
    'scan of scans': groups,
    'scan of remat': lambda p, h: scan(p, h, jax.checkpoint(layer)),
    'remat of scan': jax.checkpoint(scan, policy=jax.checkpoint_policies.dots_saveable),
    'scan of cond': lambda p, h: scan(p, h, chosen),
    'scan of vmap': lambda p, h: scan(p, h, jax.vmap(layer, (None, None, 0))),
    'vmap of scan': lambda p, h: jax.vmap(lambda h: scan(p, h))(h),
    'remat': lambda p, h: loop(p, h, jax.checkpoint(layer)),
    'jit': lambda p, h: loop(p, h, jax.jit(layer)),
    'cond': lambda p, h: loop(p, h, chosen),
    'switch': lambda p, h: loop(p, h, switched),
    'vmap': lambda p, h: loop(p, h, jax.vmap(layer, (None, None, 0))),
    'vmap along columns': lambda p, h: loop(
        p, h.T, jax.vmap(layer, (None, None, 1), out_axes=1)).T,
    'transposed': lambda p, h: loop(
        p, h.T, lambda w, b, h: jnp.tanh(w.T @ h + b[:, None])).T,
}
# Where each layer's direct feedback is, by the network that is written out.
DIRECT = collections.defaultdict(
    lambda: lambda b: {f'w{i}_error': own for i, own in enumerate(
        b['w_error'] if b['w_error'].ndim > 2 else [b['w_error']] * 3)}, {
            'scan, backwards': lambda b: {f'w{2 - i}_error': own for i, own in enumerate(
                b['w_error'])},
            'scan of scans': lambda b: {'w0_error': b['w_error'], 'w1_error': b['w_error_1'][0, 0],
                                        'w2_error': b['w_error_1'][0, 1]}})
Y = np.eye(4)[np.asarray([1, 2, 1, 3])]


def gradient(plugged, params, feedback, x):
  """Of squares, which tell the target."""
  return jax.jit(jax.grad(lambda p, b: jnp.mean((plugged.apply(p, b, x) - Y)**2)))(
      params, feedback)


def apart(tree):
  """Stacks of layers by names of their own; direct feedback is another matter."""
  stacks = {name: tree[name] for name in 'wb' if name in tree}
  return {**{name: leaf for name, leaf in tree.items() if name[0] in 'ao'},
          **{f'{name}{i}': leaf[i] for name, leaf in stacks.items() for i in range(3)}}


@functools.cache
def written_out(rule):
  """The network with a weight of its own for each layer."""

  def function(p, x):
    h = jnp.tanh(x @ p['a'])
    for i in '012':
      h = layer(p[f'w{i}'], p[f'b{i}'], h)
    return h @ p['o']

  return jax.jit(functools.partial(gradient, bioprop.plug(function, rule)))


@pytest.mark.parametrize('rule', [*BROADCAST, 'fa'])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.some(3)
def test_as_written_out(tools, form, rule):
  """All sizes are one, so that no axis is told from another by its length."""
  params = tools.fill({name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in (
      ('a', (4, 4)), ('w', (3, 4, 4)), ('b', (3, 4)), ('o', (4, 4)))})
  x = tools.draw(4, 4)
  plugged = bioprop.plug(between(FORMS[form]), rule)
  feedback = tools.feedback_of(plugged, params, x)
  got = gradient(plugged, params, feedback, x)

  own = {**apart(feedback), **(DIRECT[form](feedback) if 'w_error' in feedback else {})}
  tools.same(apart(got), written_out(rule)(apart(params), own, x))


def shared(p, x, scan):
  """One layer before, in and after a scan, in which there are others too."""
  h = jnp.tanh(x @ p['u'])
  for_each = lambda h, w: (jnp.tanh(jnp.tanh(h @ w) @ p['u']), None)
  h = scan(for_each, h, p['w'])[0]
  return jnp.tanh(h @ p['u']) @ p['o']


def by_hand(step, h, ws):
  """lax.scan in Python."""
  for w in ws:
    h, _ = step(h, w)
  return h, None


@pytest.mark.parametrize('rule', [*BROADCAST, 'fa'])
def test_a_layer_inside_and_outside(tools, rule):
  """All its uses share their feedback."""
  params = tools.fill({name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in (
      ('u', (4, 4)), ('w', (3, 4, 4)), ('o', (4, 4)))})
  apart = {**{f'w{i}': w for i, w in enumerate(params['w'])}, 'u': params['u'], 'o': params['o']}
  x = tools.draw(4, 4)
  rolled = bioprop.plug(lambda p, x: shared(p, x, jax.lax.scan), rule)
  feedback = tools.feedback_of(rolled, params, x)
  flat = bioprop.plug(lambda p, x: shared(
      {**p, 'w': [p['w0'], p['w1'], p['w2']]}, x, by_hand), rule)
  own = {name: leaf for name, leaf in feedback.items() if name[0] != 'w'}
  own.update({f'w{i}{name[1:]}': leaf[i] for name, leaf in feedback.items() if name[0] == 'w'
              for i in range(3)})
  got, want = gradient(rolled, params, feedback, x), gradient(flat, apart, own, x)
  stack = jnp.stack([want[f'w{i}'] for i in range(3)])
  tools.same(got, {'u': want['u'], 'w': stack, 'o': want['o']})
