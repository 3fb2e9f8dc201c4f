"""The mean-field equations of backprop, solved as papers have it: a damped iteration of kernels.

What `bioprop.theory.solve_dmft` is compared with, in time and in numbers. The predecessor of
Bordelon & Pehlevan 2023 (arXiv 2205.09653) draws Gaussian fields by the eigenvectors of each
kernel, runs the process of one neuron for every sample, takes the response functions from T P
derivatives in forward mode, and repeats until the kernels do not change.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.typing import Array, Key


class State(NamedTuple):
  """Kernels and responses over (t, mu), [T P, T P] each.

  Attributes:
    phi: Phi^0, ..., Phi^L, [L + 1, ...].
    g: G^1, ..., G^{L+1}.
    a: a^0, ..., a^L; the first and the last are not used.
    b: b^0, ..., b^L.
  """
  phi: Array
  g: Array
  a: Array
  b: Array


def begin(kx: Array, depth: int, steps: int) -> State:
  """All kernels as the input's, no responses."""
  kernel = jnp.tile(kx, (steps, steps))
  zero = jnp.zeros((depth + 1, *kernel.shape), kx.dtype)
  return State(zero + kernel[None], zero + 1, zero, zero)


def outputs(state: State, y: Array, rate: float) -> tuple[Array, Array]:
  """f [T, P] by Euler's method, and K [T, P, P]."""
  size = len(y)
  steps = state.phi.shape[1] // size
  equal = lambda kernels: jnp.einsum(
      'ltptq->ltpq', kernels.reshape(-1, steps, size, steps, size))
  entk = jnp.sum(equal(state.phi) * equal(state.g), 0)

  def step(f, kernel):
    return f + rate * kernel @ (y - f), f

  return jax.lax.scan(step, jnp.zeros_like(y), entk)[1], entk


@functools.partial(jax.jit, static_argnames=('phi', 'samples', 'directions'))
def iterate(state: State, y: Array, key: Key, *, phi, gamma0: float, rate: float, samples: int,
            damping: float, directions: int | None = None) -> State:
  """One iteration.

  Args:
    state: the kernels.
    y: targets [P].
    key: of the fields, the same in every iteration.
    phi: the nonlinearity.
    gamma0: richness.
    rate: eta.
    samples: S.
    damping: share of the new kernels.
    directions: how many of the T P derivatives are taken, to time them; None: all.
  """
  depth, entries, size = len(state.phi) - 1, state.phi.shape[1], len(y)
  steps = entries // size
  delta = (y[None] - outputs(state, y, rate)[0]).reshape(-1)
  earlier = jnp.repeat(jnp.repeat(jnp.tri(steps, k=-1, dtype=y.dtype), size, 0), size, 1)
  gate = gamma0 * rate * earlier * delta[None]
  derivative = jax.vmap(jax.grad(phi))
  new = state
  for layer in range(1, depth + 1):
    keys = jax.random.split(jax.random.fold_in(key, layer))
    u = _drawn(keys[0], state.phi[layer - 1], samples)
    r = _drawn(keys[1], state.g[layer], samples)
    forward = (state.a[layer - 1] + gate * state.phi[layer - 1]).reshape(steps, size, entries)
    backward = (state.b[layer] + gate * state.g[layer]).reshape(steps, size, entries)

    def process(u, r, forward=forward, backward=backward):
      """phi(h) and g of one neuron."""

      def step(past, t):
        active, signal = past
        at = t * size
        h = jax.lax.dynamic_slice(u, (at,), (size,)) + forward[t] @ signal
        active = jax.lax.dynamic_update_slice(active, phi(h), (at,))
        z = jax.lax.dynamic_slice(r, (at,), (size,)) + backward[t] @ active
        signal = jax.lax.dynamic_update_slice(signal, derivative(h) * z, (at,))
        return (active, signal), None

      empty = jnp.zeros(entries, y.dtype)
      return jax.lax.scan(step, (empty, empty), jnp.arange(steps))[0]

    active, signal = jax.vmap(process)(u, r)
    eye = jnp.eye(entries, dtype=y.dtype)[:directions]

    def moved(direction, process=process, u=u, r=r):
      """Means of d phi / d r and d g / d u along one direction."""
      still = jnp.zeros_like(direction)
      along = lambda du, dr: jax.vmap(lambda u, r: jax.jvp(process, (u, r), (du, dr))[1])(u, r)
      return along(still, direction)[0].mean(0), along(direction, still)[1].mean(0)

    a, b = (jnp.zeros((entries, entries), y.dtype).at[:, :len(eye)].set(found.T)
            for found in jax.lax.map(moved, eye))
    set_at = lambda kernels, at, fresh: kernels.at[at].set(
        (1 - damping) * kernels[at] + damping * fresh)
    new = State(set_at(new.phi, layer, active.T @ active / samples),
                set_at(new.g, layer - 1, signal.T @ signal / samples),
                set_at(new.a, layer, a) if layer < depth else new.a,
                set_at(new.b, layer - 1, b) if layer > 1 else new.b)
  return new


def _drawn(key, kernel, samples):
  values, vectors = jnp.linalg.eigh(kernel)
  root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
  return jax.random.normal(key, (samples, len(kernel)), kernel.dtype) @ root.T
