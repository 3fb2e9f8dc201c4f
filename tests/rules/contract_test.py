"""Every rule, in linen and NNX, against numpy by hand; a rule without a row fails."""
import copy
import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import errors
from bioprop.rules import OF_TIME

SCALE = 1.5


@dataclasses.dataclass(frozen=True)
class Row:
  """How a rule is checked.

  Attributes:
    options: of the rule.
    backward: maps (numpy net, error, kernels, stored feedback, keys) to (gradients, input's).
    forward: maps (numpy net, parameters, input, stored feedback) to the output.
    nonlinearities: those that the rule acts on.
  """
  options: dict[str, Any]
  backward: Callable[..., Any]
  forward: Callable[..., Any] = lambda net, params, x, stored: net.forward(params, x)
  nonlinearities: tuple[str, ...] = ('tanh', 'relu')


def rms(w):
  """Root mean square."""
  return np.sqrt((w**2).mean())


def chain(feedback):
  """A row's backward: the error goes down through feedback(kernel, stored, key)."""
  return lambda net, e, kernels, stored, keys: net.chain(
      e, {n: feedback(w, stored.get(n, {}), keys[n]) for n, w in kernels.items()})


def redrawn(w, stored, key):
  """sign(W) |M| rms(W), M from the call's key and the parameter's name."""
  m = jax.random.normal(jax.random.fold_in(key, zlib.crc32(b'kernel')), w.shape, jnp.float64)
  return SCALE * np.sign(w) * np.abs(np.asarray(m)) * rms(w)


def frozen(net, e, stored, presynaptic):
  """The initial network's errors, times activities of `presynaptic`: 'now' or 'twin'."""
  twin = copy.copy(net)
  initial = {n: (p['kernel'], p['bias']) for n, p in stored['initial'].items()}
  twin.forward(initial, next(iter(net.x.values())))
  twin.x = net.x if presynaptic == 'now' else twin.x
  return twin.chain(e, {n: w for n, (w, _) in initial.items()})


def kolen_pollack(net, e, kernels, stored, keys):
  """Down through B, which gets the update of W."""
  grads, of_x = net.chain(e, {n: stored[n]['feedback_kernel'] for n in kernels})
  return {n: (kernel, bias, {'feedback_kernel': kernel})
          for n, (kernel, bias) in grads.items()}, of_x


def product(net, e, kernels, stored, keys):
  """Down through R B^T, B a square root of what is kept and R what it makes of the product."""
  b = {n: np.linalg.cholesky(own['gram']) for n, own in stored.items()}
  r = {n: own['feedback_kernel'] @ np.linalg.inv(b[n]).T for n, own in stored.items()}
  grads, of_x = net.chain(e, {n: r[n] @ b[n].T for n in kernels})
  return {n: (kernel, bias, {'feedback_kernel': kernel @ b[n] @ b[n].T})
          for n, (kernel, bias) in grads.items()}, of_x


def direct_kolen_pollack(net, e, kernels, stored, keys):
  """B e, and the update of B is e^T x, sample by sample."""
  grads, of_x = net.broadcast(e, {n: own['feedback_error'] for n, own in stored.items()})
  learned = {n: 0.7 * sum(np.outer(error, x) for error, x in zip(e, net.x[n])) for n in stored}
  return {n: (*own, {'feedback_error': learned[n]}) for n, own in grads.items()}, of_x


def normalised(net, e, kernels, stored, keys):
  """Down through B, as large as the weights are now times the scale."""
  norm = lambda w: np.sqrt((w**2).sum())
  return net.chain(e, {n: SCALE * norm(w) * stored[n]['kernel'] / norm(stored[n]['kernel'])
                       for n, w in kernels.items() if n in stored} | {
                           n: w for n, w in kernels.items() if n not in stored})


def normalised_direct(net, e, kernels, stored, keys):
  """B e, times what the norm of the weights is over what LeCun's variance gives."""
  gain = {n: np.sqrt((w**2).sum() / w.shape[-1]) for n, w in kernels.items()}
  return net.broadcast(e, {n: gain[n] * own['error'] for n, own in stored.items()})


def mirrored(net, e, kernels, stored, keys):
  """Down through B, which moves towards what noise says of W."""
  grads, of_x = net.chain(e, {n: stored[n]['feedback_kernel'] for n in kernels})
  for name, (kernel, bias) in grads.items():
    layer, x = net.layers[name], net.x[name]
    noise = np.asarray(jax.random.normal(keys[name], x.shape, jnp.float64))
    response = layer.forward(noise, kernels[name], 0.0)
    ones = layer.weights(np.ones_like(noise), np.ones_like(response))[0]
    seen = layer.weights(noise, response)[0] / ones
    grads[name] = (kernel, bias, {
        'feedback_kernel': 0.7 * (stored[name]['feedback_kernel'] - seen)})
  return grads, of_x


def gated(net, params, x, stored):
  """Gates from the input on the grid of the convolution, 3 of 6 rows, in place of the ReLU's."""
  weights = np.maximum(0, 1 - np.abs(np.arange(6) - (2 * np.arange(3)[:, None] + 0.5)) / 2)
  weights /= weights.sum(1, keepdims=True)
  gates = np.einsum('ir,nrwc->niwc', weights, x) @ stored['gates']['0'] > 0
  net.phi, net.slope = lambda h: gates * h, lambda h: gates
  return net.forward(params, x)


