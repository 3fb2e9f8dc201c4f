r"""Nonlinearities, and their expectations over Gaussian arguments.

The theory of wide networks needs of a nonlinearity phi its values, its derivatives, and

  dual(aa, ab, bb) = E phi(u) phi(v) ,   dual_derivative(aa, ab, bb) = E phi'(u) phi'(v) ,
  mean(aa) = E phi(u) ,                  mean_derivative(aa) = E phi'(u) ,

u and v normal with mean 0, variances aa and bb, and covariance ab. Where these have closed forms
they are exact, also where u = v, u = -v, or a variance is 0; `Quadrature` computes them for any
other function that is smooth, and `Piecewise` for what is smooth between some places.
"""
import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from bioprop.errors import TheoryError
from bioprop.theory import parts
from bioprop.theory.hermite import correlation
from bioprop.theory.parts import NODES, Parts
from bioprop.typing import Array

Function = Callable[[Array], Array]
Kinks = tuple[tuple[float, float], ...]


class Activation(abc.ABC):
  """A nonlinearity, applied to each entry of an array.

  Attributes:
    kinks: the places where the derivative jumps, each with the size of the jump: phi'' is `second`
      and, at each place, the jump times a delta function.
  """
  kinks: Kinks = ()

  @abc.abstractmethod
  def __call__(self, h: Array) -> Array:
    """phi(h)."""

  @abc.abstractmethod
  def derivative(self, h: Array) -> Array:
    """phi'(h); at a kink the mean of both sides."""

  @abc.abstractmethod
  def second(self, h: Array) -> Array:
    """phi''(h) between the kinks."""

  @property
  def parts(self) -> Parts:
    """phi, as sums and closed forms take it."""
    return Parts(self)

  @property
  def slopes(self) -> Parts:
    """phi', likewise."""
    return Parts(self.derivative)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    """E phi(u) phi(v); covariances of one rank, whose shapes broadcast: [n, 1], [n, m], [1, m]."""
    return parts.product(self.parts, self.parts, aa, ab, bb)

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    """E phi'(u) phi'(v); as `dual`. At a jump of phi, phi' is what it is beside it."""
    return parts.product(self.slopes, self.slopes, aa, ab, bb)

  def mean(self, aa: Array) -> Array:
    """E phi(u), at each variance of an array."""
    return parts.mean(self.parts, aa)

  def mean_derivative(self, aa: Array) -> Array:
    """E phi'(u); as `mean`."""
    return parts.mean(self.slopes, aa)

  def cross(self, other: 'Activation', aa: Array, ab: Array, bb: Array) -> Array:
    """E phi(u) psi(v), psi the other nonlinearity; as `dual`."""
    return self.dual(aa, ab, bb) if self == other else parts.product(
        self.parts, other.parts, aa, ab, bb)

  def cross_derivative(self, other: 'Activation', aa: Array, ab: Array, bb: Array) -> Array:
    """E phi'(u) psi'(v); as `cross`."""
    return self.dual_derivative(aa, ab, bb) if self == other else parts.product(
        self.slopes, other.slopes, aa, ab, bb)


