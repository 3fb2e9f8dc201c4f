"""Two small networks written twice: in Flax, and forward and backward by hand in numpy."""
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

F = jnp.float64


class Mlp(nn.Module):
  """Three layers, tanh."""

  @nn.compact
  def __call__(self, x):
    normal = nn.initializers.normal(0.5)
    for name, width in (('first', 6), ('second', 5)):
      x = nn.tanh(nn.Dense(width, param_dtype=F, bias_init=normal, name=name)(x))
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
      x = self.phi(self.h[name])
    return self.h['last']

  def chain(self, e, feedback):
    """Sends e down through `feedback` in place of the kernels."""
    return self._down(e, lambda name, g: self.layers[name].send(
        self.x[name], g, feedback[name]))

  def broadcast(self, e, feedback):
    """Sends B e to each layer's input, B [outputs, inputs]."""
    return self._down(e, lambda name, g: (e @ feedback[name]).reshape(self.x[name].shape))

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


@pytest.fixture(params=['mlp', 'cnn'])
def net(request, x64):
  """The Flax model, its numpy twin, an input, one-hot targets."""
  model, twin, x = {'mlp': (Mlp(), _mlp(), _draw(7, 4)),
                    'cnn': (Cnn(), _cnn(), _draw(7, 6, 5, 2))}[request.param]
  return types.SimpleNamespace(model=model, twin=twin, x=x, targets=np.eye(3)[np.arange(7) % 3])


@pytest.fixture
def mlp(x64):
  """A small Flax model and an input, float64."""
  return types.SimpleNamespace(model=Mlp(), x=jnp.asarray(_draw(7, 4)), key=jax.random.key(0))
