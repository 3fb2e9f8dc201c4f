"""Conserved quantities: networks are trained by NumPy alone, and through the library."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.errors import MeasureError
from bioprop.measure import invariants
from bioprop.models import MLP

pytestmark = pytest.mark.usefixtures('x64')

SIZES = (5, 8, 7, 6, 3)
RATES = (1.0, 0.5, 2.0, 0.25)
# phi, its derivative at h, and its degree.
UNITS = {
    'linear': (lambda h: h, np.ones_like, 1),
    'relu': (lambda h: np.maximum(h, 0), lambda h: 1.0 * (h > 0), 1),
    'leaky': (lambda h: np.where(h > 0, h, 0.2 * h), lambda h: np.where(h > 0, 1, 0.2), 1),
    'relu2': (lambda h: np.maximum(h, 0)**2, lambda h: 2 * np.maximum(h, 0), 2),
    'tanh': (np.tanh, lambda h: 1 - np.tanh(h)**2, 1),
}


def softmax(f):
  """Of logits [n, C]."""
  f = np.exp(f - f.max(1, keepdims=True))
  return f / f.sum(1, keepdims=True)


# Derivatives in the output of losses that are means over samples.
ERRORS = {'ce': lambda f, y: (softmax(f) - y) / len(y), 'mse': lambda f, y: (f - y) / len(y)}


def learned(units, loss='ce', rule='fa', eta=0.1, steps=6, rates=(1, 1, 1, 1), batch=12):
  """Trains 4 layers; W, B, b before and after, and what each step added to W and b."""
  phi, slope, _ = UNITS[units]
  rng = np.random.RandomState(0)
  gain = 0.7 if units == 'relu2' else 1.0  # With larger weights activities blow up.
  draw = lambda: [gain * rng.randn(m, n) / np.sqrt(m) for m, n in zip(SIZES, SIZES[1:])]
  x, y = rng.randn(24, SIZES[0]), np.eye(SIZES[-1])[rng.randint(0, SIZES[-1], 24)]
  ws, feedback, bs = draw(), draw(), [rng.randn(n) / 3 for n in SIZES[1:]]
  before, updates = (ws, bs), []
  for step in range(steps):
    chosen = np.arange(batch * step, batch * (step + 1)) % len(x)
    activities, hs = [x[chosen]], []
    for w, b in zip(ws, bs):
      hs.append(activities[-1] @ w + b)
      activities.append(phi(hs[-1]))
    delta = ERRORS[loss](hs[-1], y[chosen])
    us, vs = [], []
    for at in (3, 2, 1, 0):
      us.insert(0, -eta * rates[at] * activities[at].T @ delta)
      vs.insert(0, -eta * rates[at] * delta.sum(0))
      if at:
        back = {'fa': feedback, 'bp': ws}[rule][at]
        delta = slope(hs[at - 1]) * (delta @ back.T)
    ws, bs = [w + u for w, u in zip(ws, us)], [b + v for b, v in zip(bs, vs)]
    updates.append((us, vs))
  return before, (ws, bs), feedback, updates


def law(rule, feedback, **options):
  """Q of (weights, biases) under a rule, and the drift of (updates, bias updates)."""
  if rule == 'fa':
    return (lambda ws, bs: invariants.fa_invariant(ws, feedback, bs, **options),
            lambda us, vs: invariants.discrete_drift(us, vs, **options))
  return (lambda ws, bs: invariants.balance(ws, bs, **options),) * 2


def grown(conserved, before, after):
  """What Q has grown by, layer by layer."""
  return [np.asarray(q - q0) for q, q0 in zip(conserved(*after), conserved(*before))]


def check_identity(conserved, drift, before, after, updates, atol=1e-12):
  """Q has grown by exactly the sum of the steps' drifts, and not by nothing."""
  got = grown(conserved, before, after)
  want = [sum(np.asarray(q) for q in layer) for layer in zip(*(drift(*u) for u in updates))]
  assert len(got) == len(want) == len(before[0]) - 1
  for g, w in zip(got, want):
    assert g.shape == w.shape and np.abs(g).max() > 1e-7
    np.testing.assert_allclose(g, w, rtol=0, atol=atol)


