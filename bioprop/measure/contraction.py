r"""K_cd(x, x') = SUM_theta J_c(x) J~_d(x') of one weight, by the cheapest of four ways.

The factors are a [n, T, K], g [n, C, T, O] of x, and b [m, T, K], h [m, D, T, O] of x'. A weight's
own gradients need not be formed for the inner products between them:

                 SUM over       multiply-adds
  vectors        K and O        n m (K + C D O)                                   T = 1 only
  gradients      (K O)          (n C + m D) T K O + n m C D K O
  half           t, t' of both  n m (T^2 K + T^2 D O + T C D O)
  through        t of x         m D T K O + n m (T D K O + T C D O)

`vectors` multiplies (a . b) with (g_c . h_d). `gradients` forms both matrices a^T g and b^T h
[K, O], as many as there are samples and outputs, and multiplies them. `half` takes
Phi = a_t . b_t' [T, T] of each pair of samples, sends h through it, and meets g. `through` forms
b^T h only and sends a through it. Early convolutions have many locations and few channels, where
`gradients` is cheap; late ones the reverse, where `half` is; `through` serves where there are few
locations and x' has fewer outputs than x, as with errors given. Where x' has its gradients as they
are, they need not be formed, and `gradients` and `through` remain.

Under the trace over outputs, D is the same as C, and C D becomes C wherever both appear.

Novak, Sohl-Dickstein & Schoenholz (2022, arXiv 2206.08720) choose between the same orders for the
NTK of backprop ('Jacobian contraction', 'NTK-vector products', 'structured derivatives').
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.measure.jacobian import Jacobian, matrices, summed
from bioprop.typing import Array

_PARTS = 4  # Of a symmetric kernel's rows: five eighths of it are computed.
_FLOATS = 2**24  # Of what is held beside the result: 64 MiB in float32.


class Sizes(NamedTuple):
  """Of a contraction: samples, outputs [n, C] and [m, D], locations, inputs, outputs of the op."""
  n: int
  c: int
  m: int
  d: int
  t: int
  k: int
  o: int


def costs(sizes: Sizes, trace: bool = False, formed: bool = False) -> dict[str, int]:
  """The multiply-adds of each way that there is; see the table above.

  Args:
    sizes: of the factors.
    trace: over the outputs.
    formed: x' has its gradients as they are.
  """
  n, c, m, d, t, k, o = sizes
  pairs, cd = n * m, c if trace else c * d
  form = 0 if formed else m * d * t * k * o
  ways = {
      'gradients': n * c * t * k * o + form + pairs * cd * k * o,
      'through': form + pairs * (t * d * k * o + t * cd * o),
  }
  if not formed:
    ways['half'] = pairs * (t * t * k + t * t * d * o + t * cd * o)
    if t == 1:
      ways['vectors'] = pairs * (k + cd * o)
  return ways


def contract(left: tuple[Array, Array], right: tuple[Array, Array] | Array, trace: bool) -> Array:
  """One weight's kernel, by the way that costs least.

  Args:
    left: a [n, T, K] and g [n, C, T, O].
    right: b [m, T, K] and h [m, D, T, O], or the gradients [m, D, K O] themselves.
    trace: over the outputs.

  Returns:
    [n, C, m, D], or [n, m] under the trace.
  """
  (a, g), formed = left, not isinstance(right, tuple)
  m, d = right.shape[:2] if formed else right[1].shape[:2]
  sizes = Sizes(g.shape[0], g.shape[1], m, d, g.shape[2], a.shape[2], g.shape[3])
  ways = costs(sizes, trace, formed)
  way = min(ways, key=ways.__getitem__)
  if way == 'vectors':
    return _vectors(left, right, trace)
  if way == 'half':
    return _half(left, right, trace)
  gradients = right.reshape(m, d, *sizes[-2:]) if formed else right
  return (_through if way == 'through' else _gradients)(left, gradients, trace)


def gram(factors: tuple[Array, Array] | Array, trace: bool) -> Array:
  """One weight's kernel of samples with themselves, from its upper triangle.

  Args:
    factors: a [n, T, K] and g [n, C, T, O], or the gradients [n, C, p] themselves.
    trace: over the outputs.

  Returns:
    [n, C, n, C], or [n, n] under the trace.
  """
  product = lambda g, h: inner(g, h, trace)
  if not isinstance(factors, tuple):
    return _triangle(product, factors, trace)
  a, g = factors
  ways = costs(Sizes(*g.shape[:2], *g.shape[:2], g.shape[2], a.shape[2], g.shape[3]), trace)
  if min(ways, key=ways.__getitem__) != 'gradients':
    return _triangle(lambda one, other: contract(one, other, trace), factors, trace)
  total = 0.
  for at in _slices(a.shape[2], len(g) * g.shape[1] * g.shape[3]):
    total += _triangle(product, _flat(matrices(a[:, :, at], g)), trace)  # Formed once.
  return total


@jax.default_matmul_precision('highest')
def formed(jacobian: Jacobian, samples: int, trace: bool) -> Jacobian:
  """The same, with the gradients of those weights whose factors are larger, and of their biases.

  Early convolutions see many locations: their gradients are smaller than their cotangents, and are
  what `gradients`, the cheapest way there, would form.

  Args:
    jacobian: of any of the samples.
    samples: how many the kernel is of.
    trace: over the outputs.
  """

  def is_smaller(a, g):
    (_, c, t, o), k = g.shape, a.shape[2]
    ways = costs(Sizes(samples, c, samples, c, t, k, o), trace)
    return c * k * o < a[0].size + g[0].size and min(ways, key=ways.__getitem__) == 'gradients'

  small = {path for path, factors in jacobian.outer.items() if is_smaller(*factors)}
  weights = {path: _flat(matrices(*jacobian.outer[path])) for path in small}
  biases = {bias: summed(jacobian.outer[path][1])
            for bias, path in jacobian.biases if path in small}
  return Jacobian({path: one for path, one in jacobian.outer.items() if path not in small},
                  {**jacobian.full, **weights, **biases},
                  tuple(pair for pair in jacobian.biases if pair[1] not in small))


def inner(g: Array, h: Array, trace: bool) -> Array:
  """Inner products of [n, C, p] and [m, D, p]: [n, C, m, D], or their trace [n, m]."""
  if trace:
    return g.reshape(len(g), -1) @ h.reshape(len(h), -1).T
  rows = g.reshape(-1, g.shape[2]) @ h.reshape(-1, h.shape[2]).T
  return rows.reshape(*g.shape[:2], *h.shape[:2])


def _vectors(left, right, trace):
  (a, g), (b, h) = left, right
  inputs, outputs = a[:, 0] @ b[:, 0].T, inner(g[:, :, 0], h[:, :, 0], trace)
  return outputs * (inputs if trace else inputs[:, None, :, None])


def _gradients(left, right, trace):
  """In slices of the op's inputs, so that no whole gradient is held."""
  (a, g), formed = left, not isinstance(right, tuple)
  of = lambda factors, at: matrices(factors[0][:, :, at], factors[1])
  rows = max(len(g) * g.shape[1], math.prod((right if formed else right[1]).shape[:2]))
  total = 0.
  for at in _slices(a.shape[2], rows * g.shape[3]):
    total += inner(_flat(of(left, at)),
                   _flat(right[:, :, at] if formed else of(right, at)), trace)
  return total


