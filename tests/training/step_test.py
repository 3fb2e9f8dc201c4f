"""Steps, epochs and evaluation against loops written out by hand."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bioprop.fronts.plug import plug
from bioprop.models import MLP
from bioprop.training import loss, step
from bioprop.training.state import make_init, make_state

EXAMPLES, BATCH = 23, 5


class Noisy(nn.Module):
  """BatchNorm and dropout: everything a step has to carry or draw."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(8)(x.reshape((x.shape[0], -1)))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.Dense(4)(x)


def _data():
  random = np.random.default_rng(0)
  return (random.integers(0, 256, (EXAMPLES, 3, 3, 2), np.uint8),
          random.integers(0, 4, EXAMPLES).astype(np.int32))


def _task(model, tx=None, **values):
  fields = {'model': model, 'tx': tx or optax.sgd(0.1), 'loss': loss.make_loss('cross_entropy'),
                'decide': loss.make_decision(), 'augment': None,
                'mean': np.array([100, 120], np.float32),
                'std': np.array([50, 60], np.float32), 'seed': 3, 'batch_size': BATCH}
  return step.Task(**{**fields, **values})


def _start(task):
  return make_state(make_init(task.model), task.tx, task.key('init'), jnp.zeros((1, 3, 3, 2)))


def _run(task, state, epoch, start=0, length=EXAMPLES // BATCH):
  images, labels = _data()
  data = step.Examples(jnp.asarray(images), jnp.asarray(labels))
  return step.train_steps(task, length, state, data, epoch, start)


@pytest.mark.slow
def test_an_epoch_is_a_loop_of_numpy_steps():
  # One hidden layer, softmax cross-entropy, SGD with momentum: gradients written out in numpy.
  task = _task(plug(MLP(classes=4, hidden=(6,)), 'bp'), optax.sgd(0.1, 0.9))
  state = _start(task)
  layers = ('Dense_0', 'Dense_1')
  w = [[np.asarray(state.params[name][leaf], np.float64) for leaf in ('kernel', 'bias')]
       for name in layers]
  buffers = [[np.zeros_like(leaf) for leaf in layer] for layer in w]
  images, labels = _data()
  x = ((images - np.array([100., 120.])) / np.array([50., 60.])).reshape(EXAMPLES, -1)
  indices = np.asarray(step.batch_indices(task, EXAMPLES, 7))
  losses, correct = [], []
  for index in indices:
    h = np.tanh(x[index] @ w[0][0] + w[0][1])
    z = h @ w[1][0] + w[1][1]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    losses.append(-np.mean(np.log(p[np.arange(BATCH), labels[index]])))
    correct.append((z.argmax(1) == labels[index]).sum())
    e = (p - np.eye(4)[labels[index]]) / BATCH
    d = (e @ w[1][0].T) * (1 - h**2)
    grads = [[x[index].T @ d, d.sum(0)], [h.T @ e, e.sum(0)]]
    for layer in range(2):
      for leaf in range(2):
        buffers[layer][leaf] = 0.9 * buffers[layer][leaf] + grads[layer][leaf]
        w[layer][leaf] = w[layer][leaf] - 0.1 * buffers[layer][leaf]
  state, metrics, finite = _run(task, state, 7)
  np.testing.assert_allclose(metrics.loss, losses, rtol=1e-4)
  np.testing.assert_array_equal(metrics.correct, correct)
  for name, layer in zip(layers, w):
    np.testing.assert_allclose(state.params[name]['kernel'], layer[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.params[name]['bias'], layer[1], rtol=1e-3, atol=1e-5)
  assert int(state.step) == len(indices) and bool(finite)


def test_each_epoch_sees_each_example_at_most_once_in_an_order_of_its_own():
  task = _task(None)
  orders = [np.asarray(step.batch_indices(task, EXAMPLES, epoch)) for epoch in range(3)]
  for order in orders:
    assert order.shape == (4, BATCH)  # 23 = 4 * 5 + 3: the last three are left out.
    assert len(set(order.ravel())) == 20 and set(order.ravel()) <= set(range(EXAMPLES))
  assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
  other = step.batch_indices(_task(None, seed=4), EXAMPLES, 0)
  assert not np.array_equal(orders[0], other)


@pytest.mark.slow
def test_an_epoch_in_parts_is_the_epoch_in_one():
  task = _task(plug(Noisy(), 'fa'))
  whole, metrics, _ = _run(task, _start(task), 2)
  part, first, _ = _run(task, _start(task), 2, 0, 3)
  part, last, _ = _run(task, part, 2, 3, 1)
  np.testing.assert_allclose(metrics.loss, np.concatenate([first.loss, last.loss]), rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, part)


def test_randomness_belongs_to_the_step_and_not_to_what_ran_before():
  task = _task(plug(Noisy(), 'bp'), optax.sgd(0.))
  images, _ = _data()
  state = _start(task)
  draw = lambda number: step.apply_train(
      task, state.params, state.model_state, jnp.asarray(images), jnp.int32(number))[0]
  np.testing.assert_array_equal(draw(3), draw(3))
  assert not np.array_equal(draw(3), draw(4))


@pytest.mark.slow
def test_statistics_move_and_frozen_feedback_does_not():
  task = _task(plug(Noisy(), 'fa'))
  state = _start(task)
  after, _, _ = _run(task, state, 1)
  jax.tree.map(np.testing.assert_array_equal,
               state.model_state['feedback'], after.model_state['feedback'])
  before, moved = (np.asarray(s.model_state['batch_stats']['BatchNorm_0']['mean'])
                   for s in (state, after))
  assert np.all(before == 0) and np.all(moved != 0)


@pytest.mark.parametrize('batch_size', [1, 5, 23, 100])
def test_evaluation_counts_every_example_once(batch_size):
  task = _task(plug(Noisy(), 'bp'))
  state = _start(task)
  images, labels = _data()
  metrics = step.evaluate(task, state, step.in_batches(images, labels, batch_size))
  x = (images - np.array([100, 120], np.float32)) / np.array([50, 60], np.float32)
  logits = np.asarray(Noisy().apply(
      {'params': state.params, **{k: v for k, v in state.model_state.items() if k != 'feedback'}},
      jnp.asarray(x)), np.float64)
  expected = -np.log((np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[
      np.arange(EXAMPLES), labels]).sum()
  assert float(metrics.loss) == pytest.approx(expected, rel=1e-5)
  assert int(metrics.correct) == (logits.argmax(1) == labels).sum()


def test_losses_by_hand():
  logits, labels = jnp.array([[2., 0., -1.], [0., 0., 0.]]), jnp.array([0, 2])
  np.testing.assert_allclose(
      loss.make_loss('mse')(logits, labels), [(1 + 0 + 1) / 2, 1 / 2], rtol=1e-6)
  np.testing.assert_allclose(
      loss.make_loss('cross_entropy')(logits, labels),
      [np.log(np.exp([2, 0, -1]).sum()) - 2, np.log(3)], rtol=1e-6)
