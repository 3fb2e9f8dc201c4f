"""Parametrizations: the same functions on other scales, and the learning rates beside them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.errors import ConfigError
from bioprop.models import CNN, MLP, RNN
from bioprop.models.parametrization import Parametrization
from bioprop.models.resnet import ResNet
from bioprop.training import base
from bioprop.training.trainer import Trainer

MAKERS = {
    'mlp': lambda **how: MLP(hidden=(12, 9), **how),
    'cnn': lambda **how: CNN(width=6, strides=(1, 2), **how),
    'resnet': lambda **how: ResNet(stages=(1, 1), width=4, **how),
    'rnn': lambda **how: RNN(width=7, **how),
}
READOUT = {'mlp': 9, 'cnn': 6, 'resnet': 8, 'rnn': 7}
X = np.random.RandomState(0).randn(5, 6, 6, 3)


def inputs(model):
  """Images, or for a recurrent network their first rows, pixel by pixel."""
  return X[:, 0] if isinstance(model, RNN) else X


def drawn(model):
  """float64 variables, kernels ~ N(0, 1)."""
  with jax.enable_x64(False):  # Of float32, as users have them: the zero state of the RNN is too.
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs(model).astype(np.float32))
  draw = np.random.RandomState(1).randn
  params = jax.tree.map(lambda a: jnp.asarray(draw(*a.shape)), shapes['params'])
  return {**jax.tree.map(lambda a: jnp.ones(a.shape), shapes), 'params': params}


def run(model, variables):
  return model.apply(variables, inputs(model), train=False)


def standard(params):
  """Kernels over the root of their fan-in."""
  return {name: standard(w) if isinstance(w, dict)
          else w / (w.size / w.shape[-1])**0.5 if name == 'kernel' else w
          for name, w in params.items()}


@pytest.mark.slow
@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('how, gamma', [
    ({'parametrization': 'ntk'}, lambda n: 1.0),
    ({'parametrization': 'ntk', 'gamma0': 3.0}, lambda n: 3.0),
    ({'parametrization': 'mup', 'gamma0': 0.5}, lambda n: 0.5 * n**0.5)])
@pytest.mark.usefixtures('x64')
def test_the_same_function_on_another_scale(name, how, gamma):
  """W / sqrt(n) in the standard network, and the output over gamma."""
  model, plain = MAKERS[name](**how), MAKERS[name]()
  variables = drawn(model)
  want = run(plain, {**variables, 'params': standard(variables['params'])})
  g = gamma(READOUT[name])
  np.testing.assert_allclose(run(model, variables), want / g, rtol=1e-10)
  assert model.learning_rate_factor == pytest.approx(g**2)


@pytest.mark.slow
@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.usefixtures('x64')
def test_the_speed_of_the_output_does_not_depend_on_gamma(name):
  """gamma^2 |df/dtheta|^2 is one number for all of them."""

  def speed(**how):
    model = MAKERS[name](**how)
    variables = drawn(model)
    f = lambda params: run(model, {**variables, 'params': params}).sum()
    grads = jax.grad(f)(variables['params'])
    return model.learning_rate_factor * sum(float((g**2).sum()) for g in jax.tree.leaves(grads))

  speeds = [speed(parametrization=kind, gamma0=gamma)
            for kind in ('ntk', 'mup') for gamma in (0.3, 2.0)]
  np.testing.assert_allclose(speeds, speeds[0], rtol=1e-9)


@pytest.mark.slow
def test_initial_outputs_at_two_widths():
  """Of order 1 in ntk, 1 / sqrt(N) in mup."""

  def size(kind, width):
    model = MLP(hidden=(width,), parametrization=kind)
    keys = jax.random.split(jax.random.key(0), 30)
    x = X.astype(np.float32)
    return float(jnp.std(jax.jit(jax.vmap(lambda k: model.init_with_output(k, x)[0]))(keys)))

  assert size('ntk', 64) == pytest.approx(size('ntk', 1024), rel=0.15)
  assert size('mup', 64) == pytest.approx(4 * size('mup', 1024), rel=0.15)


@pytest.mark.parametrize('how, words', [
    ({'parametrization': 'nkt'}, 'standard, ntk, mup'), ({'gamma0': 2.0}, "parametrization='mup'"),
    ({'parametrization': 'mup', 'gamma0': 0.0}, 'positive')])
def test_what_cannot_be(how, words):
  """In Python and on the command line."""
  with pytest.raises(ValueError, match=words):
    Parametrization(how.get('parametrization', 'standard'), how.get('gamma0', 1.0))
  config = base()
  config.update(validation=100)
  config.model_options.update(how)
  with pytest.raises(ConfigError, match=f'{words}.*--config.model_options.gamma0'):
    Trainer(config)


def test_train_multiplies_the_learning_rate():
  """By gamma^2."""
  config = base()
  config.update(validation=100, schedule='constant', learning_rate=0.1)
  config.model_options.update(hidden=(16,), parametrization='mup', gamma0=0.5)
  assert float(Trainer(config).schedule(0)) == pytest.approx(0.1 * 0.25 * 16)


@pytest.mark.slow
def test_the_convolutional_networks_norm():
  """Each location and channel is normalised over the batch: scale and shift are lost."""
  model = CNN(width=6, strides=(1, 2))
  variables = model.init(jax.random.key(0), X.astype(np.float32))
  apply = jax.jit(lambda x: model.apply(variables, x))
  np.testing.assert_allclose(apply(X.astype(np.float32)), apply(3 * X.astype(np.float32) + 2),
                             atol=1e-3)
