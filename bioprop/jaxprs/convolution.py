"""A convolution as XLA's CPU compiler runs it fast; times are said of two cores.

Layout. XLA:CPU hands a convolution to its fast kernels only in the layout NHWC-HWIO-NHWC. It brings
others into that layout, but only outside of loops (jax issue 12868): in `lax.scan`, gradients ran
some 20 times slower. So the transposes are written out.

Kernel gradients. The gradient of a kernel is a convolution whose window is as large as the image
and whose batch are the channels. XLA transposes both operands for it, fused with whatever made them
(normalisation, ReLU), which reads memory across the grain: more than half of the time of a ResNet's
step. Here nothing is transposed: a few samples at a time, the patches of the input are written side
by side and multiplied by the cotangent, one matrix product for all positions of the kernel.

Few features. The matrix products of XLA's kernels are as wide as there are output features, and a
product of 6 or 16 columns leaves most of a register unused. Neighbouring positions of the output
are made together, as features of one convolution with a wider kernel, filled up by zeros, which
takes strides as large.

Replicas. A convolution by groups, which `jax.vmap` makes where the kernels are mapped over too, has
no fast kernel. The groups are run one after the other.
"""
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from bioprop.typing import Array

# Multiply-adds below which nothing is gained.
_WORTH = 2**20
# Channels of an input whose patches are worth it: copied in whole cache lines (16 float32), and
# from 128 channels on XLA's own products are wide enough.
_CHANNELS = 16, 64
# Positions of the cotangent in one matrix product: 9 patches of 16 to 64 channels then fit the
# second-level cache, or nearly.
_ROWS = 4096
# Features that fill the registers of a matrix product, and positions made together at most: with
# more, zeros cost what the width gains.
_WIDTH, _TOGETHER = 32, 4


def convolution(lhs: Array, rhs: Array, alone: bool, **params: Any) -> Array:
  """`lax.conv_general_dilated_p` of any kind, with the same result to rounding.

  Args:
    lhs, rhs: the operands.
    alone: they lie on one device: of a batch that is spread over several, no device has a few
      samples in turn.
    **params: of the primitive.
  """
  spec, groups = params['dimension_numbers'], params['feature_group_count']
  if 1 < groups < rhs.shape[spec.rhs_spec[0]]:  # Groups of one feature are left to XLA.
    return _one_by_one(lhs, rhs, groups, alone, params)
  outs, window = _positions(lhs, rhs, params), [rhs.shape[axis] for axis in spec.rhs_spec[2:]]
  if not alone or not _is_worth_it(lhs, rhs, outs, params):
    return _in_layout(lhs, rhs, **params)
  if _meets_one(lhs, outs, window, params):
    return _from_one(lhs, rhs, outs, params)
  if math.prod(outs) >= math.prod(window):
    return _in_layout(lhs, rhs, together=_together(rhs, outs, window, params), **params)
  if _CHANNELS[0] <= lhs.shape[spec.lhs_spec[0]] <= _CHANNELS[1]:
    return _kernel_gradient(lhs, rhs, outs, window, params)
  return _in_layout(lhs, rhs, **params)


def _is_worth_it(lhs: Array, rhs: Array, outs: list[int], params: dict[str, Any]) -> bool:
  """Whether there is work enough, neither dilated at its input nor by groups."""
  spec = params['dimension_numbers']
  work = math.prod(outs) * lhs.shape[spec.lhs_spec[0]] * rhs.size
  return (lhs.dtype == rhs.dtype == jnp.float32 and work >= _WORTH
          and params['preferred_element_type'] in (None, jnp.float32)
          and params['feature_group_count'] == params['batch_group_count'] == 1
          and all(step == 1 for step in params['lhs_dilation']))


def _positions(lhs: Array, rhs: Array, params: dict[str, Any]) -> list[int]:
  """The output's size along each spatial axis, if nothing is dilated at the input."""
  spec = params['dimension_numbers']
  rows = zip(spec.lhs_spec[2:], spec.rhs_spec[2:], params['padding'], params['rhs_dilation'],
             params['window_strides'])
  return [(lhs.shape[a] + sum(padding) - (rhs.shape[b] - 1) * dilation - 1) // stride + 1
          for a, b, padding, dilation, stride in rows]


def _in_layout(lhs, rhs, *, dimension_numbers, together=1, **params):
  """The same convolution, with transposes around the layout (N...C, ...IO, N...C)."""
  from_lhs, from_rhs, to_out = dimension_numbers
  last = lhs.ndim - 1
  inner = tuple(range(1, last))
  layout = lax.ConvDimensionNumbers(
      (0, last, *inner), (last, last - 1, *range(last - 1)), (0, last, *inner))
  lhs = lax.transpose(lhs, (from_lhs[0], *from_lhs[2:], from_lhs[1]))
  rhs = lax.transpose(rhs, (*from_rhs[2:], from_rhs[1], from_rhs[0]))
  if together > 1:
    out = _wide(lhs, rhs, together, dimension_numbers=layout, **params)
  else:
    out = lax.conv_general_dilated_p.bind(lhs, rhs, dimension_numbers=layout, **params)
  back = (to_out[0], *to_out[2:], to_out[1])  # Where each axis of `out` belongs.
  return lax.transpose(out, tuple(back.index(axis) for axis in range(lhs.ndim)))


