"""The past of the weights between two hidden layers, summed up: nothing of it grows with time.

What weights have learned is a matrix over the copies of both layers, [S, S], as it is over the
neurons of a network: with SUM_s e(s) phi(s)^T both kernels over the past, <phi phi(s)> e(s) and
<g e(s)> phi(s), are products with it. Responses are regressed on bases of past fields
(bioprop/theory/basis.py). No copy carries a tangent, so that there may be fewer copies than times
and samples.
"""
from typing import NamedTuple

import jax.numpy as jnp

from bioprop.theory import basis, responses
from bioprop.theory.ensemble import Ensemble
from bioprop.theory.learned import Learned
from bioprop.theory.problem import Program, Setting
from bioprop.typing import Array

_SHARE = 4  # Of the copies' directions, one in so many is for the past: what is projected on them
# of noise is in answers.


class Sums(NamedTuple):
  """Of one pair of layers.

  Attributes:
    weights: SUM e phi^T / S [S, S], rows of the copies above.
    biases: SUM e [S].
    phi: phi(h) [P, S] below, at the newest time.
    e: e [P, S] above, at the newest time.
    forward: u above, and phi(h) below in its place; None where nothing answers to it.
    backward: r or v below, and e above in its place; None likewise.
    answers: by letter.
  """
  weights: Learned
  biases: Learned
  phi: Array
  e: Array
  forward: basis.Basis | None
  backward: basis.Basis | None
  answers: dict[str, basis.Answer]


class Summed:
  """What to do with them at time t; layers are counted from 0, `at` is the one below."""

  def __init__(self, program: Program, setting: Setting, random: Ensemble, slots: Array):
    del random, slots  # There are neither tangents nor kernels of responses.
    self._program, self._setting = program, setting
    self._scale = setting.gamma0 * setting.rate

  def begin(self, at: int) -> Sums:
    """Before the first time."""
    del at
    program, size, dtype = self._program, len(self._setting.root), self._setting.root.dtype
    samples, letters = program.samples, responses.letters(program.rule, program.depth)
    room = lambda asked: basis.nothing(samples // _SHARE, samples, dtype) if asked else None
    shape = lambda letter: (size, *[program.outputs or 1] * (letter in 'bd'), samples)
    field = jnp.zeros((size, samples), dtype)
    return Sums(
        Learned.nothing((samples, samples), dtype), Learned.nothing((samples,), dtype), field,
        field,
        room(set(letters) & set('bd')), room(set(letters) & set('ac')),
        {one: basis.Answer(*[jnp.zeros(shape(one), dtype)] * 2) for one in letters})

  def saw_phi(self, past: Sums, phi: Array, t: Array) -> Sums:
    """phi(h) [1, P, S] below."""
    del t
    return past._replace(phi=phi[0])

  def saw_e(self, past: Sums, e: Array, t: Array) -> Sums:
    """e [1, P, S] above."""
    del t
    momentum, samples = self._setting.momentum, self._program.samples
    return past._replace(weights=past.weights.moved(e[0].T @ past.phi / samples, momentum),
                         biases=past.biases.moved(jnp.sum(e[0], 0), momentum), e=e[0])

  def saw(self, past: Sums, source: str, field: Array, t: Array) -> Sums:
    """u above, or below r or v joined over outputs, [P, S]; phi and e of the time are known."""
    del t
    if source == 'u' and past.forward is not None:
      return past._replace(forward=basis.extended(past.forward, field, past.phi))
    if source != 'u' and past.backward is not None:
      return past._replace(backward=basis.extended(past.backward, field, past.e))
    return past

  def up(self, past: Sums, at: int, phi: Array, t: Array) -> tuple[Sums, Array]:
    """What has been learned or is an answer in h above, [1, P, S]."""
    weight, rate = self._setting.weights[at + 1], self._setting.bias_rates[at + 1]
    h = self._scale * (weight * phi[0] @ past.weights.value.T + rate * past.biases.value[None])
    for letter, share in (('a', 1.0), ('c', self._setting.rho)):
      if letter in past.answers:
        past, answer = self._answer(past, letter, phi[0], past.backward, t)
        h = h + weight * share * answer
    return past, h[None]

  def down(self, past: Sums, at: int, g: Array, t: Array) -> tuple[Sums, Array]:
    """The same in z below [1, P, C, S], of g above."""
    past, answer = self._answer(past, 'b', g[0], past.forward, t)
    z = self._scale * (g[0] @ past.weights.value) + answer
    return past, self._setting.weights[at + 1] * z[None]

  def fed(self, past: Sums, at: int, pseudo: Array, t: Array) -> tuple[Sums, Array]:
    """What is an answer in z~ below [1, P, C, S], of g~ above."""
    past, answer = self._answer(past, 'd', pseudo[0], past.forward, t)
    return past, (self._setting.weights[at + 1] * self._setting.rho * answer)[None]

  def end(self, pasts: list[Sums]) -> tuple[dict[str, Array], Array]:
    """No responses, and what is missing of their sums."""
    missed = [one.missed for past in pasts for one in (past.forward, past.backward)
              if one is not None]
    return {}, jnp.max(jnp.stack([jnp.zeros((), self._setting.root.dtype), *missed]))

  def _answer(self, past, letter, field, of, t):
    answer = past.answers[letter].moved(field, of, t == 0)
    past = past._replace(answers={**past.answers, letter: answer})
    return past, jnp.zeros_like(field) if letter in self._program.without else answer.value
