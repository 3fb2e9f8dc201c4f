"""A plain recurrent network."""
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bioprop.models.cells import FLAX, LeakyCell, LinearCell, VectorCell
from bioprop.models.parametrization import Parametrization

# What each cell takes; Flax's own take nothing.
_OPTIONS = {
    'simple': ('activation', 'parametrization', 'gamma0', 'use_bias'),
    'leaky': ('activation', 'tau', 'gain', 'use_bias'),
    'linear': ('gain', 'use_bias'),
    **{name: () for name in FLAX},
}


class RNN(nn.Module):
  """One recurrent layer, and a readout of every step.

  Its cell is one of

    simple  s_t = phi(W_in x_t + W_rec s_{t-1} + b)
    leaky   s_t = (1 - 1 / tau) s_{t-1} + phi(W_in x_t + W_rec s_{t-1} + b) / tau
    linear  s_t = W_in x_t + W_rec s_{t-1} + b

  or Flax's gru, lstm, mgu, optimized_lstm or simple_flax; y_t = W_out s_t + b_out. The simple one
  has 1 / sqrt(fan-in) before each product in 'ntk' and 'mup': the network of Boopathy & Fiete
  (2022, arXiv 2106.08453), who train the first state too.

  Attributes:
    classes: width of the readout.
    width: of the state.
    activation: name of a function in `flax.linen` ('tanh', 'relu', ...), or a callable; None is
      relu in the simple cell, and tanh in the leaky one.
    parametrization: 'standard', 'ntk' or 'mup'; see bioprop/models/parametrization.py.
    gamma0: richness, in 'ntk' and 'mup'.
    cell: name of the cell.
    tau: time constant of the leaky cell, in steps; None is 10.
    gain: of the leaky and the linear cell, W_rec ~ N(0, gain^2 / width); None is 1.
    use_bias: whether our cells and the readout have biases.
    initial_state: what every number of the first state is.
    readout_scale: W_out is uniform between plus and minus this over sqrt(width); None is Flax's
      own (LeCun), or that of the parametrization.
  """
  classes: int = 10
  width: int = 128
  activation: str | Callable[[jax.Array], jax.Array] | None = None
  parametrization: str = 'standard'
  gamma0: float = 1.0
  cell: str = 'simple'
  tau: float | None = None
  gain: float | None = None
  use_bias: bool = True
  initial_state: float = 0.0
  readout_scale: float | None = None

  @property
  def learning_rate_factor(self) -> float:
    """What learning rates are to be multiplied by."""
    return Parametrization(self.parametrization, self.gamma0).learning_rate_factor(self.width)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps x [n, T] or [n, T, c], numbers at each time, to outputs [n, T, classes].

    Raises:
      ValueError: if x has other axes, there is no such cell, or it does not take an option.
    """
    del train  # The same in training and evaluation.
    self._check()
    how = Parametrization(self.parametrization, self.gamma0)
    if x.ndim not in (2, 3):
      raise ValueError(f'the rnn reads sequences [n, T] or [n, T, c], and was given {x.shape}.')
    x = x if x.ndim == 3 else x[..., None]
    wide = jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).bits >= 32
    x = x if wide else x.astype(jnp.float32)  # The parameters' own type.
    cell = self._cell(how)
    first = jax.tree.map(lambda carry: jnp.full(carry.shape, self.initial_state, x.dtype),
                         cell.initialize_carry(jax.random.key(0), (len(x), x.shape[2])))
    states = nn.RNN(cell)(x, initial_carry=first)
    if self.readout_scale is None:
      return how.readout(states, self.classes, self.use_bias)
    init = nn.initializers.variance_scaling(self.readout_scale**2 / 3, 'fan_in', 'uniform')
    return nn.Dense(self.classes, self.use_bias, kernel_init=init, name='Dense_0')(states)

  @nn.nowrap
  def _cell(self, how):
    activation = self.activation or ('tanh' if self.cell == 'leaky' else 'relu')
    phi = getattr(nn, activation) if isinstance(activation, str) else activation
    gain = 1.0 if self.gain is None else self.gain
    if self.cell == 'simple':
      return _Cell(self.width, phi, how, self.use_bias)
    if self.cell == 'leaky':
      tau = 10.0 if self.tau is None else self.tau
      return LeakyCell(self.width, tau, gain, self.use_bias, phi)
    if self.cell == 'linear':
      return LinearCell(self.width, gain, self.use_bias)
    return FLAX[self.cell](self.width)

  @nn.nowrap
  def _check(self):
    """Raises ValueError where an option has no meaning, in place of ignoring it."""
    if self.cell not in _OPTIONS:
      raise ValueError(f'there is no cell {self.cell!r}. Valid: {", ".join(_OPTIONS)}.')
    given = {'activation': self.activation is not None, 'tau': self.tau is not None,
             'gain': self.gain is not None, 'parametrization': self.parametrization != 'standard'}
    for option in given:
      if given[option] and option not in _OPTIONS[self.cell]:
        takes = ', '.join(_OPTIONS[self.cell]) or 'none'
        raise ValueError(f'the cell {self.cell!r} has no {option}, which is '
                         f'{getattr(self, option)!r}: leave it out (of these options it takes: '
                         f'{takes}).')
    if self.readout_scale is not None and self.parametrization != 'standard':
      raise ValueError(f'readout_scale={self.readout_scale} has no meaning in the parametrization '
                       f'{self.parametrization!r}, which sets the scale: leave one of them out.')


class _Cell(VectorCell):
  """One step of the recurrent layer."""
  phi: Callable[[jax.Array], jax.Array]
  how: Parametrization
  use_bias: bool = True

  @nn.compact
  def __call__(self, state, x):
    driven = self.how.dense(x, self.features, self.use_bias, name='input')
    heard = self.how.dense(state, self.features, use_bias=False, name='recurrent')
    state = self.phi(driven + heard)
    return state, state
