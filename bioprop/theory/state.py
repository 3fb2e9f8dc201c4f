"""What a march hands on from time to time."""
import functools
from typing import NamedTuple

import jax.numpy as jnp

from bioprop.theory import responses
from bioprop.theory.learned import Learned
from bioprop.theory.problem import Program
from bioprop.typing import Array


class Layer(NamedTuple):
  """One layer's past; histories are a tuple of the field and its tangents, each [T, P, S].

  Attributes:
    phi: history of phi(h), which the layer above asks for.
    e: history of e, which the layer below asks for.
    kept: phi [n, P, S], g and g~ [n, P, C, S] at the times at which kernels are kept.
    fields: u, r and v [T, P, S] by name, where responses are regressed on them.
    known: what is known of these responses, by letter.
  """
  phi: tuple[Array, ...]
  e: tuple[Array, ...]
  kept: tuple[Array, Array, Array]
  fields: dict[str, Array]
  known: dict[str, responses.Estimate]


class State(NamedTuple):
  """All that steps hand on.

  Attributes:
    layers: from the first up.
    first: what the input's weights and biases have learned, e summed over steps [K, P, S].
    readout: SUM Delta_c phi(h) [K, C, S].
    offset: SUM Delta_c [C].
    initial: z_c phi(h) at the start [P, C, S].
    rows: of each letter, of each layer, responses at the times that are kept.
    between: K of pairs of outputs at these times [n, P, P, C, C].
  """
  layers: list[Layer]
  first: Learned
  readout: Learned
  offset: Learned
  initial: Array
  rows: dict[str, list[Array]]
  between: Array


class Up(NamedTuple):
  """A layer's activity at one time.

  Attributes:
    phi: phi(h) [K, P, S].
    first: phi'(h) [P, S].
    bends: its tangents [K - 1, P, S].
  """
  phi: Array
  first: Array
  bends: Array


def tangents(program: Program) -> list[str]:
  """Of each layer, the fields along which its copies carry derivatives."""
  rule, depth = program.rule, program.depth
  return [responses.of_layer(rule, depth, number) if responses.carried(rule, program.phi) else ''
          for number in range(depth)]


def begin(program: Program, size: int, dtype: jnp.dtype) -> State:
  """Before the first time, of P samples."""
  steps, samples, depth = program.steps, program.samples, program.depth
  outputs, kept, along = program.outputs or 1, len(program.kept), tangents(program)
  zeros = functools.partial(jnp.zeros, dtype=dtype)
  nothing = lambda *shape: Learned.nothing(shape, dtype)
  letters, past = responses.letters(program.rule, depth), (zeros((steps, size, samples)),)
  layers = []
  for number in range(depth):
    sources = responses.of_layer(program.rule, depth, number)
    regressed = '' if along[number] else sources
    known = {letter: responses.nothing(steps, size, samples, dtype,
                                       size * (outputs if letter in 'bd' else 1))
             for letter in letters if responses.SOURCE[letter] in regressed}
    kinds = 1 + len(along[number])
    layers.append(Layer(
        past * kinds if number < depth - 1 else (), past * kinds if number else (),
        (zeros((kept, size, samples)), *[zeros((kept, size, outputs, samples))] * 2),
        {one: past[0] for one in regressed}, known))
  shape = lambda letter: (kept, size, *[outputs] * (letter in 'bd'), kept, size)
  return State(
      layers, nothing(1 + len(along[0]), size, samples),
      nothing(1 + len(along[-1]), outputs, samples), nothing(outputs),
      zeros((size, outputs, samples)),
      {letter: [zeros(shape(letter))] * (depth - 1) for letter in letters},
      zeros((kept, size, size, outputs, outputs)))