def _check_finite(activation: Activation) -> None:
  for field in dataclasses.fields(activation):
    value = getattr(activation, field.name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
      name = type(activation).__name__
      raise TheoryError(f'{name} got {field.name}={value!r}, which is to be a finite number: its '
                        f'expectations are formulas in it. Type {name}({field.name}=1.0).')


@dataclasses.dataclass(frozen=True)
class Linear(Activation):
  """phi(h) = h."""

  def __call__(self, h: Array) -> Array:
    return h

  def derivative(self, h: Array) -> Array:
    return jnp.ones_like(h)

  def second(self, h: Array) -> Array:
    return jnp.zeros_like(h)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    return _everywhere(ab, aa, bb)

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    return jnp.ones_like(_everywhere(ab, aa, bb))

  @property
  def parts(self) -> Parts:
    """With the two terms that there are, so that expectations with others are exact (Stein)."""
    return Parts(self, nodes=2)

  @property
  def slopes(self) -> Parts:
    """Likewise."""
    return Parts(self.derivative, nodes=2)


@dataclasses.dataclass(frozen=True)
class ReLU(Activation):
  r"""phi(h) = scale max(h, slope h): the ReLU, the leaky one, and (slope -1) the absolute value.

  The arc-cosine kernels of Cho & Saul (2009, NeurIPS), whose angle is that of u and v. At scale
  sqrt(2) variances are kept, the choice of Bordelon & Pehlevan (2023, arXiv 2210.02157). The
  derivative's dual falls from its value at u = v as the angle: a relative error eps of the
  covariance moves it by sqrt(eps), 1e-4 in float32 for samples that all but coincide.

  Attributes:
    slope: of the negative side.
    scale: of the whole.
  """
  slope: float = 0.0
  scale: float = 1.0

  def __post_init__(self):
    _check_finite(self)

  @property
  def kinks(self) -> Kinks:
    """One, at 0."""
    return ((0.0, self.scale * (1 - self.slope)),)

  def __call__(self, h: Array) -> Array:
    return self._even * jnp.abs(h) + self._odd * h

  def derivative(self, h: Array) -> Array:
    return self._even * jnp.sign(h) + self._odd

  def second(self, h: Array) -> Array:
    return jnp.zeros_like(h)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    # phi is a sum of |h| and h, and E |u| v = 0.
    c = correlation(aa, ab, bb)
    angular = jnp.sqrt((1 - c) * (1 + c)) + c * jnp.arcsin(c)
    return self._even**2 * 2 / math.pi * jnp.sqrt(aa * bb) * angular + self._odd**2 * ab

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    signs = jnp.arcsin(correlation(aa, ab, bb))
    return self._even**2 * 2 / math.pi * signs + self._odd**2

  @property
  def parts(self) -> Parts:
    """A line and a ramp."""
    return Parts(self, ((0.0, (0.0, 2 * self._even)),), nodes=2)

  @property
  def slopes(self) -> Parts:
    """A constant and a step."""
    return Parts(self.derivative, ((0.0, (2 * self._even,)),), nodes=2)

  def mean(self, aa: Array) -> Array:
    return self._even * jnp.sqrt(2 / math.pi * aa)

  def mean_derivative(self, aa: Array) -> Array:
    return jnp.full_like(aa, self._odd)

  @property
  def _even(self):
    return self.scale * (1 - self.slope) / 2

  @property
  def _odd(self):
    return self.scale * (1 + self.slope) / 2


@dataclasses.dataclass(frozen=True)
class Erf(Activation):
  """phi(h) = erf(h); its dual is that of Williams (1997, NeurIPS, equation 11)."""

  def __call__(self, h: Array) -> Array:
    return jax.lax.erf(h)

  def derivative(self, h: Array) -> Array:
    return 2 / math.sqrt(math.pi) * jnp.exp(-h * h)

  def second(self, h: Array) -> Array:
    return -2 * h * self.derivative(h)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    sine = 2 * ab / jnp.sqrt((1 + 2 * aa) * (1 + 2 * bb))
    return 2 / math.pi * jnp.arcsin(jnp.clip(sine, -1, 1))

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    # The determinant of 1 + 2 times the covariance, which rounding is to leave at least 1.
    rest = jnp.maximum(aa * bb - ab * ab, 0)
    return 4 / math.pi / jnp.sqrt(1 + 2 * aa + 2 * bb + 4 * rest)

  def mean(self, aa: Array) -> Array:
    return jnp.zeros_like(aa)

  def mean_derivative(self, aa: Array) -> Array:
    return 2 / jnp.sqrt(math.pi * (1 + 2 * aa))


@dataclasses.dataclass(frozen=True)
class Sin(Activation):
  """phi(h) = sin(rate h)."""
  rate: float = 1.0

  def __post_init__(self):
    _check_finite(self)

  def __call__(self, h: Array) -> Array:
    return jnp.sin(self.rate * h)

  def derivative(self, h: Array) -> Array:
    return self.rate * jnp.cos(self.rate * h)

  def second(self, h: Array) -> Array:
    return -self.rate**2 * jnp.sin(self.rate * h)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    return _sines(self.rate, aa, ab, bb)

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    return self.rate**2 * _cosines(self.rate, aa, ab, bb)

  def mean(self, aa: Array) -> Array:
    return jnp.zeros_like(aa)

  def mean_derivative(self, aa: Array) -> Array:
    return self.rate * jnp.exp(-self.rate**2 * aa / 2)


@dataclasses.dataclass(frozen=True)
class Cos(Activation):
  """phi(h) = cos(rate h)."""
  rate: float = 1.0

  def __post_init__(self):
    _check_finite(self)

  def __call__(self, h: Array) -> Array:
    return jnp.cos(self.rate * h)

  def derivative(self, h: Array) -> Array:
    return -self.rate * jnp.sin(self.rate * h)

  def second(self, h: Array) -> Array:
    return -self.rate**2 * jnp.cos(self.rate * h)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    return _cosines(self.rate, aa, ab, bb)

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    return self.rate**2 * _sines(self.rate, aa, ab, bb)

  def mean(self, aa: Array) -> Array:
    return jnp.exp(-self.rate**2 * aa / 2)

  def mean_derivative(self, aa: Array) -> Array:
    return jnp.zeros_like(aa)


@dataclasses.dataclass(frozen=True)
class Quadrature(Activation):
  """Any smooth function, its expectations by Hermite series: see bioprop/theory/hermite.py.

  A dual of n and m samples costs n + m evaluations on `nodes` points, if aa is [n, 1] and bb is
  [1, m].

  Errors of both duals, in float64, with the default nodes: below 1e-8 for tanh at variances up to
  4, 1e-12 for softplus, sigmoid, silu and gelu. The closer to the real line a function's
  singularities, in units of the standard deviation, the larger: 1e-4 for tanh at variances of 30;
  of ELU, whose second derivative jumps, 2e-5 and 2e-3. They fall as exp(-sqrt(nodes)) does:
  `lazy_kernels` chooses the nodes for functions that it is given.

  Attributes:
    function: phi, a JAX function that acts on each entry of an array.
    nodes: the points of the rule, and the terms of the series, from 2 to 1280.

  Raises:
    TheoryError: if there are too many nodes, or too few.
  """
  function: Function
  nodes: int = NODES
  _MOST: ClassVar[int] = 1280

  def __post_init__(self):
    if type(self.nodes) is not int or not 2 <= self.nodes <= self._MOST:
      raise TheoryError(
          f'Quadrature got nodes={self.nodes!r}, which is to be a whole number from 2 to '
          f'{self._MOST}: beyond, its tables are too large. Type Quadrature(function) for the '
          f'default.')

  def __call__(self, h: Array) -> Array:
    return self.function(h)

  def derivative(self, h: Array) -> Array:
    return jax.jvp(self.function, (h,), (jnp.ones_like(h),))[1]

  def second(self, h: Array) -> Array:
    return jax.jvp(self.derivative, (h,), (jnp.ones_like(h),))[1]

  @property
  def parts(self) -> Parts:
    """With as many terms as there are nodes."""
    return Parts(self.function, nodes=self.nodes)

  @property
  def slopes(self) -> Parts:
    """Likewise."""
    return Parts(self.derivative, nodes=self.nodes)


def _everywhere(ab: Array, aa: Array, bb: Array) -> Array:
  return jnp.broadcast_to(ab, jnp.broadcast_shapes(aa.shape, ab.shape, bb.shape))


def _cosines(rate: float, aa: Array, ab: Array, bb: Array) -> Array:
  """E cos(rate u) cos(rate v), without the cosh that would overflow."""
  exponent = lambda sign: -rate**2 * (aa + bb + sign * 2 * ab) / 2
  return (jnp.exp(exponent(-1)) + jnp.exp(exponent(1))) / 2


def _sines(rate: float, aa: Array, ab: Array, bb: Array) -> Array:
  """E sin(rate u) sin(rate v), to relative accuracy also where it is small."""
  size = jnp.abs(ab)
  largest = jnp.exp(-rate**2 * (aa + bb - 2 * size) / 2)
  return jnp.sign(ab) * largest * -jnp.expm1(-2 * rate**2 * size) / 2