def _slices(size: int, floats: int) -> list[slice]:
  """Parts of an axis that hold no more than `_FLOATS`, with so many for each entry."""
  step = max(1, _FLOATS // floats)
  return [slice(start, start + step) for start in range(0, size, step)]


def _flat(gradients: Array) -> Array:
  return gradients.reshape(*gradients.shape[:2], -1)


def _triangle(product, one, trace: bool) -> Array:
  """`product` of parts of the samples with parts; what is below the diagonal is mirrored."""
  n = len(jax.tree.leaves(one)[0])
  step = -(-n // _PARTS)
  part = lambda at: jax.tree.map(lambda leaf: leaf[at:at + step], one)
  parts = [part(at) for at in range(0, n, step)]
  lines, across = [], 1 if trace else 2
  for i, left in enumerate(parts):
    lines.append([lines[j][i].transpose((1, 0) if trace else (2, 3, 0, 1)) if j < i else
                  product(left, right) for j, right in enumerate(parts)])
  return jnp.concatenate([jnp.concatenate(line, across) for line in lines], 0)


def _half(left, right, trace):
  (a, g), (b, h) = left, right

  def column(one):
    b, h = one  # [T, K] and [D, T, O], of one x'.
    phi = a.reshape(-1, a.shape[2]) @ b.T
    sent = phi @ h.swapaxes(0, 1).reshape(h.shape[1], -1)
    return _met(g, sent.reshape(*a.shape[:2], h.shape[0], -1), trace)

  return _columns(column, (b, h), a.shape[0] * a.shape[1] * (b.shape[1] + h.shape[1] * h.shape[3]))


def _through(left, right, trace):
  a, g = left
  d = right[1].shape[1] if isinstance(right, tuple) else right.shape[1]

  def column(one):
    formed = one if not isinstance(one, tuple) else matrices(*(leaf[None] for leaf in one))[0]
    sent = a.reshape(-1, a.shape[2]) @ formed.swapaxes(0, 1).reshape(a.shape[2], -1)
    return _met(g, sent.reshape(*a.shape[:2], d, -1), trace)

  return _columns(column, right, d * g.shape[3] * (a.shape[0] * a.shape[1] + a.shape[2]))


def _met(g: Array, sent: Array, trace: bool) -> Array:
  """Of g [n, C, T, O] and what x' sends there [n, T, D, O]: [n, C, D], or the trace [n]."""
  return jnp.einsum('ncto,ntco->n' if trace else 'ncto,ntdo->ncd', g, sent)


def _columns(column, right, floats: int) -> Array:
  """`column` of each x', several at once while what they hold, `floats` each, is small."""
  together = max(1, min(_FLOATS // floats, len(jax.tree.leaves(right)[0])))
  stacked = jax.lax.map(column, right, batch_size=together)
  return jnp.moveaxis(stacked, 0, 1 if stacked.ndim == 2 else 2)
