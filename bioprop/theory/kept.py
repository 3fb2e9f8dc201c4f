"""The past of the weights between two hidden layers, kept as the copies' fields at all times.

Kernels over the past are means over copies of what they are and of what they were; responses are
carried by tangents, or regressed on past fields (bioprop/theory/responses.py).
"""
from typing import NamedTuple

import jax.numpy as jnp

from bioprop.theory import responses
from bioprop.theory.ensemble import Ensemble
from bioprop.theory.learned import counted, past_sum, put, second_moments
from bioprop.theory.problem import Program, Setting, tangents
from bioprop.typing import Array


class Past(NamedTuple):
  """Of one pair of layers; histories are a tuple of the field and its tangents, each [T, P, S].

  Attributes:
    phi: of phi(h) below.
    e: of e above.
    fields: u above, r or v below [T, P, S] by name, where responses are regressed on them.
    known: what is known of these responses, by letter.
    rows: responses at the times that are kept, by letter.
  """
  phi: tuple[Array, ...]
  e: tuple[Array, ...]
  fields: dict[str, Array]
  known: dict[str, responses.Estimate]
  rows: dict[str, Array]


class Kept:
  """What to do with it at time t; layers are counted from 0, `at` is the one below."""

  def __init__(self, program: Program, setting: Setting, random: Ensemble, slots: Array):
    self._program, self._setting, self._random, self._slots = program, setting, random, slots
    self._tangents = tangents(program)
    self._scale = setting.gamma0 * setting.rate

  def begin(self, at: int) -> Past:
    """Before the first time."""
    program, size, dtype = self._program, len(self._setting.root), self._setting.root.dtype
    outputs, kept = program.outputs or 1, len(program.kept)
    field = jnp.zeros((program.steps, size, program.samples), dtype)
    below, above = self._tangents[at:at + 2]
    letters = responses.letters(program.rule, program.depth)
    regressed = '' if below or above else {responses.SOURCE[one] for one in letters}
    fields = lambda letter: size * (outputs if letter in 'bd' else 1)
    known = {one: responses.nothing(program.steps, size, program.samples, dtype, fields(one))
             for one in letters if regressed}
    shape = lambda letter: (kept, size, *[outputs] * (letter in 'bd'), kept, size)
    return Past((field,) * (1 + len(below)), (field,) * (1 + len(above)),
                {one: field for one in regressed}, known,
                {one: jnp.zeros(shape(one), dtype) for one in letters})

  def saw_phi(self, past: Past, phi: Array, t: Array) -> Past:
    """phi(h) [K, P, S] below."""
    return past._replace(phi=put(past.phi, t, phi))

  def saw_e(self, past: Past, e: Array, t: Array) -> Past:
    """e [K, P, S] above."""
    return past._replace(e=put(past.e, t, e))

  def saw(self, past: Past, source: str, field: Array, t: Array) -> Past:
    """u above, or below r or v joined over outputs, [P, S]."""
    if source not in past.fields:
      return past
    return past._replace(fields={**past.fields, source: past.fields[source].at[t].set(field)})

  def up(self, past: Past, at: int, phi: Array, t: Array) -> tuple[Past, Array]:
    """What has been learned or is an answer in h above, [K, P, S]."""
    weight, rate = self._setting.weights[at + 1], self._setting.bias_rates[at + 1]
    counts = self._scale * counted(self._program.steps, t, self._setting.momentum)
    weights = counts[None, :, None] * (weight * second_moments(phi[0], past.phi[0]) + rate)
    earlier = jnp.arange(self._program.steps) < t
    for letter, share in (('a', 1.0), ('c', self._setting.rho)):
      if letter in past.rows:
        past, row = self._response(past, letter, at, phi, earlier, t, share)
        weights = weights + weight * row
    return past, past_sum(weights, past.e)

  def down(self, past: Past, at: int, g: Array, t: Array) -> tuple[Past, Array]:
    """The same in z below [K, P, C, S], of g above."""
    counts = self._scale * counted(self._program.steps, t, self._setting.momentum)
    weights = counts[None, None, :, None] * second_moments(g[0], past.e[0])
    past, b = self._response(past, 'b', at + 1, g, self._until(t), t)
    return past, self._setting.weights[at + 1] * past_sum(weights + b, past.phi)

  def fed(self, past: Past, at: int, pseudo: Array, t: Array) -> tuple[Past, Array]:
    """What is an answer in z~ below [K, P, C, S], of g~ above."""
    past, d = self._response(past, 'd', at + 1, pseudo, self._until(t), t, self._setting.rho)
    return past, self._setting.weights[at + 1] * past_sum(d, past.phi)

  def end(self, pasts: list[Past]) -> tuple[dict[str, Array], Array]:
    """Responses of all pairs of layers, by letter, and what is missing of them."""
    letters = responses.letters(self._program.rule, self._program.depth)
    rows = {one: jnp.stack([past.rows[one] for past in pasts]) for one in letters}
    return rows, jnp.zeros((), self._setting.root.dtype)

  def _until(self, t):
    return jnp.arange(self._program.steps) <= t

  def _response(self, past, letter, number, moved, mask, t, share=1.0):
    """share <d field(t) / d source(s)> [..., T, P] of a field [K, ..., S].

    The source is one of the layer `number`: u, r, or v as what is fed back, whose share of v is
    rho.
    """
    source = responses.SOURCE[letter]
    if self._tangents[number]:
      kind = 1 + self._tangents[number].index(source)
      row = second_moments(moved[kind], self._random.probes)
    else:
      x = jnp.where(mask[:, None, None], past.fields[source], 0)
      found = responses.grown(past.known[letter], moved[0].reshape(-1, moved.shape[-1]), x)
      past = past._replace(known={**past.known, letter: found})
      row = found.row.reshape(*moved.shape[1:-1], *found.row.shape[1:])
    mask = mask if letter not in self._program.without else jnp.zeros_like(mask)
    row = share * jnp.where(mask.reshape(*(1,) * (row.ndim - 2), -1, 1), row, 0)
    columns = jnp.take(row, jnp.asarray(self._program.kept), -2)
    rows = past.rows[letter].at[self._slots[t]].set(columns, mode='drop')
    return past._replace(rows={**past.rows, letter: rows}), row
