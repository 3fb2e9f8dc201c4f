"""What is random in a march of copies: drawn once, and frozen."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.theory import copies
from bioprop.theory.problem import Program, Setting, tangents
from bioprop.typing import Array, Key


class Frozen(NamedTuple):
  """One layer's rotations of copies and static fields.

  Attributes:
    u: of activities below.
    r: of signals above, and of the rule's.
    zeta: of the rule's signals above, independent of r.
    gates: gln's phi'(m) [P, S].
    noise: [C, S].
    bias: [1, S].
  """
  u: copies.Rotation
  r: copies.Rotation
  zeta: copies.Rotation
  gates: Array
  noise: Array
  bias: Array


class Ensemble:
  """All that is random.

  Attributes:
    first: the first layer's u without its bias [P, S].
    readout: the last layer's r [C, S].
    probes: directions of tangents [T, P, S]; None where there are none.
    layers: of each layer, `Frozen`.
  """

  def __init__(self, program: Program, setting: Setting, key: Key):
    self._program, self._setting = program, setting
    keys = jax.random.split(key, program.depth + 3)
    size, dtype, outputs = len(setting.root), setting.root.dtype, program.outputs or 1
    scale = jnp.sqrt(setting.weights)
    self.layers = [self._frozen(k, beta, outputs) for k, beta in zip(keys[3:], setting.biases)]
    self.first = scale[0] * (setting.root @ self._normal(keys[0], size))
    self.readout = scale[-1] * self._normal(keys[1], outputs)
    self.probes = copies.directions(keys[2], (program.steps, size), program.samples,
                                    dtype) if any(tangents(program)) else None

  def _frozen(self, key, variance, outputs):
    rotations, gates, noise, bias = jax.random.split(key, 4)
    u, r, zeta = (copies.rotation(one, self._program.samples, self._setting.root.dtype)
                  for one in jax.random.split(rotations, 3))
    root = self._setting.root
    slopes = self._program.phi.derivative(root @ self._normal(gates, len(root)))
    return Frozen(u, r, zeta, slopes, self._normal(noise, outputs),
                  jnp.sqrt(variance) * self._normal(bias, 1))

  def _normal(self, key, rows):
    return copies.normal(key, rows, self._program.samples, self._setting.root.dtype)