@pytest.mark.parametrize('per_neuron', [False, True])
@pytest.mark.parametrize('rates', [None, RATES], ids=['one rate', 'rates'])
@pytest.mark.parametrize('rule', ['fa', 'bp'])
@pytest.mark.parametrize('loss', ERRORS)
@pytest.mark.parametrize('units', ['linear', 'relu', 'leaky', 'relu2'])
def test_discrete_identity(units, loss, rule, rates, per_neuron):
  """Steps of any size on minibatches, with biases."""
  options = {'degree': UNITS[units][2], 'rates': rates, 'per_neuron': per_neuron}
  before, after, feedback, updates = learned(units, loss, rule, rates=rates or (1,) * 4)
  check_identity(*law(rule, feedback, **options), before, after, updates)
  for q, n in zip(law(rule, feedback, **options)[0](*before), SIZES[1:]):
    assert q.shape == ((n,) if per_neuron else ())


@pytest.mark.parametrize('rule', ['fa', 'bp'])
@pytest.mark.parametrize('units', ['linear', 'relu', 'leaky', 'relu2'])
def test_gradient_flow_conserves(units, rule):
  """Over the same time the drift falls with the learning rate, each neuron's and their sum."""
  drifts = []
  for eta, steps in ((2e-2, 100), (2e-3, 1000)):
    before, after, feedback, _ = learned(units, 'ce', rule, eta, steps, RATES, batch=24)
    assert min(np.linalg.norm(w - w0) for w, w0 in zip(after[0], before[0])) > 4e-3
    totals, neurons = (
        grown(law(rule, feedback, degree=UNITS[units][2], rates=RATES, per_neuron=each)[0],
              before, after) for each in (False, True))
    drifts.append([np.abs(q).max() for q in totals + neurons])
  ratios = np.divide(*drifts)
  assert ratios.min() > 9.5 and ratios.max() < 10.5, ratios
  assert max(drifts[1]) < 2e-3


@pytest.mark.parametrize('rule', ['fa', 'bp'])
def test_tanh_is_not_conserved(rule):
  """The drift is there however small the learning rate is."""
  drifts = []
  for eta, steps in ((2e-2, 100), (2e-3, 1000)):
    before, after, feedback, _ = learned('tanh', 'ce', rule, eta, steps, batch=24)
    drifts.append(np.abs(grown(law(rule, feedback)[0], before, after)).max())
  assert drifts[1] > 0.02 and 0.8 < drifts[0] / drifts[1] < 1.2, drifts


class Convolutions(nn.Module):
  """Two convolutions, pooling, positions that are flattened into a dense layer's inputs."""

  @nn.compact
  def __call__(self, x):
    x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
    x = nn.max_pool(nn.relu(nn.Conv(5, (2, 2))(x)), (2, 1), (2, 1))
    x = nn.relu(nn.Dense(6)(x.reshape(x.shape[0], -1)))
    return nn.Dense(3, use_bias=False)(x)


MODELS = {
    'mlp': lambda: (MLP(classes=3, hidden=(8, 6), activation='relu'), (7,)),
    'mup': lambda: (MLP(classes=3, hidden=(8, 6), activation='relu', parametrization='mup'), (7,)),
    'convolutions': lambda: (Convolutions(), (8, 6, 2)),
}


def through_library(name, rule, steps=4):
  """Trains a model under a rule; (W, b) before and after, updates, and its feedback by layer."""
  model, shape = MODELS[name]()
  eta = 0.1 * getattr(model, 'learning_rate_factor', 1.0)
  plugged = bioprop.plug(model, rule)
  rng = np.random.RandomState(1)
  with jax.numpy_dtype_promotion('standard'):  # Pooling divides by an integer.
    variables = jax.jit(plugged.init)(jax.random.key(2), jnp.ones((1, *shape), jnp.float32))
  variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
  params, feedback = variables['params'], variables.get('feedback', {})

  @jax.jit
  def update(params, x, y):
    logits = lambda p: plugged.apply({**variables, 'params': p}, x)
    loss = lambda p: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits(p)), 1))
    return jax.tree.map(lambda g: -eta * g, jax.grad(loss)(params))

  chain = lambda tree: tuple([tree[layer].get(kind) for layer in sorted(tree)]
                             for kind in ('kernel', 'bias'))
  before, updates = chain(params), []
  for _ in range(steps):
    with jax.numpy_dtype_promotion('standard'):
      step = update(params, rng.randn(6, *shape), np.eye(3)[rng.randint(0, 3, 6)])
    params = jax.tree.map(jnp.add, params, step)
    updates.append(chain(step))
  return before, chain(params), updates, [feedback[layer] for layer in sorted(feedback)]


@pytest.mark.slow
@pytest.mark.parametrize('name, rule', [
    ('mlp', 'fa'), ('mlp', 'align_prop'), ('mlp', 'bp'), ('mup', 'fa'), ('convolutions', 'fa'),
    ('convolutions', 'bp')])
