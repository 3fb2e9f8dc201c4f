r"""How a network's scale depends on its width: where 1 / sqrt(fan-in) stands, and how rich it is.

  standard   y = W a + b, W ~ N(0, 1/n)          as Flax initialises (LeCun)
  ntk        y = W a / sqrt(n) + b, W ~ N(0, 1)  and the readout divided by gamma = gamma_0
  mup        as ntk                              with gamma = gamma_0 sqrt(N)

n is the fan-in of a layer, N that of the readout. Under gradient flow at the learning rate
eta gamma^2 (`learning_rate_factor`), the output moves at a speed that depends neither on gamma_0
nor, in wide networks, on N. In `ntk` (Jacot, Gabriel & Hongler 2018, arXiv 1806.07572) features
move by O(gamma_0 / sqrt(N)): wide networks are lazy. In `mup` (the mean-field or maximal-update
scale; Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 1; Yang & Hu 2021, arXiv 2011.14522)
they move by O(gamma_0) at every width, and gamma_0 sets the richness.
"""
import dataclasses
import math

import flax.linen as nn
import jax

NAMES = ('standard', 'ntk', 'mup')


@dataclasses.dataclass(frozen=True)
class Parametrization:
  """The scale of a network's layers.

  Attributes:
    name: 'standard', 'ntk' or 'mup'.
    gamma0: richness; 1 in 'standard'.

  Raises:
    ValueError: if there is no such parametrization, or gamma0 is not positive or has no meaning.
  """
  name: str
  gamma0: float = 1.0

  def __post_init__(self):
    if self.name not in NAMES:
      raise ValueError(f'parametrization={self.name!r} is none of {", ".join(NAMES)}: type for '
                       f'instance parametrization=\'ntk\'.')
    if not 0 < self.gamma0 < math.inf:
      raise ValueError(f'gamma0={self.gamma0} must be positive and finite: it divides the output.')
    if self.name == 'standard' and self.gamma0 != 1:
      raise ValueError(f'gamma0={self.gamma0} has no meaning in the standard parametrization: '
                       f'type parametrization=\'mup\' (or \'ntk\') beside it.')

  def dense(self, x: jax.Array, features: int, use_bias: bool = True,
            name: str | None = None) -> jax.Array:
    """A layer [..., n] -> [..., features]; to be called in a module's compact method."""
    layer = nn.Dense(features, use_bias=use_bias, name=name, **self._init())
    return layer(self._scaled(x, x.shape[-1]))

  def conv(self, x: jax.Array, features: int, size: tuple[int, ...], strides: int = 1,
           use_bias: bool = True) -> jax.Array:
    """A padded convolution [n, h, w, c] -> [n, h / strides, w / strides, features]; as `dense`."""
    layer = nn.Conv(features, size, strides=strides, use_bias=use_bias, **self._init())
    return layer(self._scaled(x, math.prod(size) * x.shape[-1]))

  def readout(self, x: jax.Array, classes: int, use_bias: bool = True) -> jax.Array:
    """The last layer [..., N] -> [..., classes], divided by gamma; as `dense`."""
    y = self.dense(x, classes, use_bias)
    return y if self.name == 'standard' else y / self._gamma(x.shape[-1])

  def learning_rate_factor(self, width: int) -> float:
    """gamma^2, by which learning rates are to be multiplied; `width` is the readout's fan-in."""
    return 1.0 if self.name == 'standard' else self._gamma(width)**2

  def _gamma(self, width: int) -> float:
    return self.gamma0 * (math.sqrt(width) if self.name == 'mup' else 1.0)

  def _init(self):
    return {} if self.name == 'standard' else {'kernel_init': nn.initializers.normal(1.0)}

  def _scaled(self, x, fan_in):
    return x if self.name == 'standard' else x / math.sqrt(fan_in)
