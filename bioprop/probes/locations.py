"""The vectors that an op's weight multiplies, at every location of the op's input.

A matrix product has one for each position, a lookup a one-hot vector for each token, a convolution
a patch for each place of its output: what is what stands in the op's equation. The derivative in
the weight is then the sum over locations of outer products of vectors and cotangents.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.jaxprs.layout import bind
from bioprop.network.values import Frame, SeenOp
from bioprop.probes.made import Made
from bioprop.typing import Array

TOLERANCE = 0.02  # Of checks: more than bfloat16 rounds, less than what is wrong.


class Located(NamedTuple):
  """An op as a matrix [K, O] that multiplies vectors.

  Attributes:
    vectors: maps the op's input, of a batch of one, to [T, K].
    cotangents: maps the cotangent of the op's output to [T, O].
    order: which entry of the parameter, flattened, stands at each place of the matrix, flattened;
      None: the same.
    outputs: O.
  """
  vectors: Callable[[Array], Array]
  cotangents: Callable[[Array], Array]
  order: np.ndarray | None
  outputs: int


class _View(NamedTuple):
  """A product as `Located`: `rows` takes the cotangent of the product; the matrix is the weight
  with its axes in this order, the last of them O."""
  vectors: Callable[[Array], Array]
  rows: Callable[[Array], Array]
  axes: tuple[int, ...]
  outputs: int


def locate(op: SeenOp, frame: Frame) -> Located | None:
  """Finds what the weight of an op multiplies that is made of one parameter.

  Args:
    op: the op.
    frame: where it stands.

  Returns:
    None if the derivative in the parameter is no sum of outer products, or it is not known.
  """
  eqn, at = op.nodes[0].eqn, op.nodes[0].ins.index(op.weight)
  view = _VIEWS.get(eqn.primitive.name, lambda eqn, at: None)(eqn, at)
  back = _back(op, frame)
  if view is None or back is None:
    return None
  made, order = Made(frame, op.weight), None
  if made.nodes or view.axes != tuple(range(len(view.axes))):
    order = made.order()
    if order is None:
      return None
    order = order.transpose(view.axes).reshape(-1)
    order = None if np.array_equal(order, np.arange(order.size)) else order
  return Located(view.vectors, lambda g: view.rows(back(g)), order, view.outputs)


def distance(a: Array, b: Array) -> Array:
  """The largest difference over the largest value; 0 of zeros."""
  size = jnp.max(jnp.abs(b), initial=0)
  return jnp.max(jnp.abs(a - b), initial=0) / jnp.where(size > 0, size, 1)


def _back(op: SeenOp, frame: Frame) -> Callable[[Array], Array] | None:
  """Maps the cotangent of an op's output to that of its product; None if it is not known."""
  product, *after = op.nodes
  known: Mapping[int, Any] = frame.constants
  if any(at not in known for node in after for at in node.ins
         if at not in (product.outs[0], op.bias) and not any(at in one.outs for one in after)):
    return None

  def function(y):
    values = {**known, product.outs[0]: y}
    if op.bias is not None:
      values[op.bias] = jnp.zeros(frame.avals[op.bias].shape, frame.avals[op.bias].dtype)
    for node in after:
      values.update(zip(node.outs, bind(node.eqn, [values[at] for at in node.ins])))
    return values[op.out]

  aval = frame.avals[product.outs[0]]
  return lambda g: jax.vjp(function, jnp.zeros(aval.shape, aval.dtype))[1](g)[0]


def _dot(eqn: core.JaxprEqn, at: int) -> _View | None:
  """A matrix product: the input's contracted axes are the vectors, at T positions."""
  contracted, batch = eqn.params['dimension_numbers']
  if any(batch):
    return None
  ws, xs = tuple(contracted[at]), tuple(contracted[1 - at])
  shape, x_shape = eqn.invars[at].aval.shape, eqn.invars[1 - at].aval.shape
  free = tuple(axis for axis in range(len(shape)) if axis not in ws)
  places = tuple(axis for axis in range(len(x_shape)) if axis not in xs)
  inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in (ws, free))
  vectors = lambda x: x.transpose(places + xs).reshape(-1, inputs)
  rows = lambda g: g.reshape(-1, outputs) if at else g.reshape(outputs, -1).T
  return _View(vectors, rows, ws + free, outputs)


def _lookup(eqn: core.JaxprEqn, at: int) -> _View | None:
  """Each token chooses a row of a table."""
  numbers, (rows, *rest) = eqn.params['dimension_numbers'], eqn.invars[at].aval.shape
  ndim = len(eqn.outvars[0].aval.shape)
  chooses_rows = (numbers.collapsed_slice_dims == numbers.start_index_map == (0,)
                  and numbers.offset_dims == tuple(range(ndim - len(rest), ndim))
                  and not numbers.operand_batching_dims
                  and tuple(eqn.params['slice_sizes']) == (1, *rest))
  if not chooses_rows:
    return None
  dtype, outputs = eqn.invars[at].aval.dtype, math.prod(rest)
  one_hot = lambda x: jax.nn.one_hot(x.reshape(-1), rows, dtype=dtype)
  return _View(one_hot, lambda g: g.reshape(-1, outputs), tuple(range(1 + len(rest))), outputs)


def _convolution(eqn: core.JaxprEqn, at: int) -> _View | None:
  """A convolution of one group of features."""
  p, numbers = eqn.params, eqn.params['dimension_numbers']
  x, w = (eqn.invars[side].aval.shape for side in (0, 1))
  if at != 1 or p['feature_group_count'] != 1 or p['batch_group_count'] != 1 or (
      x[numbers.lhs_spec[0]] != 1):
    return None
  last = lambda spec: (spec[0], *spec[2:], spec[1])
  out, inward, *places = numbers.rhs_spec
  window = tuple(w[axis] for axis in places)
  vectors = lambda a: _cut(a.transpose(last(numbers.lhs_spec)), eqn, window)
  rows = lambda g: g.transpose(last(numbers.out_spec)).reshape(-1, w[out])
  return _View(vectors, rows, (*places, inward, out), w[out])


def _cut(x: Array, conv: core.JaxprEqn, window: tuple[int, ...]) -> Array:
  """The patches [T, K] of an image [1, ..., channels] that a convolution multiplies."""
  p, out = conv.params, conv.outvars[0].aval.shape
  edges = [(low, high, dilation - 1) for (low, high), dilation in zip(p['padding'],
                                                                     p['lhs_dilation'])]
  x = jax.lax.pad(x[0], jnp.zeros((), x.dtype), [*edges, (0, 0, 0)])
  # Where each place of the output [T] sees each place of the window: one gather, which compiles in
  # a fraction of the time that a slice for each of these takes.
  spots = np.zeros((1, 1), int)
  for axis, stride, places, dilation, length in zip(
      p['dimension_numbers'].out_spec[2:], p['window_strides'], window, p['rhs_dilation'], x.shape):
    along = np.arange(out[axis])[:, None] * stride + np.arange(places) * dilation
    spots = spots[:, None, :, None] * length + along[None, :, None, :]
    spots = spots.reshape(spots.shape[0] * out[axis], -1)
  pixels = x.reshape(-1, x.shape[-1])
  return pixels.at[spots].get(mode='promise_in_bounds').reshape(len(spots), -1)


_VIEWS = {'dot_general': _dot, 'gather': _lookup, 'conv_general_dilated': _convolution}
