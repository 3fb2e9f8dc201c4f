"""Plain functions, hand-written, of Haiku and of Equinox: exact at B = W, and dfa against numpy."""
import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.rules import OF_TIME

pytestmark = pytest.mark.usefixtures('x64')
X = np.random.RandomState(0).randn(5, 5)  # As many samples as features.


def by_hand():
  """Two layers; parameters in a tuple and a dict."""
  draw = np.random.RandomState(1).randn
  params = {'layers': ({'w': jnp.asarray(draw(5, 5)), 'b': jnp.asarray(draw(5))},),
            'out': jnp.asarray(draw(5, 3))}

  def net(params, x):
    first, = params['layers']
    return jnp.tanh(x @ first['w'] + first['b'][None]) @ params['out']

  return net, params, ('layers/0/w', 'out')


def haiku():
  """Two linear layers."""
  hk = pytest.importorskip('haiku')
  made = hk.without_apply_rng(hk.transform(
      lambda x: hk.Linear(3)(jnp.tanh(hk.Linear(5, name='first')(x)))))
  with jax.numpy_dtype_promotion('standard'):
    params = jax.tree.map(lambda w: w.astype(jnp.float64), made.init(jax.random.key(0), X))
  return made.apply, params, ('first/w', 'linear/w')


def equinox():
  """A network written for one sample, and vmapped."""
  eqx = pytest.importorskip('equinox')
  model = eqx.nn.MLP(5, 3, 5, 1, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(0))
  params, static = eqx.partition(model, eqx.is_array)
  net = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
  return net, params, ('layers/0/weight', 'layers/1/weight')


NETWORKS = {'by hand': by_hand, 'haiku': haiku, 'equinox': equinox}


@pytest.fixture(params=NETWORKS, scope='module')
def network(request):
  """A function, its parameters, the paths of its two weights."""
  with jax.enable_x64(True):
    return NETWORKS[request.param]()


def loss(out):
  """Its gradient is another at every entry."""
  return jnp.sum(jnp.sin(out) * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


def gradient(plugged, params, feedback):
  """Under the rule."""
  return jax.jit(jax.grad(lambda params: loss(plugged.apply(params, feedback, X))))(params)


@pytest.mark.parametrize('rule', [
    bioprop.make('fa', rho=1.0), 'align_prop', 'align_ada', 'align_zero', 'bp'], ids=str)
@pytest.mark.some(2)
def test_exact_where_feedback_is_the_weights(network, rule):
  """Backprop's gradient; and the output is the function's own."""
  net, params, _ = network
  plugged = bioprop.plug(net, rule)
  feedback = plugged.init_feedback(jax.random.key(1), params, X)
  want = jax.grad(lambda params: loss(net(params, X)))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
               gradient(plugged, params, feedback), want)
  np.testing.assert_allclose(jax.jit(plugged.apply)(params, feedback, X), net(params, X),
                             rtol=1e-12)


def test_direct_feedback_against_numpy(network):
  """The hidden layer's update is x^T ((e B) * tanh'(h)), samples found in whatever axis."""
  net, params, (first, last) = network
  plugged = bioprop.plug(net, 'dfa')
  feedback = plugged.init_feedback(jax.random.key(1), params, X)
  leaves = lambda tree: {'/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
                                  for k in at): np.asarray(leaf)
                         for at, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  own, got = leaves(params), leaves(gradient(plugged, params, feedback))
  b = leaves(feedback)['/'.join(filter(None, (last.rpartition('/')[0], 'error')))]
  transposed = 'weight' in first
  w = own[first].T if transposed else own[first]
  bias = next(leaf for name, leaf in own.items() if name.rpartition('/')[0] == (
      first.rpartition('/')[0]) and name != first)
  h = np.asarray(X) @ w + bias
  e = np.asarray(jax.grad(loss)(net(params, X)))
  want = np.asarray(X).T @ ((e @ b) * (1 - np.tanh(h)**2))
  np.testing.assert_allclose(got[first], want.T if transposed else want, rtol=1e-10)


@pytest.mark.parametrize('rule', [
    rule for rule in bioprop.RULES if rule not in ('bp', 'gln', *OF_TIME)])
