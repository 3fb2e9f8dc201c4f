"""Cells of recurrent networks: a leaky one and a linear one of ours, and Flax's own, by name."""
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class VectorCell(nn.RNNCellBase):
  """A cell whose state is one vector, which begins at zero.

  Attributes:
    features: width of the state.
  """
  features: int

  @nn.nowrap
  def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
    """The state zero, for inputs of this shape."""
    del rng
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self) -> int:
    """An input is a vector."""
    return 1


class LeakyCell(VectorCell):
  """A leaky unit, of which the tanh network of Murray (2019, eLife 8:e43299) is made.

    u_t = W h_{t-1} + W_in x_t + b ,   h_t = (1 - 1 / tau) h_{t-1} + phi(u_t) / tau

  Attributes:
    features: width of the state.
    tau: time constant in steps, at least 1; at 1 the unit has no leak.
    gain: W ~ N(0, gain^2 / features); beyond 1, activity lasts by itself (1.5 in Murray 2019).
    use_bias: whether there is b.
    activation: phi.
  """
  tau: float = 10.0
  gain: float = 1.0
  use_bias: bool = True
  activation: Callable[[jax.Array], jax.Array] = jnp.tanh

  @nn.compact
  def __call__(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step from h_{t-1} [..., features] and x_t [..., c]; returns h_t twice.

    Raises:
      ValueError: if tau is less than 1, or infinite.
    """
    if not 1 <= self.tau < math.inf:
      raise ValueError(f'tau={self.tau} must be at least 1 and finite: below, a unit forgets more '
                       'than it knows, and without end it learns nothing. Type for instance '
                       'tau=10.')
    rate = 1 / self.tau
    new = self.activation(_driven(self, state, x))
    state = (1 - rate) * state + rate * new
    return state, state


class LinearCell(VectorCell):
  """h_t = W h_{t-1} + B x_t + b: the network of Williams, Payeur & Lajoie (arXiv 2606.00243).

  Attributes:
    features: width of the state.
    gain: W ~ N(0, gain^2 / features), whose spectral radius is about the gain.
    use_bias: whether there is b.
  """
  gain: float = 1.0
  use_bias: bool = True

  @nn.compact
  def __call__(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step from h_{t-1} [..., features] and x_t [..., c]; returns h_t twice."""
    state = _driven(self, state, x)
    return state, state


# Flax's own, which take nothing but their width.
FLAX = {
    'gru': nn.GRUCell,
    'lstm': nn.LSTMCell,
    'mgu': nn.MGUCell,
    'optimized_lstm': nn.OptimizedLSTMCell,
    'simple_flax': nn.SimpleCell,
}


def _driven(cell, state, x):
  """W h + W_in x + b, in layers of the cell."""
  init = nn.initializers.variance_scaling(cell.gain**2, 'fan_in', 'normal')
  driven = nn.Dense(cell.features, cell.use_bias, name='input')(x)
  return driven + nn.Dense(cell.features, False, kernel_init=init, name='recurrent')(state)
