"""Direct feedback through causal attention, where the error has positions: against numpy."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

F = jnp.float64
SAMPLES, LENGTH, WIDTH, HEADS, CLASSES = 2, 4, 6, 2, 3


class Attender(nn.Module):
  """Attention to the past, added to the stream, and a readout."""

  @nn.compact
  def __call__(self, x):
    mask = nn.make_causal_mask(x[..., 0])
    attention = nn.MultiHeadDotProductAttention(HEADS, param_dtype=F, name='attention')
    return nn.Dense(CLASSES, param_dtype=F, name='readout')(x + attention(x, mask=mask))


@pytest.fixture
def setting(x64):
  """Plugged model, variables, x, an error; biases that are not zero."""
  random = np.random.RandomState(0)
  plugged = bioprop.plug(Attender(), bioprop.make('dfa', scale=1.0))
  x = jnp.asarray(random.randn(SAMPLES, LENGTH, WIDTH))
  variables = plugged.init(jax.random.key(0), x)
  params = jax.tree.map(lambda w: w + 0.1 * random.randn(*w.shape), variables['params'])
  return (plugged, {**variables, 'params': params}, x,
          jnp.asarray(random.randn(SAMPLES, LENGTH, CLASSES)))


def pulled(plugged, variables, x, e):
  """Pseudogradients of the parameters and of x, for a given error at the output."""
  run = lambda p, x: plugged.apply({**variables, 'params': p}, x)
  return jax.vjp(run, variables['params'], x)[1](e)


def test_attention_by_hand(setting):
  """Each projection's input gets B e of its position; softmax and scores are differentiated."""
  plugged, variables, x, e = setting
  got, got_x = pulled(plugged, variables, x, e)
  p, b = jax.tree.map(np.asarray, (variables['params'], variables['feedback']))
  attention, x, e = p['attention'], np.asarray(x), np.asarray(e)
  project = lambda name: (np.einsum('ntd,dhk->nthk', x, attention[name]['kernel'])
                          + attention[name]['bias'])
  q, k, v = project('query'), project('key'), project('value')
  root = np.sqrt(WIDTH / HEADS)
  scores = np.einsum('nthk,nshk->nhts', q, k) / root
  scores = np.where(np.tril(np.ones((LENGTH, LENGTH), bool)), scores, -np.inf)
  a = np.exp(scores - scores.max(-1, keepdims=True))
  a /= a.sum(-1, keepdims=True)
  mixed = np.einsum('nhts,nshk->nthk', a, v)
  stream = x + np.einsum('nthk,hkd->ntd', mixed, attention['out']['kernel']) + (
      attention['out']['bias'])

  above = e @ b['readout']['error']
  mixed_bar = (e @ b['attention']['out']['error']).reshape(mixed.shape)
  a_bar = np.einsum('nthk,nshk->nhts', mixed_bar, v)
  scores_bar = a * (a_bar - (a * a_bar).sum(-1, keepdims=True)) / root
  bars = {'query': np.einsum('nhts,nshk->nthk', scores_bar, k),
          'key': np.einsum('nhts,nthk->nshk', scores_bar, q),
          'value': np.einsum('nhts,nthk->nshk', a, mixed_bar)}
  close = dict(rtol=1e-10, atol=1e-12)
  for name, bar in bars.items():
    np.testing.assert_allclose(
        got['attention'][name]['kernel'], np.einsum('ntd,nthk->dhk', x, bar), **close)
    np.testing.assert_allclose(got['attention'][name]['bias'], bar.sum((0, 1)), **close)
  np.testing.assert_allclose(
      got['attention']['out']['kernel'], np.einsum('nthk,ntd->hkd', mixed, above), **close)
  np.testing.assert_allclose(
      got['readout']['kernel'], np.einsum('ntd,ntc->dc', stream, e), **close)
  below = sum(b['attention'][name]['error'] for name in bars)
  np.testing.assert_allclose(got_x, above + e @ below, **close)


def test_feedback_serves_a_position_and_not_a_sequence(setting):
  """B has the error's classes as rows and one position's numbers as columns."""
  _, variables, _, _ = setting
  assert {path[0].key: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(
      variables['feedback']['attention'])} == dict.fromkeys(
          ('query', 'key', 'value', 'out'), (CLASSES, WIDTH))


@pytest.mark.slow
def test_what_a_position_sends_depends_on_its_own_error_only(setting):
  """The Jacobian of dx [n, t, d] in e [m, s, c] is zero off n = m, t = s, for a rule, not for bp.

  The value projection of position 0 serves all later positions, so that backprop sends their errors
  to it; here only weights collect what attention spreads, and inputs are sent their own error.
  """
  plugged, variables, x, e = setting
  own = np.einsum('nm,ts->ntms', np.eye(SAMPLES), np.eye(LENGTH)).astype(bool)
  reaches = lambda model: np.abs(jax.jacobian(
      lambda e: pulled(model, variables, x, e)[1])(e)).max((2, 5)) > 1e-12
  np.testing.assert_array_equal(reaches(plugged), own)
  past = np.einsum('nm,ts->ntms', np.eye(SAMPLES), np.triu(np.ones((LENGTH, LENGTH))))
  np.testing.assert_array_equal(reaches(Attender()), past.astype(bool))
