"""Weights that are named, laid out or made otherwise than layers have them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bioprop

pytestmark = pytest.mark.usefixtures('x64')


def drawn(*shape, seed=0):
  return np.random.RandomState(seed + sum(shape)).randn(*shape)


X = drawn(4, 5)


@pytest.mark.parametrize('function, params, x', [
    (lambda p, t: jnp.tanh(p['user']['bias'][t] + p['mu']) @ p['o'],
     {'user': {'bias': drawn(3, 4)}, 'mu': drawn(3, 4, seed=1), 'o': drawn(4, 2)},
     jnp.asarray([2, 0, 0])),
    (lambda p, x: jnp.tanh(x @ p['bias'] + p['shift'][None]) @ p['o'],
     {'bias': drawn(5, 4), 'shift': drawn(4), 'o': drawn(4, 2)}, X)], ids=['lookup', 'product'])
def test_a_weight_named_bias_is_no_bias(function, params, x):
  """Not even where something is added to it: B = W's gradient and the value are the plain ones."""
  plugged = bioprop.plug(function, 'fa')
  loss = lambda params: jnp.sum(jnp.sin(plugged.apply(params, params, x)))
  want = jax.value_and_grad(lambda params: jnp.sum(jnp.sin(function(params, x))))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
               jax.value_and_grad(loss)(params), want)


def _convolved(layout):
  """A pointwise kernel at a stride, its axes as a layout has them."""
  numbers = ('NHWC', layout, 'NHWC')
  return lambda p, x: lax.conv_general_dilated(
      jnp.tanh(x), p['w'], (2, 2), 'SAME', dimension_numbers=numbers)


@pytest.mark.parametrize('usual, other, axes, shape, x', [
    (lambda p, x: jnp.tanh(x) @ p['w'],
     lambda p, x: jax.vmap(lambda x: p['w'] @ jnp.tanh(x))(x), (1, 0), (5, 3), X),
    (_convolved('HWIO'), _convolved('OIHW'), (3, 2, 0, 1), (3, 2, 5, 7), drawn(4, 6, 6, 5))],
    ids=['matrix', 'convolution'])
def test_product_feedback_knows_the_outputs_of_any_layout(usual, other, axes, shape, x):
  """Of a weight stored [out, in] too, what P gets is dW G, and G is [out, out]."""
  found = []
  for function, turned in ((usual, None), (other, axes)):
    turn = lambda w, turned=turned: w if turned is None else jnp.transpose(w, turned)
    plugged, params = bioprop.plug(function, 'pfa'), {'w': turn(drawn(*shape))}
    feedback = plugged.init_feedback(jax.random.key(0), params, x)
    loss = lambda params, feedback, plugged=plugged: jnp.sum(
        jnp.sin(plugged.apply(params, feedback, x)))
    dw, dp = (grad['w'] for grad in jax.grad(loss, (0, 1))(params, feedback))
    back = (lambda d: d) if turned is None else (
        lambda d, turned=turned: jnp.transpose(d, np.argsort(turned)))
    gram = np.asarray(feedback['gram'], np.float64)
    assert gram.shape == (shape[-1],) * 2
    np.testing.assert_allclose(back(dp), back(dw) @ gram / np.mean(np.diag(gram)), rtol=1e-5)
    found.append((back(dw), gram))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *found)


def test_product_feedback_of_a_vector():
  """Whose one output has a G of one number: 1, over its mean."""
  plugged, params = bioprop.plug(lambda p, x: jnp.tanh(x) @ p['w'], 'pfa'), {'w': drawn(5)}
  feedback = plugged.init_feedback(jax.random.key(0), params, X)
  assert feedback['gram'].shape == (1, 1)
  loss = lambda params, feedback: jnp.sum(jnp.sin(plugged.apply(params, feedback, X)))
  dw, dp = jax.grad(loss, (0, 1))(params, feedback)
  np.testing.assert_allclose(dp['w'], dw['w'], rtol=1e-6)


def test_product_feedback_takes_memory_by_outputs_alone():
  """A bound for G of the two outputs is no bound for the 400 inputs that a kernel stores last."""
  plugged = bioprop.plug(lambda p, x: jax.vmap(lambda x: p['w'] @ x)(x),
                         bioprop.make('pfa', max_gib=1e-6))
  feedback = plugged.init_feedback(jax.random.key(0), {'w': drawn(2, 400)}, drawn(3, 400))
  assert feedback['gram'].shape == (2, 2)


@pytest.mark.parametrize('rule', ['dfa', 'dkp', 'pfa'])
@pytest.mark.parametrize('first', ['factor', 'weight'])
def test_weights_with_a_factor_in_common_have_feedback_each(rule, first):
  """In whatever order the two are written."""
  scaled = (lambda p, w: p['s'] * p[w]) if first == 'factor' else (lambda p, w: p[w] * p['s'])
  plugged = bioprop.plug(lambda p, x: jnp.tanh(
      jnp.tanh(x @ scaled(p, 'a')) @ scaled(p, 'b')) @ scaled(p, 'c'), rule)
  params = {'s': jnp.asarray(1.5), 'a': drawn(5, 6), 'b': drawn(6, 6), 'c': drawn(6, 6, seed=1)}
  feedback = plugged.init_feedback(jax.random.key(0), params, X)
  kind = 'gram' if rule == 'pfa' else 'error'
  own = [value for name, value in feedback.items() if kind in name]
  assert len(own) == 3
  alike = [one for one in own if one.shape == (6, 6)]
  assert len(alike) >= 2 and len({float(one[0, 1]) for one in alike}) == len(alike)
