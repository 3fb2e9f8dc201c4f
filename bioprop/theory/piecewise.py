"""Functions that are smooth but at some places, and activations of a scaled or shifted argument."""
import dataclasses
import math

import jax
import jax.numpy as jnp

from bioprop.errors import TheoryError
from bioprop.theory.activations import Activation, Function, Kinks
from bioprop.theory.jumps import Jumps
from bioprop.theory.parts import NODES, Parts
from bioprop.typing import Array


@dataclasses.dataclass(frozen=True)
class Piecewise(Activation):
  """A function that is smooth but at some places; its expectations: see bioprop/theory/parts.py.

  `as_activation` finds the places of a function. In float64, relative to the largest entry, duals
  of piecewise polynomials (relu6, hard_swish), of ELU and SELU and of a smooth function plus a ReLU
  are exact to 1e-8 at variances up to 10; where pieces bend faster, as tanh(h) for h > 0.3, up to
  4. In float32 the error is some 1e-6, and 1e-5 at variances of 10. Where more would be rounding
  they are NaN. Where a variance is 0, u is 0 and phi(0) what the function makes of it.

  Attributes:
    function: phi, a JAX function that acts on each entry of an array.
    jumps: of each place the jumps of phi, phi', phi'', ... there, at least these; the last is taken
      out of phi' alone.
    nodes: the terms of the series for what is smooth, from 2 to 1280.
  """
  function: Function
  jumps: Jumps
  nodes: int = NODES

  def __post_init__(self):
    if any(len(sizes) < 3 for _, sizes in self.jumps):
      raise TheoryError(
          f'Piecewise got jumps={self.jumps!r}, which are to be, of each place, those of phi, of '
          f'its derivative and of its second at least. Have them found: as_activation(function).')

  @property
  def kinks(self) -> Kinks:
    """Those of phi', as places and jumps of the first order."""
    return tuple((place, sizes[1]) for place, sizes in self.jumps if sizes[1])

  @property
  def steps(self) -> tuple[tuple[float, float], ...]:
    """The places where phi itself jumps, and by how much."""
    return tuple((place, sizes[0]) for place, sizes in self.jumps if sizes[0])

  def __call__(self, h: Array) -> Array:
    return self.function(h)

  def derivative(self, h: Array) -> Array:
    return self._beside(jax.jvp(self.function, (h,), (jnp.ones_like(h),))[1], h)

  def second(self, h: Array) -> Array:
    slope = lambda h: jax.jvp(self.function, (h,), (jnp.ones_like(h),))[1]
    return jax.jvp(slope, (h,), (jnp.ones_like(h),))[1]

  def _beside(self, slope, h):
    """At a kink the mean of both sides, which JAX's derivatives are not."""
    for place, _ in self.kinks:
      near = 1e-6 * max(1.0, abs(place))
      sides = [jnp.full_like(h, place + sign * near) for sign in (-1, 1)]
      mean = sum(jax.jvp(self.function, (s,), (jnp.ones_like(s),))[1] for s in sides) / 2
      slope = jnp.where(h == place, mean, slope)
    return slope

  @property
  def parts(self) -> Parts:
    """Jumps of phi, and the rest."""
    values = tuple((place, sizes[:-1]) for place, sizes in self.jumps)
    return Parts(self.function, values, self.nodes)

  @property
  def slopes(self) -> Parts:
    """Jumps of phi', and the rest: where phi jumps, phi' is what it is beside it."""
    return Parts(self.derivative, tuple((place, sizes[1:]) for place, sizes in self.jumps),
                 self.nodes)


@dataclasses.dataclass(frozen=True)
class Affine(Activation):
  """phi(h) = scale inner(rate h) + shift: as exact as the inner function.

  Attributes:
    inner: an activation.
    rate: of the argument, positive.
    scale: of the value.
    shift: what is added.

  Raises:
    TheoryError: if a number is not finite, or the rate not positive.
  """
  inner: Activation
  rate: float = 1.0
  scale: float = 1.0
  shift: float = 0.0

  def __post_init__(self):
    numbers = (self.rate, self.scale, self.shift)
    if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in numbers) or (
        self.rate <= 0):
      raise TheoryError(f'Affine got rate={self.rate!r}, scale={self.scale!r}, '
                        f'shift={self.shift!r}, which are to be finite numbers, and the rate '
                        f'positive: expectations are formulas in them. Type Affine(inner, '
                        f'scale=2.0).')

  @property
  def kinks(self) -> Kinks:
    """The inner function's, where its argument is there."""
    return tuple((place / self.rate, self._slope * jump) for place, jump in self.inner.kinks)

  @property
  def _slope(self):
    return self.scale * self.rate

  def __call__(self, h: Array) -> Array:
    return self.scale * self.inner(self.rate * h) + self.shift

  def derivative(self, h: Array) -> Array:
    return self._slope * self.inner.derivative(self.rate * h)

  def second(self, h: Array) -> Array:
    return self._slope * self.rate * self.inner.second(self.rate * h)

  def dual(self, aa: Array, ab: Array, bb: Array) -> Array:
    found = self.scale**2 * self.inner.dual(*self._moments(aa, ab, bb))
    if self.shift:
      means = self.scale * (self._mean(aa) + self._mean(bb))
      found = found + self.shift * (means + self.shift)
    return found

  def dual_derivative(self, aa: Array, ab: Array, bb: Array) -> Array:
    return self._slope**2 * self.inner.dual_derivative(*self._moments(aa, ab, bb))

  def mean(self, aa: Array) -> Array:
    return self.scale * self._mean(aa) + self.shift

  def mean_derivative(self, aa: Array) -> Array:
    return self._slope * self.inner.mean_derivative(self.rate**2 * aa)

  @property
  def parts(self) -> Parts:
    """The inner function's, moved."""
    return self._moved(self, self.inner.parts, self.scale)

  @property
  def slopes(self) -> Parts:
    """Likewise."""
    return self._moved(self.derivative, self.inner.slopes, self._slope)

  def _moved(self, function, inner, scale):
    moved = tuple((place / self.rate, tuple(scale * self.rate**j * size
                                            for j, size in enumerate(sizes)))
                  for place, sizes in inner.jumps)
    return Parts(function, moved, inner.nodes)

  def _mean(self, aa):
    return self.inner.mean(self.rate**2 * aa)

  def _moments(self, aa, ab, bb):
    return tuple(self.rate**2 * one for one in (aa, ab, bb))
