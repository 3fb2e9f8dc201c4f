"""Two small networks written three times: in linen, in NNX, and by hand in numpy."""
import types
import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop

F = jnp.float64


class Mlp(nn.Module):
  """Three layers, tanh."""
  phi: Callable = nn.tanh

  @nn.compact
  def __call__(self, x):
    normal = nn.initializers.normal(0.5)
    for name, width in (('first', 6), ('second', 5)):
      x = self.phi(nn.Dense(width, param_dtype=F, bias_init=normal, name=name)(x))
    return nn.Dense(3, param_dtype=F, bias_init=normal, name='last')(x)


class Cnn(nn.Module):
  """A strided, padded convolution, relu, a readout."""

  @nn.compact
  def __call__(self, x):
    normal = nn.initializers.normal(0.5)
    x = nn.Conv(4, (3, 2), strides=(2, 1), padding=((1, 1), (0, 1)), param_dtype=F,
                bias_init=normal, name='first')(x)
    return nn.Dense(3, param_dtype=F, bias_init=normal, name='last')(
        nn.relu(x).reshape((x.shape[0], -1)))


class NnxMlp(nnx.Module):
  """`Mlp` in NNX."""

  def __init__(self, rngs):
    normal = nn.initializers.normal(0.5)
    make = lambda rows, columns: nnx.Linear(
        rows, columns, param_dtype=F, bias_init=normal, rngs=rngs)
    self.first, self.second, self.last = make(4, 6), make(6, 5), make(5, 3)

  def __call__(self, x):
    return self.last(nnx.tanh(self.second(nnx.tanh(self.first(x)))))


class NnxCnn(nnx.Module):
  """`Cnn` in NNX."""

  def __init__(self, rngs):
    normal = nn.initializers.normal(0.5)
    self.first = nnx.Conv(2, 4, (3, 2), strides=(2, 1), padding=((1, 1), (0, 1)), param_dtype=F,
                          bias_init=normal, rngs=rngs)
    self.last = nnx.Linear(60, 3, param_dtype=F, bias_init=normal, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(self.first(x)).reshape((x.shape[0], -1)))


def moved(params):
  """Parameters as they might be some steps after the feedback was made."""
  return jax.tree.map(lambda w: w + 0.2 * jnp.cos(jnp.arange(w.size, dtype=F)).reshape(w.shape),
                      params)


def op_keys(layers, key):
  """What each layer's product draws from, given the key of a call."""
  return {name: None if key is None else jax.random.fold_in(
      key, zlib.crc32(f'{name}/kernel:0'.encode())) for name in layers}


class LinenSide:
  """A linen model under a rule, its parameters moved since its feedback was made.

  Attributes:
    params: the parameters, {layer: {name: array}}.
    stored: the feedback, likewise; where it learns it is among the parameters.
    keys: what each layer's product draws from at a call.
  """

  def __init__(self, model, rule, x):
    self._plugged, self._x = bioprop.plug(model, rule), x
    self._rngs = {'feedback': jax.random.key(11)}
    variables = self._plugged.init(jax.random.key(0), x)
    self.params = moved(variables.pop('params'))
    self._state, self.stored = variables, variables.get('feedback', {})
    self.keys = op_keys(self.params, self._rngs['feedback'])

  def gradients(self, loss_of):
    """Of the parameters and of the input, and the output."""

    def objective(params, x):
      out = self._plugged.apply({'params': params, **self._state}, x, rngs=self._rngs)
      return loss_of(out), out

    grads, out = jax.grad(objective, argnums=(0, 1), has_aux=True)(self.params, self._x)
    return *grads, out


class NnxSide:
  """An NNX model under a rule; attributes as in `LinenSide`."""

  def __init__(self, model, rule, x):
    self._model, self._x = bioprop.plug(model, rule, nnx.Rngs(1), x), x
    nnx.update(model, moved(nnx.state(model, nnx.Param)))
    layers = {name: layer for name, layer in vars(model).items() if isinstance(layer, nnx.Module)}
    arrays = {name: {key: value[...] for key, value in vars(layer).items()
                     if isinstance(value, nnx.Variable)} for name, layer in layers.items()}
    self.params = arrays
    self.stored = nnx.to_pure_dict(nnx.state(model, bioprop.Feedback)).get('bioprop_feedback', {})
    stream = getattr(model, 'bioprop_stream', None)
    self.keys = op_keys(layers, stream and jax.random.fold_in(stream.key[...], stream.count[...]))

  def gradients(self, loss_of):
    """Of the parameters and of the input, and the output."""

    def objective(model, x):
      out = model(x)
      return loss_of(out), out

    (grads, of_x), out = nnx.grad(objective, argnums=(0, 1), has_aux=True)(self._model, self._x)
    return nnx.to_pure_dict(grads), of_x, out


class NumpyDense:
  """y = x W + b."""

  def forward(self, x, w, b):
    return x @ w + b

  def weights(self, x, g):
    return x.T @ g, g.sum(0)

  def send(self, x, g, w):
    return g @ w.T