def test_rules_of_the_library(name, rule):
  """The identity; channels have shares of their own where positions are pooled and flattened."""
  options = {'scale': 1.0} if rule == 'fa' else {}
  before, after, updates, feedback = through_library(name, bioprop.make(rule, **options))
  feedback = [layer['kernel'] for layer in feedback]
  for per_neuron in (False, True):
    conserved, drift = law('bp' if rule == 'bp' else 'fa', feedback, per_neuron=per_neuron)
    check_identity(conserved, drift, before, after, updates)


def test_direct_feedback_alignment():
  """The last hidden layer has the invariant, with the transpose of the readout's feedback."""
  before, after, updates, feedback = through_library('mlp', bioprop.make('dfa', scale=1.0))
  last = lambda part: tuple(p[-2:] for p in part)
  for per_neuron in (False, True):
    laws = law('fa', [None, feedback[-1]['error'].T], per_neuron=per_neuron)
    check_identity(*laws, last(before), last(after), [last(u) for u in updates])


@pytest.mark.parametrize('per_neuron', [False, True])
def test_values(per_neuron):
  """Written out for two channels, whose two positions are the four inputs of the next layer."""
  w1, b1 = np.array([[[1.0, 2.0]], [[3.0, 4.0]]]), np.array([5.0, 6.0])
  w2, b2 = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[1.0], [10.0], [100.0], [1000.0]])
  rates = (0.5, 0.25)
  own = np.array([1 + 9 + 25, 4 + 16 + 36]) / (2 * 2 * 0.5)
  expected = {
      'fa': own - np.array([1 + 300, 20 + 4000]) / 0.25,
      'bp': own - np.array([1 + 9, 4 + 16]) / 2 / 0.25,
      'drift': own,
  }
  options = {'degree': 2, 'per_neuron': per_neuron, 'rates': rates}
  got = {
      'fa': invariants.fa_invariant([w1, w2], [None, b2], [b1, None], **options),
      'bp': invariants.balance([w1, w2], [b1, None], **options),
      'drift': invariants.discrete_drift([w1, w2], [b1, None], **options),
  }
  for name, want in expected.items():
    (value,) = got[name]
    np.testing.assert_allclose(value, want if per_neuron else want.sum(), rtol=1e-14)
  compiled = jax.jit(lambda ws, b: invariants.fa_invariant(ws, [None, b], [b1, None], **options))
  np.testing.assert_allclose(compiled([w1, w2], b2), got['fa'], rtol=1e-14)


def test_grouped_convolutions():
  """Their inputs are fewer than the channels: the sum is there, shares of channels are not."""
  ws = [np.ones((3, 3, 2, 8)), np.ones((3, 3, 4, 6))]
  (q,) = invariants.balance(ws)
  assert q == (144 - 216) / 2
  with pytest.raises(MeasureError, match='8 outputs.*4 inputs.*per_neuron=False'):
    invariants.balance(ws, per_neuron=True)


@pytest.mark.parametrize('arguments, match', [
    (([np.ones((2, 3))], [None]), 'two or more arrays'),
    (([np.ones(2), np.ones((3, 4))], [None, np.ones((3, 4))]), 'two or more arrays'),
    (([np.ones((3, 2)), np.ones((5, 3))], [None, np.ones((5, 3))]), r'PyTorch\'s, w\.T'),
    (([np.ones((2, 3)), np.ones((3, 4))], [np.ones((3, 4))]), r'\[None, B_2'),
    (([np.ones((2, 3)), np.ones((3, 4))], [None, None]), r'\[None, B_2'),
    (([np.ones((2, 3)), np.ones((3, 4))], [None, np.ones((4, 3))]), r'B\.T'),
    (([np.ones((2, 3)), np.ones((3, 4))], [None, np.ones((3, 4))], [np.ones(3)]), '1 biases'),
    (([np.ones((2, 3)), np.ones((3, 4))], [None, np.ones((3, 4))], [np.ones(2), None]),
     r'shape \(2,\).*\(3,\)'),
    (([np.ones((2, 3)), np.ones((3, 4))], [None, np.ones((3, 4))], None, 1, False, [1.0]),
     '1 rates were given for 2'),
], ids=range(9))
def test_what_cannot_be_measured(arguments, match):
  """Shapes that are not a chain's, or not its feedback's."""
  with pytest.raises(MeasureError, match=match):
    invariants.fa_invariant(*arguments)
