"""A rule of one's own: what it may answer, and the words when it answers wrongly."""
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.rules import Credit, Rule


@dataclasses.dataclass(frozen=True)
class Mine(Rule):
  """Backprop, with an answer that can be spoilt."""
  spoil: str = ''

  def backward(self, op, params, x, feedback, g, e):
    """See `Rule.backward`."""
    update, dx = op.update(params, x, g), op.send({}, params, x, g)
    match self.spoil:
      case 'shape':
        update = {**update, 'kernel': update['kernel'].T}
      case 'dtype':
        update = jax.tree.map(lambda a: a.astype(jnp.bfloat16), update)
      case 'missing':
        update = {'kernel': update['kernel']}
      case 'x':
        dx = dx[:1]
      case 'silent':
        dx = None
    return Credit(update, dx)


class Net(nn.Module):
  """Two layers."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='b')(nn.tanh(nn.Dense(5, name='a')(x)))


def gradient(rule):
  """Through a plugged net."""
  model, x = bioprop.plug(Net(), rule), jnp.linspace(-1, 1, 8).reshape(2, 4)
  variables = model.init(jax.random.key(0), x)
  return jax.grad(lambda p: jnp.sum(model.apply({'params': p}, x)**2))(variables['params'])


@pytest.mark.slow
@pytest.mark.parametrize('spoil', ['shape', 'dtype', 'missing', 'x'])
def test_wrong_answers(spoil):
  """Named, with the rule and both types."""
  what = 'for x of type' if spoil == 'x' else 'for params of type'
  with pytest.raises(errors.RuleContractError, match=rf'Mine\.backward returned .*{what}'):
    gradient(Mine(spoil))


def test_own_rule_is_used():
  """It need not be in RULES; None stands for zeros."""
  exact = gradient('bp')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradient(Mine()), exact)
  silent = gradient(Mine('silent'))
  assert not np.any(silent['a']['kernel'])
  np.testing.assert_allclose(silent['b']['kernel'], exact['b']['kernel'], rtol=1e-6)
