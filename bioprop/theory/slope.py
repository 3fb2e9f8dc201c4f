"""The derivative of a nonlinearity as a nonlinearity, which gates of linear units are."""
import dataclasses

import jax
import jax.numpy as jnp

from bioprop.theory.activations import Activation


@dataclasses.dataclass(frozen=True)
class Slope(Activation):
  """The derivative of a nonlinearity, as the gates of linear units that do not learn.

  Attributes:
    of: the nonlinearity.
  """
  of: Activation

  def __call__(self, h):
    return self.of.derivative(h)

  def derivative(self, h):
    return self.of.second(h)

  def second(self, h):
    return jax.jvp(self.of.second, (h,), (jnp.ones_like(h),))[1]

  def dual(self, aa, ab, bb):
    return self.of.dual_derivative(aa, ab, bb)

  def mean(self, aa):
    return self.of.mean_derivative(aa)