def _together(rhs: Array, outs: list[int], window: list[int], params: dict[str, Any]) -> int:
  """How many neighbours along the last axis of the output are to be made together."""
  features = rhs.shape[params['dimension_numbers'].rhs_spec[0]]
  if window[-1] < 3 or (params['window_strides'][-1], params['rhs_dilation'][-1]) != (1, 1):
    return 1  # Zeros would cost more than the width gains.
  return next(count for count in range(min(_TOGETHER, max(1, _WIDTH // features)), 0, -1)
              if outs[-1] % count == 0)


def _wide(lhs, rhs, together, *, window_strides, **params):
  """A convolution in the fast layout that makes `together` positions of its output as features."""
  sides = [(0, 0)] * (rhs.ndim - 3)
  shifted = [jnp.pad(rhs, (*sides, (at, together - 1 - at), (0, 0), (0, 0)))
             for at in range(together)]
  out = lax.conv_general_dilated_p.bind(
      lhs, jnp.concatenate(shifted, -1), window_strides=(*window_strides[:-1], together), **params)
  return out.reshape(*out.shape[:-2], -1, rhs.shape[-1])


def _meets_one(lhs: Array, outs: list[int], window: list[int], params: dict[str, Any]) -> bool:
  """Whether the input has one position, which every position of the output sees."""
  sizes = [lhs.shape[axis] for axis in params['dimension_numbers'].lhs_spec[2:]]
  steps = (*params['window_strides'], *params['rhs_dilation'])
  return all(size == 1 for size in sizes) and all(step == 1 for step in steps) and all(
      size - 1 <= low < width for size, width, (low, _) in zip(outs, window, params['padding']))


def _from_one(lhs, rhs, outs, params):
  """A matrix product, as the window meets nothing but padding elsewhere."""
  (n, c, *inner), (o, i, *spatial), to_out = params['dimension_numbers']
  start, stop = [0] * rhs.ndim, list(rhs.shape)
  for axis, size, (low, _) in zip(spatial, outs, params['padding']):
    start[axis], stop[axis] = low - size + 1, low + 1
  kernel = lax.transpose(lax.rev(lax.slice(rhs, start, stop), spatial), (i, *spatial, o))
  out = lax.dot_general(lax.transpose(lhs, (n, c, *inner)).reshape(lhs.shape[n], -1), kernel,
                        (((1,), (0,)), ((), ())), precision=params['precision'])
  back = (to_out[0], *to_out[2:], to_out[1])
  return lax.transpose(out, tuple(back.index(axis) for axis in range(out.ndim)))


def _kernel_gradient(lhs, rhs, outs, window, params):
  """The sum over samples, a few at a time, of their patches times the cotangent."""
  spec = params['dimension_numbers']
  # The batch of this convolution is channels, and its features are samples: n, ..., c for both.
  x = lax.transpose(lhs, (spec.lhs_spec[1], *spec.lhs_spec[2:], spec.lhs_spec[0]))
  g = lax.transpose(rhs, (spec.rhs_spec[1], *spec.rhs_spec[2:], spec.rhs_spec[0]))
  n, c, features = len(x), x.shape[-1], g.shape[-1]
  few = max(count for count in range(1, n + 1)
            if n % count == 0 and (count == 1 or count * math.prod(window) <= _ROWS))

  def product(x, g):
    x = lax.pad(x, jnp.zeros((), x.dtype),
                [(0, 0, 0), *((low, high, 0) for low, high in params['padding']), (0, 0, 0)])
    for axis in range(len(outs), 0, -1):  # Patches of rows first: fewer, and longer, copies.
      size, step = window[axis - 1], params['rhs_dilation'][axis - 1]
      starts = [at * params['window_strides'][axis - 1] for at in range(outs[axis - 1])]
      x = jnp.concatenate([lax.slice_in_dim(x, start, start + (size - 1) * step + 1, step, axis)
                           for start in starts], -1)
    # Turned as a step of its own, or the product reads the cotangent by columns.
    turned = lax.optimization_barrier(g.reshape(-1, features).T)
    return lax.dot(turned, x.reshape(-1, x.shape[-1]), precision=params['precision'])

  if few == n:
    total = product(x, g)
  else:
    cut = lambda a: a.reshape(n // few, few, *a.shape[1:])
    zero = jnp.zeros((features, math.prod(outs) * c), x.dtype)
    total, _ = lax.scan(lambda total, some: (total + product(*some), None), zero, (cut(x), cut(g)))
  total = total.reshape(features, *outs, c)
  back = (spec.out_spec[1], *spec.out_spec[2:], spec.out_spec[0])
  return lax.transpose(total, tuple(back.index(axis) for axis in range(total.ndim)))


def _one_by_one(lhs, rhs, groups, alone, params):
  """A convolution by groups, one group after the other."""
  (_, features, *_), (made, *_), to_out = params['dimension_numbers']
  one = {**params, 'feature_group_count': 1}
  apart = lambda array, axis: jnp.moveaxis(array.reshape(
      *array.shape[:axis], groups, -1, *array.shape[axis + 1:]), axis, 0)
  out = lax.map(lambda pair: convolution(*pair, alone, **one),
                (apart(lhs, features), apart(rhs, made)))
  out = jnp.moveaxis(out, 0, to_out[1])
  return out.reshape(*out.shape[:to_out[1]], -1, *out.shape[to_out[1] + 2:])
