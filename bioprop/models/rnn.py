"""A plain recurrent network."""
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bioprop.models.parametrization import Parametrization


class RNN(nn.Module):
  """One recurrent layer, which begins at zero, and a readout of every step.

    s_t = phi(W_in x_t + W_rec s_{t-1} + b) ,   y_t = W_out s_t + b_out

  with 1 / sqrt(fan-in) before each product in 'ntk' and 'mup': the network of Boopathy & Fiete
  (2022, arXiv 2106.08453), who train the first state too.

  Attributes:
    classes: width of the readout.
    width: of the state.
    activation: name of a function in `flax.linen` ('tanh', 'relu', ...), or a callable.
    parametrization: 'standard', 'ntk' or 'mup'; see bioprop/models/parametrization.py.
    gamma0: richness, in 'ntk' and 'mup'.
  """
  classes: int = 10
  width: int = 128
  activation: str | Callable[[jax.Array], jax.Array] = 'relu'
  parametrization: str = 'standard'
  gamma0: float = 1.0

  @property
  def learning_rate_factor(self) -> float:
    """What learning rates are to be multiplied by."""
    return Parametrization(self.parametrization, self.gamma0).learning_rate_factor(self.width)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps x [n, T] or [n, T, c], numbers at each time, to outputs [n, T, classes].

    Raises:
      ValueError: if x has other axes.
    """
    del train  # The same in training and evaluation.
    phi = getattr(nn, self.activation) if isinstance(self.activation, str) else self.activation
    how = Parametrization(self.parametrization, self.gamma0)
    if x.ndim not in (2, 3):
      raise ValueError(f'the rnn reads sequences [n, T] or [n, T, c], and was given {x.shape}.')
    x = x if x.ndim == 3 else x[..., None]
    wide = jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).bits >= 32
    x = x if wide else x.astype(jnp.float32)  # The parameters' own type.
    first = jnp.zeros((x.shape[0], self.width), x.dtype)
    states = nn.RNN(_Cell(self.width, phi, how))(x, initial_carry=first)
    return how.readout(states, self.classes)


class _Cell(nn.RNNCellBase):
  """One step of the recurrent layer."""
  width: int
  phi: Callable[[jax.Array], jax.Array]
  how: Parametrization

  @nn.compact
  def __call__(self, state, x):
    driven = self.how.dense(x, self.width, name='input')
    state = self.phi(driven + self.how.dense(state, self.width, use_bias=False, name='recurrent'))
    return state, state

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    del rng
    return jnp.zeros((*input_shape[:-1], self.width))

  @property
  def num_feature_axes(self):
    return 1