ROWS = {
    'bp': Row({}, chain(lambda w, stored, key: w)),
    'fa': Row({'rho': 0.5, 'scale': SCALE}, chain(lambda w, stored, key: stored['kernel'])),
    'dfa': Row({'scale': SCALE}, lambda net, e, kernels, stored, keys: net.broadcast(
        e, {n: b['error'] for n, b in stored.items()})),
    'usf': Row({'scale': SCALE}, chain(lambda w, stored, key: SCALE * np.sign(w) * rms(w))),
    'brsf': Row({'scale': SCALE}, chain(redrawn)),
    'frsf': Row({'scale': SCALE}, chain(
        lambda w, stored, key: np.sign(w) * np.abs(stored['kernel']))),
    'kp': Row({'scale': SCALE}, kolen_pollack),
    'dkp': Row({'scale': SCALE, 'rate': 0.7}, direct_kolen_pollack),
    'pfa': Row({'scale': SCALE, 'expansion': 2.0}, product),
    'mirror': Row({'scale': SCALE, 'rate': 0.7}, mirrored),
    'hebb': Row({'scale': SCALE}, lambda net, e, kernels, stored, keys: net.hebb(
        e, len(e), SCALE)),
    'drtp': Row({'scale': SCALE}, lambda net, e, kernels, stored, keys: net.broadcast(
        e, {n: b['error'] for n, b in stored.items()},
        np.where((e == e.min(1, keepdims=True)) & (e < 0), -1, 0) / len(e))),
    'last_layer': Row({}, chain(lambda w, stored, key: 0 * w)),
    'align_prop': Row({}, chain(lambda w, stored, key: stored['kernel'])),
    'align_ada': Row({}, lambda net, e, kernels, stored, keys: frozen(net, e, stored, 'now')),
    'align_zero': Row({}, lambda net, e, kernels, stored, keys: frozen(net, e, stored, 'twin')),
    'gln': Row({}, chain(lambda w, stored, key: w), gated, ('relu',)),
}
OPTIONS = {
    'fa normalised': Row({'rho': 0.5, 'scale': SCALE, 'normalise': 'weights'}, normalised),
    'dfa normalised': Row({'scale': SCALE, 'normalise': 'weights'}, normalised_direct),
}


def cross_entropy(logits, targets):
  """Mean softmax cross-entropy."""
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, -1))


def squares(logits, targets):
  """Mean over samples of half the squared distance."""
  return 0.5 * jnp.mean(jnp.sum((logits - targets)**2, -1))


def softmax(f):
  """Softmax over the last axis."""
  z = np.exp(f - f.max(-1, keepdims=True))
  return z / z.sum(-1, keepdims=True)


LOSSES = {'cross_entropy': (cross_entropy, softmax), 'squares': (squares, lambda f: f)}


def test_every_rule_has_a_row():
  """What is listed neither here nor in time_contract_test.py is not checked: it may not exist."""
  assert set(ROWS) == set(bioprop.RULES) - set(OF_TIME)


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('name', [*ROWS, *OPTIONS])
@pytest.mark.some(3)
def test_gradients_match_numpy(net, name, loss):
  """All parameters' pseudogradients, the input's, and the output; or that the rule refuses."""
  row, (loss_of, predict) = (ROWS | OPTIONS)[name], LOSSES[loss]
  name = name.partition(' ')[0]
  if net.nonlinearity not in row.nonlinearities:
    with pytest.raises(errors.NothingMatchedError, match='looked for jax.nn.relu'):
      net.plug(bioprop.make(name, **row.options))
    return
  side = net.plug(bioprop.make(name, **row.options))
  got, got_x, out = side.gradients(lambda out: loss_of(out, net.targets))

  arrays, stored = jax.tree.map(np.asarray, (side.params, side.stored))
  x = np.asarray(net.x)
  f = row.forward(net.twin, {n: (p['kernel'], p['bias']) for n, p in arrays.items()}, x, stored)
  e = (predict(f) - net.targets) / len(f)
  want, want_x = row.backward(net.twin, e, {n: p['kernel'] for n, p in arrays.items()},
                              {n: {**arrays[n], **stored.get(n, {})} for n in arrays}
                              if bioprop.RULES[name].learns else stored, side.keys)
  close = dict(rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(out, f, **close)
  np.testing.assert_allclose(got_x, np.broadcast_to(want_x, x.shape), **close)
  for layer, (kernel, bias, *learned) in want.items():
    np.testing.assert_allclose(got[layer]['kernel'], kernel, **close)
    np.testing.assert_allclose(got[layer]['bias'], bias, **close)
    for leaf, feedback in (learned[0] if learned else {}).items():
      np.testing.assert_allclose(got[layer][leaf].ravel(), feedback.ravel(), **close)


@pytest.mark.some(2)
def test_the_rules_differ(net):
  """No two rows have the same gradient, so a row that runs another rule would be seen."""
  seen = {}
  for name, row in ROWS.items():
    if net.nonlinearity not in row.nonlinearities:
      continue
    side = net.plug(bioprop.make(name, **row.options))
    grads = side.gradients(lambda out: cross_entropy(out, net.targets))[0]
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
    for other, previous in seen.items():
      assert leaves.shape != previous.shape or np.abs(leaves - previous).max() > 1e-4, (
          f'{name} is {other}')
    seen[name] = leaves