@pytest.mark.some(3)
def test_every_rule_runs(network, rule):
  """Feedback and parameters as trees of arrays; rules that draw ask for a key, by name."""
  net, params, (first, _) = network
  plugged = bioprop.plug(net, rule)
  feedback = plugged.init_feedback(jax.random.key(1), params, X)
  run = lambda params, key: loss(plugged.apply(params, feedback, X, key=key))
  if rule in ('brsf', 'mirror'):
    with pytest.raises(errors.FeedbackMissingError, match='draws new feedback'):
      jax.grad(run)(params, None)
  grads = jax.grad(run)(params, jax.random.key(2))
  assert jax.tree.structure(grads) == jax.tree.structure(params)
  assert np.any(jax.tree.leaves(grads)[0]) == (rule != 'last_layer')


def test_kolen_pollack_learns_its_feedback(network):
  """B of the last weight gets the update of that weight."""
  net, params, _ = network
  plugged = bioprop.plug(net, 'kp')
  feedback = plugged.init_feedback(jax.random.key(1), params, X)
  of_params, of_feedback = jax.grad(
      lambda both: loss(plugged.apply(*both, X)))((params, feedback))
  shapes = {leaf.shape: leaf for leaf in jax.tree.leaves(of_params) if leaf.ndim == 2}
  assert jax.tree.leaves(of_feedback)
  for leaf in jax.tree.leaves(of_feedback):
    np.testing.assert_array_equal(leaf, shapes[leaf.shape])


def test_one_layer_on_two_shapes():
  """Under dfa each has feedback of its own; the update is the sum of what numpy says of both."""

  def net(params, x):
    long = x @ params['w']                        # [n, 5]
    short = jnp.stack([x, 2 * x], 1) @ params['w']  # [n, 2, 5]
    return (long + short.sum(1)) @ params['out']

  draw = np.random.RandomState(2).randn
  params = {'w0': jnp.asarray(draw(5, 5)), 'w': jnp.asarray(draw(5, 5)),
            'out': jnp.asarray(draw(5, 3))}
  whole = lambda params, x: net(params, x @ params['w0'])
  plugged = bioprop.plug(whole, 'dfa')
  feedback = plugged.init_feedback(jax.random.key(1), params, X)
  one, two = np.asarray(feedback['w_error']), np.asarray(feedback['w_error_1'])
  assert one.shape == (3, 5) and two.shape == (3, 10)
  e = np.asarray(jax.grad(loss)(whole(params, X)))
  places = (e @ two).reshape(5, 2, 5)
  want = np.asarray(X).T @ (e @ one + places[:, 0] + 2 * places[:, 1])
  np.testing.assert_allclose(gradient(plugged, params, feedback)['w0'], want, rtol=1e-10)


@pytest.mark.parametrize('rule', ['dfa', 'drtp'])
def test_names_that_begin_alike(rule):
  """Feedback of w is not taken for that of w_2, nor the second of w for the first of w_1."""
  draw = np.random.RandomState(3).randn

  def network(names):
    def net(params, x):
      for name in names:
        both = jnp.stack([x, 2 * x], 1) @ params[name]  # [n, 2, 5]: another shape than x's.
        x = jnp.tanh(x @ params[name]) + both.sum(1)
      return x @ params['out']
    return bioprop.plug(net, rule)

  plain, names = ('a', 'b', 'c'), ('w', 'w_1', 'w_1_1')
  params = {name: jnp.asarray(draw(5, 5)) for name in plain} | {'out': jnp.asarray(draw(5, 3))}
  first = network(plain)
  feedback = first.init_feedback(jax.random.key(1), params, X)
  renamed = dict(zip(plain, names)) | {'out': 'out'}
  again = lambda name: renamed[name.partition('_')[0]] + name[name.index('_'):]
  own = {renamed[name]: w for name, w in params.items()}
  fed = {again(name): b for name, b in feedback.items()}
  got = gradient(network(names), own, fed)
  want = gradient(first, params, feedback)
  for name, g in want.items():
    np.testing.assert_allclose(got[renamed[name]], g, rtol=1e-12)
  for weight, name in (('w', 'w_error'), ('w_1', 'w_1_error_1')):
    with pytest.raises(errors.FeedbackMissingError, match=f"'{weight}' has no feedback"):
      gradient(network(names), own, {key: b for key, b in fed.items() if key != name})


