"""What a model has detached learns nothing, whichever way its rule brings the error."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

import bioprop

X = np.random.RandomState(0).randn(4, 5).astype(np.float32)
RULES = ('fa', 'dfa', 'dkp', 'drtp', 'hebb')


class Frozen(nn.Module):
  """Two frozen layers, of which one is in a scan, and a head."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(6, name='first')(x))
    scan = nn.scan(lambda cell, x, _: (nn.tanh(cell(x)), None), length=2,
                   variable_axes={'params': 0, 'feedback': 0}, split_rngs={'params': True})
    x, _ = scan(nn.Dense(6, name='stack'), x, None)
    return nn.Dense(3, name='head')(stop_gradient(x))


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.some(2)
def test_layers_below_a_stop(rule):
  """Their gradients are zeros, as backprop's are; the head's is its own."""
  plain, model = Frozen(), bioprop.plug(Frozen(), rule)
  variables = model.init(jax.random.key(0), X)
  rest = {name: own for name, own in variables.items() if name != 'params'}
  loss = lambda params, model, rest: jnp.mean(model.apply({**rest, 'params': params}, X)**2)
  found = jax.grad(loss)(variables['params'], model, rest)
  want = jax.grad(loss)(variables['params'], plain, {})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, want)
  assert float(jnp.abs(want['head']['kernel']).max()) > 0.01


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.some(2)
def test_one_call_of_two(rule):
  """Targets of the network itself (SimSiam): with them computed before, gradients are the same."""

  def encoded(p, x):
    return jnp.tanh(jnp.tanh(x @ p['a']) @ p['b']) @ p['c']

  draw = np.random.RandomState(1).randn
  params = {name: jnp.asarray(draw(*shape), jnp.float32) for name, shape in {
      'a': (5, 6), 'b': (6, 6), 'c': (6, 3), 'p': (3, 3)}.items()}
  views = X[:2], X[2:]
  both = lambda p, x, other: jnp.tanh(encoded(p, x)) @ p['p'] - stop_gradient(encoded(p, other))
  alone = lambda p, x, target: jnp.tanh(encoded(p, x)) @ p['p'] - target
  target = encoded(params, views[1])
  found = []
  for function, second in ((both, views[1]), (alone, target)):
    plugged = bioprop.plug(function, rule)
    feedback = plugged.init_feedback(jax.random.key(0), params, views[0], second)
    loss = lambda params, plugged=plugged, feedback=feedback, second=second: jnp.mean(
        plugged.apply(params, feedback, views[0], second)**2)
    found.append(jax.grad(loss)(params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)
