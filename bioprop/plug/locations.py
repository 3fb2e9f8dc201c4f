"""The vectors that an op's weight multiplies, at every location of the op's input.

A dense layer has one for each position, an embedding a one-hot vector for each token, a convolution
a patch for each place of its output. What an op is follows from its equations, and is then tried:
the derivative in the weight, at a random input and cotangent, is the sum of outer products or not.
"""
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.plug.traced import TracedOp
from bioprop.typing import Array

TOLERANCE = 0.02  # Of checks: more than bfloat16 rounds, less than what is wrong.


class Located(NamedTuple):
  """An op as a matrix [K, O] that multiplies vectors.

  Attributes:
    vectors: maps the op's input, of a batch of one, to [T, K].
    outputs: O; the op's output is [T, O] in this order.
    transposed: the weight is kept as [O, K].
  """
  vectors: Callable[[Array], Array]
  outputs: int
  transposed: bool

  def gradient(self, x: Array, g: Array) -> Array:
    """The derivative in the weight, flat, at an input and the cotangent of the output."""
    matrix = self.vectors(x).T @ g.reshape(-1, self.outputs)
    return (matrix.T if self.transposed else matrix).reshape(-1)


def locate(op: TracedOp, path: str) -> Located | None:
  """Finds what the weight at `path`, the op's only one, multiplies; None: nothing of this kind."""
  weight = op.weights[path]
  draw = np.random.RandomState(0)
  rows = weight.shape[0] if weight.shape else 1
  with jax.ensure_compile_time_eval():
    x = (jnp.asarray(draw.standard_normal(op.x.shape), op.x.dtype)
         if jnp.issubdtype(op.x.dtype, jnp.inexact)
         else jnp.asarray(draw.randint(0, rows, op.x.shape), op.x.dtype))
    g = jnp.asarray(draw.standard_normal(op.y.shape), op.y.dtype)
    zeros = jnp.zeros(weight.shape, weight.dtype)
    gradient = jax.vjp(lambda w: op.linear({path: w}, x), zeros)[1](g)[0].reshape(-1)
    for located in itertools.chain(_rows(op, weight), _tokens(op, weight), _patches(op, weight)):
      if distance(located.gradient(x, g).astype(gradient.dtype), gradient) < TOLERANCE:
        return located
  return None


def distance(a: Array, b: Array) -> Array:
  """The largest difference over the largest value; 0 of zeros."""
  size = jnp.max(jnp.abs(b), initial=0)
  return jnp.max(jnp.abs(a - b), initial=0) / jnp.where(size > 0, size, 1)


def _rows(op, weight) -> Iterator[Located]:
  """The input's last axes are the vectors, at T positions."""
  if not jnp.issubdtype(op.x.dtype, jnp.inexact):
    return
  count, size = math.prod(op.x.shape), math.prod(weight.shape)
  for split in range(1, len(weight.shape)):
    one, other = math.prod(weight.shape[:split]), math.prod(weight.shape[split:])
    for inputs, outputs, transposed in ((one, other, False), (other, one, True)):
      if size and count * outputs == inputs * math.prod(op.y.shape) and not count % inputs:
        yield Located(lambda x, inputs=inputs: x.reshape(-1, inputs), outputs, transposed)


def _tokens(op, weight) -> Iterator[Located]:
  """Each token chooses a row."""
  if jnp.issubdtype(op.x.dtype, jnp.integer) and len(weight.shape) == 2:
    one_hot = lambda x: jax.nn.one_hot(x.reshape(-1), weight.shape[0], dtype=weight.dtype)
    yield Located(one_hot, weight.shape[1], False)


def _patches(op, weight) -> Iterator[Located]:
  """A convolution of one group of features, with the channels last."""
  found = [eqn for eqn in op.equations if eqn.primitive.name == 'conv_general_dilated']
  if len(found) != 1:
    return
  (conv,), last = found, len(weight.shape) - 1
  numbers, shape = conv.params['dimension_numbers'], conv.invars[0].aval.shape
  in_order = (numbers.lhs_spec == numbers.out_spec == (0, last, *range(1, last))
              and numbers.rhs_spec == (last, last - 1, *range(last - 1)))
  if in_order and conv.params['feature_group_count'] == conv.params['batch_group_count'] == 1 and (
      shape[0] == 1 and conv.invars[1].aval.shape == weight.shape):
    yield Located(lambda x: _cut(op.value(conv.invars[0], x), conv, weight.shape[:-2]),
                  weight.shape[-1], False)


def _cut(x: Array, conv: core.JaxprEqn, window: tuple[int, ...]) -> Array:
  """The patches [T, K] of an image [1, ..., channels] that a convolution multiplies."""
  p = conv.params
  edges = [(low, high, dilation - 1) for (low, high), dilation in zip(p['padding'],
                                                                     p['lhs_dilation'])]
  x = jax.lax.pad(x[0], jnp.zeros((), x.dtype), [*edges, (0, 0, 0)])
  # Where each place of the output [T] sees each place of the window: one gather, which compiles in
  # a fraction of the time that a slice for each of these takes.
  spots = np.zeros((1, 1), int)
  for size, stride, places, dilation, length in zip(
      conv.outvars[0].aval.shape[1:-1], p['window_strides'], window, p['rhs_dilation'], x.shape):
    along = np.arange(size)[:, None] * stride + np.arange(places) * dilation
    spots = spots[:, None, :, None] * length + along[None, :, None, :]
    spots = spots.reshape(spots.shape[0] * size, -1)
  pixels = x.reshape(-1, x.shape[-1])
  return pixels.at[spots].get(mode='promise_in_bounds').reshape(len(spots), -1)
