"""One step of time of a recurrent network, and the traces by which credit needs no past.

Errors that rules of time send back from one step to the one before stay within a neuron: the
derivatives of what it carries are numbers, d s_t / d s_{t-1}, and so each parameter of the neuron
has a trace, the derivative of what the neuron carries in it,

  P_t = (d s_t / d s_{t-1}) P_{t-1} + (d s_t / d parameter at this step) ,

which goes forward in time; the gradient is sum_t (d loss_t / d s_{t-1}) P_{t-1} + what is credited
at the step itself. A matrix that maps x to u, which the neuron hears, has the trace
x_i d s_j / d u_j for each entry: [n, inputs, outputs], for each array that is carried.
"""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bioprop.streams.step import Arguments, Carry, Local, OneStep
from bioprop.typing import Array, Key, PyTree


class Traces(NamedTuple):
  """Derivatives of what is carried, for each live array of it.

  Attributes:
    weights: by op, [n, inputs, outputs].
    biases: by op, [n, outputs].
    others: by the path of a parameter that meets data elementwise, [n, its size].
  """
  weights: dict[int, list[Array]]
  biases: dict[int, list[Array]]
  others: dict[str, list[Array]]


class Stream(OneStep):
  """A network that is fit to be credited forward in time; made by `fit.stream_of`."""

  def start(self, arguments: Arguments) -> Carry:
    """What the loop carries before the first step."""
    return self.run(arguments, None)[1].start

  def fresh(self, carry: Carry) -> Traces:
    """Traces before the first step: zeros."""
    carried = [a for a, live in zip(carry, self.live) if live]
    zeros = lambda *shape: [jnp.zeros((a.shape[0], *shape), a.dtype) for a in carried]
    params = dict(zip(self.layered.traced.paths, self.layered.traced.closed.in_avals))
    return Traces(
        {op.number: zeros(op.x_aval.shape[-1], op.y_aval.shape[-1]) for op in self.ops},
        {op.number: zeros(op.y_aval.shape[-1]) for op in self.ops if op.bias is not None},
        {path: zeros(params[path].shape[0]) for path in sorted(self.changing.parameters)})

  def step(self, arguments: Arguments, carry: Carry, traces: Traces,
           loss: Callable[[PyTree], tuple[Array, Any]]):
    """One step.

    Args:
      arguments: of this step.
      carry, traces: before it.
      loss: maps what the function returns to (a number, anything).

    Returns:
      What `loss` returns; the gradients in parameters and in feedback shaped like weights, by
      path; and the carry and traces after the step.
    """
    live, rest = self.parted(carry)

    def now(params, weights, live):
      own = dataclasses.replace(arguments, params=params, weights=weights)
      out, once = self.run(own, self.joined(live, rest))
      value, more = loss(out)
      return value, (more, once.after)

    (value, (more, after)), (grads, of_feedback, signal) = jax.value_and_grad(
        now, argnums=(0, 1, 2), has_aux=True)(
            dict(arguments.params), dict(arguments.weights), live)
    past, past_feedback = self._past(arguments, signal, traces)
    add = lambda a, b: a + b.astype(a.dtype)
    grads = {path: add(g, past[path]) if path in past else g for path, g in grads.items()}
    of_feedback = {path: add(g, past_feedback[path]) if path in past_feedback else g
                   for path, g in of_feedback.items()}
    return (value, more), (grads, of_feedback), (
        after, self._followed(arguments, live, rest, traces))

  def mixing(self, arguments: Arguments, carry: Carry, key: Key) -> dict[str, Array]:
    """Tells what is not elementwise on its way to the carry, by tangents drawn from `key`.

    Returns:
      True where neurons mix, by the name of what enters them.
    """
    live, rest = self.parted(carry)
    local = self._local(arguments, rest)
    zeros = (live, local.taps(live), local.others())
    push = jax.linearize(local.after, *zeros)[1]
    leaves, structure = jax.tree.flatten(zeros)
    names = [*(f'carried array {i}' for i in range(len(live))),
             *(repr(op.path) for op in self.ops), *map(repr, sorted(self.changing.parameters))]
    found = dict.fromkeys(names, jnp.zeros((), bool))
    width = live[0].shape[-1]
    for at, leaf in enumerate(leaves):
      for block in range(leaf.shape[-1] // width):
        ones = _block(leaf, block, width)
        random = ones * jax.random.normal(jax.random.fold_in(key, at), leaf.shape, leaf.dtype)
        put = lambda tangent, at=at: push(*jax.tree.unflatten(structure, [
            tangent if i == at else jnp.zeros_like(a) for i, a in enumerate(leaves)]))
        part = random[..., block * width:(block + 1) * width]
        for slope, got in zip(put(ones), put(random)):
          want = slope * jnp.broadcast_to(part, slope.shape)
          found[names[at]] |= ~jnp.allclose(got, want, rtol=1e-3, atol=1e-6)
    return found

  def _local(self, arguments: Arguments, rest: Carry) -> Local:
    return Local(self, arguments, lambda live: self.joined(live, rest))

  def _past(self, arguments: Arguments, signal: Carry, traces: Traces):
    """The gradients of all steps before, in parameters and in their feedback."""
    weights, biases = {}, {}
    for op in self.ops:
      wide = [_tiled(d, op.y_aval.shape[-1]) for d in signal]
      weights[op.number] = sum(jnp.einsum('no,nio->io', d, p)
                               for d, p in zip(wide, traces.weights[op.number]))
      if op.bias is not None:
        biases[op.number] = sum(d * p for d, p in zip(wide, traces.biases[op.number]))
    local = self._local(arguments, [])
    made, back = jax.vjp(local.effective, dict(arguments.params))
    cast = lambda given: jax.tree.map(_like, given, made)
    grads, = back(cast((weights, biases)))
    for path, own in traces.others.items():
      grads[path] = grads[path] + sum(
          jnp.sum(_tiled(d, p.shape[-1]) * p, 0) for d, p in zip(signal, own))
    # Feedback that learns is changed as the weight is, where errors are sent through it.
    recurrent = self.layered.recurrent
    sent = {number: jnp.zeros_like(g) if number in recurrent else g
            for number, g in weights.items()}
    through, = back(cast((sent, jax.tree.map(jnp.zeros_like, biases))))
    learned = {path for op in self.ops for path in op.paths
               if getattr(self.layered.rules[op.number], 'learns', False)}
    return grads, {path: through[path] for path in learned if path in arguments.weights}

  def _followed(self, arguments: Arguments, live: Carry, rest: Carry, traces: Traces) -> Traces:
    """The traces after a step."""
    local = self._local(arguments, rest)
    taps, others = local.taps(live), local.others()
    _, push, inputs = jax.linearize(local.after_with_inputs, live, taps, others, has_aux=True)
    width = live[0].shape[-1]
    none = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    # slopes[to][of]: d s_to / d s_of, [n, width].
    of_carry = [push([jnp.ones_like(a) if i == at else jnp.zeros_like(a)
                      for i, a in enumerate(live)], none(taps), none(others))
                for at in range(len(live))]
    slopes = [[of_carry[of][to] for of in range(len(live))] for to in range(len(live))]

    def blocks(heard: Mapping, name) -> list[Array]:
      """d s_to / d what neurons hear by this name, [n, its size] for each `to`."""
      found = []
      for block in range(heard[name].shape[-1] // width):
        one = {name: _block(heard[name], block, width)}
        found.append(push(none(live), *({**none(own), **(one if own is heard else {})}
                                        for own in (taps, others))))
      return [jnp.concatenate([own[to] for own in found], -1) for to in range(len(live))]

    def carried(trace: list[Array]) -> list[Array]:
      wide = lambda d, p: jnp.expand_dims(_tiled(d, p.shape[-1]), tuple(range(1, p.ndim - 1)))
      return [sum(wide(d, p) * p for d, p in zip(row, trace)) for row in slopes]

    weights, biases = {}, {}
    for op in self.ops:
      own = blocks(taps, op.number)
      x = inputs[op.number]
      weights[op.number] = [p + x[:, :, None].astype(p.dtype) * d[:, None, :]
                            for p, d in zip(carried(traces.weights[op.number]), own)]
      if op.bias is not None:
        biases[op.number] = [p + d for p, d in zip(carried(traces.biases[op.number]), own)]
    return Traces(weights, biases, {
        path: [p + d for p, d in zip(carried(traces.others[path]), blocks(others, path))]
        for path in others})


def _tiled(d: Array, size: int) -> Array:
  """[n, width] for each of the parts of [n, size]."""
  return jnp.tile(d, (1, size // d.shape[-1]))


def _like(given: Array, made: Array) -> Array:
  """A cotangent in the shape of what it belongs to: of a bias [n, size] is summed over samples."""
  summed = given if given.size == made.size else jnp.sum(given, 0)
  return summed.reshape(made.shape).astype(made.dtype)


def _block(like: Array, block: int, width: int) -> Array:
  """Zeros, and ones in one part of the last axis."""
  at = jnp.arange(like.shape[-1]) // width == block
  return jnp.broadcast_to(at.astype(like.dtype), like.shape)