class NumpyConv:
  """The convolution of `Cnn`, one kernel position at a time."""
  strides, pads = (2, 1), ((1, 1), (0, 1))

  def _windows(self, shape, w):
    rows = (shape[1] + 2 - w[0]) // 2 + 1
    columns = (shape[2] + 1 - w[1]) + 1
    for i in range(w[0]):
      for j in range(w[1]):
        yield i, j, (slice(None), slice(i, i + 2 * rows, 2), slice(j, j + columns))

  def _pad(self, x):
    return np.pad(x, ((0, 0), *self.pads, (0, 0)))

  def forward(self, x, w, b):
    self.kernel, padded = w.shape, self._pad(x)
    parts = [padded[at] @ w[i, j] for i, j, at in self._windows(x.shape, w.shape)]
    return sum(parts) + b

  def weights(self, x, g):
    dw, padded = np.zeros(self.kernel), self._pad(x)
    for i, j, at in self._windows(x.shape, self.kernel):
      dw[i, j] = np.einsum('nhwc,nhwo->co', padded[at], g)
    return dw, g.sum((0, 1, 2))

  def send(self, x, g, w):
    dx = np.zeros_like(self._pad(x))
    for i, j, at in self._windows(x.shape, w.shape):
      dx[at] += g @ w[i, j].T
    return dx[:, 1:1 + x.shape[1], :x.shape[2]]


class NumpyNet:
  """Forward and backward by hand: the rule says how a signal crosses a layer."""

  def __init__(self, layers, phi, slope):
    self.layers, self.phi, self.slope = layers, phi, slope

  def forward(self, params, x):
    self.x, self.h = {}, {}
    for name, layer in self.layers.items():
      self.x[name] = x
      if isinstance(layer, NumpyDense):
        x = x.reshape(len(x), -1)
      self.x[name] = x
      self.h[name] = layer.forward(x, *params[name])
      x = None if name == 'last' else self.phi(self.h[name])
    return self.h['last']

  def chain(self, e, feedback):
    """Sends e down through `feedback` in place of the kernels."""
    return self._down(e, lambda name, g: self.layers[name].send(
        self.x[name], g, feedback[name]))

  def broadcast(self, e, feedback, sent=None):
    """Sends B e to each layer's input, B [outputs, inputs]; or B times something else."""
    signal = e if sent is None else sent
    return self._down(e, lambda name, g: (signal @ feedback[name]).reshape(self.x[name].shape))

  def hebb(self, e, samples, scale):
    """|Delta|^2 phi(h) x^T below the readout; e = -Delta / samples."""
    squares = ((samples * e)**2).sum(1)
    grads = {}
    for name, layer in self.layers.items():
      h = self.h[name]
      post = -scale * squares.reshape((-1,) + (1,) * (h.ndim - 1)) * self.phi(h) / samples
      grads[name] = layer.weights(self.x[name], e if name == 'last' else post)
    return grads, 0.0

  def _down(self, g, send):
    grads, names = {}, list(self.layers)
    for name, below in zip(names[::-1], [*names[-2::-1], None]):
      grads[name] = self.layers[name].weights(self.x[name], g)
      g = send(name, g)
      if below is not None:
        g = g.reshape(self.h[below].shape) * self.slope(self.h[below])
    return grads, g


def _mlp():
  return NumpyNet({name: NumpyDense() for name in ('first', 'second', 'last')},
                  np.tanh, lambda h: 1 - np.tanh(h)**2)


def _cnn():
  return NumpyNet({'first': NumpyConv(), 'last': NumpyDense()},
                  lambda h: np.maximum(h, 0), lambda h: (h > 0) * 1.0)


def _draw(*shape):
  return np.random.RandomState(0).randn(*shape)


@pytest.fixture(params=['linen mlp', 'linen cnn', 'nnx mlp', 'nnx cnn'])
def net(request, x64):
  """A network: `plug(rule)`, its nonlinearity, its numpy twin, an input, one-hot targets."""
  x = jnp.asarray(_draw(7, 4) if 'mlp' in request.param else _draw(7, 6, 5, 2))
  plug = {
      'linen mlp': lambda rule: LinenSide(Mlp(), rule, x),
      'linen cnn': lambda rule: LinenSide(Cnn(), rule, x),
      'nnx mlp': lambda rule: NnxSide(NnxMlp(nnx.Rngs(0)), rule, x),
      'nnx cnn': lambda rule: NnxSide(NnxCnn(nnx.Rngs(0)), rule, x),
  }[request.param]
  return types.SimpleNamespace(
      plug=plug, nonlinearity='tanh' if 'mlp' in request.param else 'relu',
      twin=_mlp() if 'mlp' in request.param else _cnn(), x=x, targets=np.eye(3)[np.arange(7) % 3])


@pytest.fixture
def mlp(x64):
  """A small Flax model and an input, float64."""
  return types.SimpleNamespace(model=Mlp(), x=jnp.asarray(_draw(7, 4)), key=jax.random.key(0))