def alike(params, x):
  """Equal layers: by names of their own, of a stack, and one at two steps, whose sign differs."""
  apart = [x @ params[name] @ params[f'out_{name}'] for name in 'ab']
  stack = jax.lax.scan(lambda _, p: (None, x @ p[0] @ p[1]), None, params['stack'])[1]
  steps = jax.lax.scan(lambda _, sign: (None, sign * (x @ params['step'] @ params['out_step'])),
                       None, jnp.asarray([1.0, -1.0]))[1]
  return sum(apart) + stack.sum(0) + steps.sum(0)


def test_what_is_drawn_at_each_call():
  """Layers draw each their own, of a stack too; steps of one layer do not; the key decides."""
  draw = np.random.RandomState(0).randn
  w, out = jnp.asarray(draw(5, 4)), jnp.asarray(draw(4, 3))
  params = {'a': w, 'b': w, 'step': w, 'out_a': out, 'out_b': out, 'out_step': out,
            'stack': (jnp.stack([w, w]), jnp.stack([out, out]))}
  plugged = bioprop.plug(alike, 'brsf')
  own = jax.jit(jax.grad(lambda params, seed: plugged.apply(
      params, {}, X, key=jax.random.key(seed)).sum()))
  grads = own(params, 0)
  layers = [grads['a'], grads['b'], *grads['stack'][0]]
  for i, one in enumerate(layers):
    assert all(np.abs(one - other).max() > 1e-2 for other in layers[:i])
  np.testing.assert_allclose(grads['step'], 0, atol=1e-12)
  jax.tree.map(np.testing.assert_array_equal, own(params, 0), grads)
  assert np.abs(own(params, 1)['a'] - grads['a']).max() > 1e-2


@jax.custom_vjp
def hidden_product(w, x):
  """A product with a derivative of its own."""
  return x @ w


hidden_product.defvjp(lambda w, x: (x @ w, (w, x)),
                      lambda kept, g: (kept[1].T @ g, g @ kept[0].T))


def test_what_cannot_be_entered():
  """It is refused by name, unless it is left on backprop."""
  net = lambda params, x: hidden_product(params['inner'], jnp.tanh(x @ params['w'])) @ params['out']
  params = {name: jnp.eye(5) for name in ('inner', 'w', 'out')}
  with pytest.raises(errors.UnsupportedLayerError, match="'inner'.*custom_vjp.*'bp'"):
    bioprop.plug(net, 'fa').init_feedback(jax.random.key(0), params, X)
  plugged = bioprop.plug(net, {'inner': 'bp', '*': bioprop.make('fa', rho=1.0)})
  feedback = plugged.init_feedback(jax.random.key(0), params, X)
  want = jax.grad(lambda params: loss(net(params, X)))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10),
               gradient(plugged, params, feedback), want)


def test_mistakes():
  """No function; no feedback; feedback of another dtype; no product."""
  with pytest.raises(TypeError, match='takes a model'):
    bioprop.plug(3, 'fa')
  net, params, _ = by_hand()
  plugged = bioprop.plug(net, 'fa')
  feedback = plugged.init_feedback(jax.random.key(0), params, X)
  with pytest.raises(errors.FeedbackMissingError, match='init_feedback'):
    plugged.apply(params, None, X)
  with pytest.raises(errors.FeedbackMissingError, match='has no feedback'):
    gradient(plugged, params, {})
  with pytest.raises(errors.FeedbackMissingError, match='float32'):
    gradient(plugged, params, jax.tree.map(lambda b: b.astype(jnp.float32), feedback))
  with pytest.raises(errors.NothingMatchedError, match='no parameter that meets'):
    bioprop.plug(lambda params, x: x + params, 'fa').init_feedback(
        jax.random.key(0), jnp.ones((5, 5)), X)


class Small(nn.Module):
  """Two layers."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, param_dtype=jnp.float64)(nn.tanh(nn.Dense(4, param_dtype=jnp.float64)(x)))


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'align_ada'])
def test_linen_models_are_pickled_and_copied(rule):
  """They give the same gradients."""
  model = bioprop.plug(Small(), rule)
  variables = model.init(jax.random.key(0), X)
  own = lambda model: jax.grad(lambda params: loss(
      model.apply({**variables, 'params': params}, X)))(variables['params'])
  for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model.clone()):
    assert type(other) is type(model) and other.bioprop_plug == model.bioprop_plug
    jax.tree.map(np.testing.assert_array_equal, own(other), own(model))
    assert isinstance(other, Small)
