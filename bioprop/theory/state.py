"""What a march hands on from time to time."""
import functools
from typing import NamedTuple

import jax.numpy as jnp

from bioprop.theory.kept import Past
from bioprop.theory.learned import Learned
from bioprop.theory.problem import Program, tangents
from bioprop.theory.summed import Sums
from bioprop.typing import Array


class State(NamedTuple):
  """All that steps hand on.

  Attributes:
    pasts: of the weights between hidden layers, from the first up.
    first: what the input's weights and biases have learned, e summed over steps [K, P, S].
    readout: SUM Delta_c phi(h) [K, C, S].
    offset: SUM Delta_c [C].
    start: estimates at the start; None where these are not known either.
    seen: of each layer phi [n, P, S], g and g~ [n, P, C, S] at the times that are kept.
    between: K of pairs of outputs at these times [n, P, P, C, C].
  """
  pasts: list[Past | Sums]
  first: Learned
  readout: Learned
  offset: Learned
  start: 'Start | None'
  seen: list[tuple[Array, Array, Array]]
  between: Array


class Start(NamedTuple):
  """What copies say of K at the start, and what that did to outputs.

  Attributes:
    entk: the mean over outputs [P, P].
    between: of all pairs of outputs [P, P, C, C].
    kernels: of the readout and the layer below, [2, P, P].
    signals: phi [P, 1, S], g and g~ [P, C, S] of the last layer.
    shares: what each copy adds to the trace of K by the readout and the layer below [S].
    missing: what outputs lack for it [P, C].
  """
  entk: Array
  between: Array
  kernels: Array
  signals: tuple[Array, Array, Array]
  shares: Array
  missing: Learned


class Up(NamedTuple):
  """A layer's activity at one time.

  Attributes:
    phi: phi(h) [K, P, S].
    first: phi'(h) [P, S].
    bends: its tangents [K - 1, P, S].
    still: phi(u) [P, S].
  """
  phi: Array
  first: Array
  bends: Array
  still: Array


def begin(program: Program, size: int, dtype: jnp.dtype, pasts: list[Past | Sums],
          known: bool) -> State:
  """Before the first time, of P samples; `known` says whether the start is."""
  samples, outputs, kept = program.samples, program.outputs or 1, len(program.kept)
  kinds = [1 + len(one) for one in tangents(program)]
  zeros = functools.partial(jnp.zeros, dtype=dtype)
  nothing = lambda *shape: Learned.nothing(shape, dtype)
  seen = zeros((kept, size, samples)), *[zeros((kept, size, outputs, samples))] * 2
  square, signal = zeros((size, size)), zeros((size, outputs, samples))
  start = Start(square, zeros((size, size, outputs, outputs)), jnp.stack([square] * 2),
                (signal[:, :1], signal, signal), signal[0, 0],
                nothing(size, outputs)) if known else None
  return State(
      pasts, nothing(kinds[0], size, samples), nothing(kinds[-1], outputs, samples),
      nothing(outputs), start, [seen] * program.depth,
      zeros((kept, size, size, outputs, outputs)))
