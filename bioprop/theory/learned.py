r"""What weights have learned in the steps so far, as sums over these.

A heavy ball of momentum m moves weights at each step by the sum of m^k times the gradient k steps
before, so that after t steps that of the step s counts 1 + m + ... + m^{t-s-1} times.
"""
from typing import NamedTuple

import jax.numpy as jnp

from bioprop.typing import Array


class Learned(NamedTuple):
  """A sum over steps, and what is added to it next beside a gradient."""
  value: Array
  velocity: Array

  @classmethod
  def nothing(cls, shape: tuple[int, ...], dtype: jnp.dtype) -> 'Learned':
    """Before the first step."""
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def moved(self, gradient: Array, momentum: Array) -> 'Learned':
    """After one more step."""
    velocity = momentum * self.velocity + gradient
    return Learned(self.value + velocity, velocity)


def counted(steps: int, t: Array, momentum: Array) -> Array:
  """How often the gradient of each step [T] counts at time t; 0 of those to come."""
  since = t - jnp.arange(steps)
  whole = jnp.where(since > 0, since, 0).astype(momentum.dtype)
  return jnp.where(momentum > 0, (1 - momentum**whole) / (1 - momentum),
                   (since > 0).astype(momentum.dtype))


def past_sum(weights: Array, past: tuple[Array, ...]) -> Array:
  """SUM_{s, nu} weights(...; s nu) past(s nu): [..., T, P] of each [T, P, S] -> [K, ..., S]."""
  entries = weights.shape[-2] * weights.shape[-1]
  flat = weights.reshape(-1, entries)
  found = [flat @ one.reshape(entries, -1) for one in past]
  return jnp.stack(found).reshape(len(past), *weights.shape[:-2], -1)


def put(history: tuple[Array, ...], t: Array, fields: Array) -> tuple[Array, ...]:
  """Histories [T, ...] with fields [K, ...] written at t; none stays none."""
  return tuple(one.at[t].set(field) for one, field in zip(history, fields))


def second_moments(left: Array, right: Array) -> Array:
  """Means over copies, [..., S], [..., S] -> [..., ...]."""
  flat = left.reshape(-1, left.shape[-1]) @ right.reshape(-1, right.shape[-1]).T
  return (flat / left.shape[-1]).reshape(left.shape[:-1] + right.shape[:-1])


def over_outputs(left: Array, right: Array) -> Array:
  """Means over copies and outputs, [..., C, S], [..., C, S] -> [..., ...]."""
  join = lambda a: a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])
  return second_moments(join(left), join(right))


