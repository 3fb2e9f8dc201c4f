"""examples/mnist: an NNX network with BatchNorm and Dropout, which holds its own state."""
import inspect
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from flax import nnx

import bioprop

DRAW = np.random.RandomState(0)
BATCH = {'image': DRAW.randn(3, 28, 28, 1).astype(np.float32), 'label': np.array([0, 3, 7])}
LAYERS = ('conv1', 'conv2', 'linear1', 'linear2')


@pytest.fixture(scope='module')
def train(program):
  """Their train.py, with our diff."""
  return program('mnist', 'main', patched=True).train


def start(train, rule):
  """Their model, with the line that docs/pages/use.md adds."""
  flags.FLAGS.rule = rule
  model = train.CNN(rngs=nnx.Rngs(0))
  return bioprop.flags.plug(model, jax.numpy.ones((1, 28, 28, 1)), nnx.Rngs(0))


def gradient(train, model, steps=1):
  """What their train step hands to their optimiser, whose momentum begins with it."""
  config = flags.FLAGS.config
  optimizer = nnx.Optimizer(
      model, optax.sgd(config.learning_rate, config.momentum), wrt=nnx.Param)
  metrics = nnx.MultiMetric(
      accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average('loss'))
  model.train()
  rngs = nnx.Rngs(0)
  train.train_step(model, optimizer, metrics, BATCH, rngs)
  found = jax.device_get(nnx.to_pure_dict(optimizer.opt_state[0].trace))
  for _ in range(steps - 1):
    train.train_step(model, optimizer, metrics, BATCH, rngs)
  return found


def backward_weights(rule, model):
  """B of each layer, by the shape of its kernel; of dfa, the matrix of the error."""
  found = {}
  for name in LAYERS:
    layer, own = getattr(model, name), vars(model).get('bioprop_feedback', {}).get(name)
    w = layer.kernel[...]
    rms = jnp.sqrt(jnp.mean(w**2))
    if rule == 'usf':
      b = jnp.sign(w) * rms
    elif rule == 'brsf':  # The key that the step will draw; a copy's stream counts for itself.
      key = jax.random.fold_in(nnx.clone(model).bioprop_stream(),
                               zlib.crc32(f'{name}/kernel:0'.encode()))
      m = jax.random.normal(jax.random.fold_in(key, zlib.crc32(b'kernel')), w.shape)
      b = jnp.sign(w) * rms * jnp.abs(m)
    elif rule == 'frsf':
      b = jnp.sign(w) * own['kernel'][...]
    elif rule in ('fa', 'kp'):
      b = (layer.feedback_kernel if rule == 'kp' else own['kernel'])[...]
    else:
      b = own['error'][...] if rule == 'dfa' else None
    found[w.shape] = b
  return found


def error(train):
  """(softmax(logits) - one_hot) / n, of the plain model."""
  model = train.CNN(rngs=nnx.Rngs(0))
  model.train()
  logits = nnx.jit(type(model).__call__)(model, BATCH['image'], nnx.Rngs(0))
  return (jax.nn.softmax(logits) - jax.nn.one_hot(BATCH['label'], 10)) / 3


def defined(layer, method, rule, b, e, tools):
  """A layer's call by the rule's definition, in place of Flax's own."""
  stop, receiving = jax.lax.stop_gradient, tools.definition.receiving

  def call(self, x):
    own = b[self.kernel.shape]
    if rule == 'dfa':
      return method(self, receiving(x, (e @ own).reshape(x.shape)))
    if rule == 'hebb':
      y = method(self, receiving(x, jnp.zeros_like(x)))
      if self.kernel.shape == (256, 10):
        return y
      # conv1 and linear1 go into dropout, which divides before it masks; conv2 into a norm.
      phi = y if self.kernel.shape == (3, 3, 32, 64) else y / (1 - 0.025)
      squares = jnp.sum((3 * e)**2, -1).reshape((3,) + (1,) * (y.ndim - 1))
      return receiving(y, stop(-squares * phi / 3))
    sent = (lambda x: x @ own) if layer is nnx.Linear else (
        lambda x: jax.lax.conv_general_dilated(
            x, own, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')))
    return method(self, stop(x)) + (sent(x) - stop(sent(x)))

  return call


def test_the_line_of_these_tests_is_the_documents(train):
  """Theirs stands in the middle of the loop, where no test can call it alone."""
  line = 'model = bioprop.flags.plug(model, jax.numpy.ones((1, 28, 28, 1)), nnx.Rngs(0))'
  assert line in inspect.getsource(train.train_and_evaluate)
  assert line.replace('model = ', 'return ') in inspect.getsource(start)


@pytest.mark.slow
def test_every_parameter_is_covered(train):
  model = train.CNN(rngs=nnx.Rngs(0))
  report = bioprop.describe(model, 'fa', jnp.ones((1, 28, 28, 1)), nnx.Rngs(0))
  rules = {row.path: row.rule for row in report}
  paths = {'/'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
  assert set(rules) == paths
  assert all(rule == ('local' if 'norm' in path else 'fa') for path, rule in rules.items())


@pytest.mark.slow
def test_symmetric_feedback_is_backprop(train, tools):
  plain, model = start(train, 'bp'), start(train, 'fa')
  for name in LAYERS:
    model.bioprop_feedback[name]['kernel'][...] = getattr(model, name).kernel[...]
  tools.close(gradient(train, model), gradient(train, plain))


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['fa', 'dfa', 'kp', 'usf', 'brsf', 'frsf', 'hebb'])
def test_rule(train, tools, monkeypatch, rule):
  """Finite, what the definition says of every layer, and traced once."""
  model = start(train, rule)
  b = backward_weights(rule, model)
  counted = tools.counted(train.loss_fn)
  monkeypatch.setattr(train, 'loss_fn', counted)
  got = gradient(train, model, steps=2)
  assert counted.traces == 1 and tools.finite(got)
  for name in LAYERS:
    if 'feedback_kernel' in got[name]:  # Kolen-Pollack's learns.
      np.testing.assert_array_equal(got[name].pop('feedback_kernel'), got[name]['kernel'])
  e = error(train) if rule in ('dfa', 'hebb') else None
  for layer in (nnx.Conv, nnx.Linear):
    monkeypatch.setattr(
        layer, '__call__', defined(layer, layer.__call__, rule, b, e, tools))
  tools.close(got, gradient(train, start(train, 'bp')))


class Stop(Exception):
  """Training is over, and the export begins, for which TensorFlow is needed."""


@pytest.mark.slow
def test_their_loop(train, monkeypatch):
  """train_and_evaluate itself, on data of ours, up to the export."""
  scalars = {}

  class Writer:
    """In place of TensorBoard."""

    def hparams(self, config):
      del config

    def scalar(self, name, value, step):
      del step
      scalars[flags.FLAGS.rule, name] = float(value)

    def flush(self):
      raise Stop

  data = types.SimpleNamespace(as_numpy_iterator=lambda: iter([BATCH] * 2))
  monkeypatch.setattr(train, 'get_datasets', lambda config: (data, data))
  monkeypatch.setattr(train, 'tensorboard', types.SimpleNamespace(
      SummaryWriter=lambda workdir: Writer()))
  config = flags.FLAGS.config.copy_and_resolve_references()
  config.num_epochs = 1
  for flags.FLAGS.rule in ('bp', 'fa', 'dfa'):
    with pytest.raises(Stop):
      train.train_and_evaluate(config, '.')
  losses = [scalars[rule, 'test_loss'] for rule in ('bp', 'fa', 'dfa')]
  assert np.all(np.isfinite(losses)) and len(set(losses)) == 3
