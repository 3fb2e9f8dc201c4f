"""Scans whose errors are cut in time."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.typing import Array, PyTree

# What every step adds to and none cuts, and what is carried.
State = tuple[PyTree, PyTree]
# Maps a state and one step's slices to the state after and what is stacked.
Step = Callable[[State, PyTree], tuple[State, PyTree]]
# Runs a scan: (step, start, slices, length, the other options of `jax.lax.scan`).
Loop = Callable[[Step, State, PyTree, int, dict[str, Any]], tuple[State, PyTree]]
Cotangents = list[Array]


def chunked_scan(step: Step, start: State, slices: PyTree, length: int, options: dict[str, Any],
                 *, steps: int) -> tuple[State, PyTree]:
  """A scan in which errors are stopped before the steps `steps`, 2 `steps`, ... in its order."""

  def counted(state, slices):
    count, (free, carry) = state
    stop = (count % steps == 0) & (count > 0)
    cut = lambda a: jax.lax.select(jnp.broadcast_to(stop, a.shape), jax.lax.stop_gradient(a), a)
    state, outs = step((free, jax.tree.map(lambda a: cut(a) if _is_real(a) else a, carry)), slices)
    return (count + 1, state), outs

  (_, last), outs = jax.lax.scan(counted, (jnp.int32(0), start), slices, length, **options)
  return last, outs


def truncated_scan(step: Step, start: State, slices: PyTree, length: int, options: dict[str, Any],
                   *, steps: int) -> tuple[State, PyTree]:
  """A scan in which each step's error is credited to that step and the `steps` - 1 before it.

  On the way back what is carried has a cotangent for each age of an error. The scan's start gets
  all that reaches it.
  """
  if steps >= length:
    return jax.lax.scan(step, start, slices, length, **options)
  step, consts = jax.closure_convert(step, start, jax.tree.map(lambda a: a[0], slices))
  given = _Parts.of((consts, start, slices))
  made: list[_Parts] = []

  def scan(real, rest):
    consts, start, slices = given.joined(real, rest)
    kept = lambda state, own: _beside(step(state, own, *consts), state)
    last, (outs, states) = jax.lax.scan(kept, start, slices, length, **options)
    made[:] = [_Parts.of((last, outs))]
    return made[0].split((last, outs)), states

  @jax.custom_vjp
  def run(real, rest):
    return scan(real, rest)[0]

  def forward(real, rest):
    out, states = scan(real, rest)
    return out, (real, rest, states)

  def backward(residuals, cotangents):
    real, rest, states = residuals
    consts, start, slices = given.joined(real, rest)
    return _credited(step, consts, start, (states, slices), cotangents[0], steps, options), None

  run.defvjp(forward, backward)
  real, rest = run(*given.split((consts, start, slices)))
  return made[0].joined(real, rest)


def _beside(result: tuple[State, PyTree], state: State) -> tuple[State, tuple[PyTree, State]]:
  after, outs = result
  return after, (outs, state)


def _credited(step, consts: PyTree, start: State, kept: tuple[State, PyTree],
              cotangents: Cotangents, steps: int, options: dict[str, Any]) -> Cotangents:
  """Cotangents of what is real among `consts`, `start` and the slices.

  Args:
    step: maps (state, slices, *consts) as `Step` does.
    consts, start: as the scan was given them.
    kept: the states before all steps, and the slices.
    cotangents: of what is real among the last state and what is stacked.
    steps: how many steps an error is credited to.
    options: the scan's.
  """
  parts, last = _Parts.of(consts), len(_Parts.of(start).split(start)[0])
  free = len(jax.tree.leaves(start[0]))
  held, ints = parts.split(consts)

  def pull(state, own):
    at = _Parts.of((state, own))
    real, rest = at.split((state, own))

    def reals(held, real):
      state, own = at.joined(real, rest)
      out = step(state, own, *parts.joined(held, ints))
      after, outs = (_Parts.of(one).split(one)[0] for one in out)
      return [*after, *outs]

    return jax.vjp(reals, held, real)[1]

  def back(known, now):
    uncut, ages, credit, _ = known
    (state, own), outs = now
    backward = pull(state, own)
    to_consts, below = backward([*uncut, *(age.sum(0) for age in ages), *outs])
    if steps > 1:  # What arises here is young; what came back is a step older.
      young = lambda a: jnp.zeros((steps - 1, *a.shape), a.dtype).at[0].set(a)
      each = [*map(young, uncut), *(age[:-1] for age in ages), *map(young, outs)]
      older = jax.vmap(lambda own: backward(own)[1][free:last])(each)
      ages = [jnp.concatenate([jnp.zeros_like(one[:1]), one]) for one in older]
    else:
      ages = [jnp.zeros_like(age) for age in ages]
    credit = [a + b for a, b in zip(credit, to_consts)]
    return (below[:free], ages, credit, below[free:last]), below[last:]

  aged = [jnp.zeros((steps, *a.shape), a.dtype).at[0].set(a) for a in cotangents[free:last]]
  known = (cotangents[:free], aged, [jnp.zeros_like(a) for a in held],
           [jnp.zeros_like(a) for a in cotangents[free:last]])
  options = {**options, 'reverse': not options['reverse']}
  (uncut, _, credit, first), to_slices = jax.lax.scan(
      back, known, (kept, cotangents[last:]), **options)
  return [*credit, *uncut, *first, *to_slices]


@dataclasses.dataclass(frozen=True)
class _Parts:
  """Tells the leaves of a tree that have derivatives from the others."""
  structure: Any
  real: tuple[bool, ...]

  @classmethod
  def of(cls, tree: PyTree) -> '_Parts':
    leaves, structure = jax.tree.flatten(tree)
    return cls(structure, tuple(map(_is_real, leaves)))

  def split(self, tree: PyTree) -> tuple[Sequence[Array], Sequence[Array]]:
    leaves = jax.tree.leaves(tree)
    return ([leaf for leaf, real in zip(leaves, self.real) if real],
            [leaf for leaf, real in zip(leaves, self.real) if not real])

  def joined(self, real: Sequence[Array], rest: Sequence[Array]) -> PyTree:
    sources = {True: iter(real), False: iter(rest)}
    return jax.tree.unflatten(self.structure, [next(sources[own]) for own in self.real])


def _is_real(leaf: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
