r"""The effective empirical neural tangent kernel of a learning rule.

A network f(x; theta) whose parameters follow a rule's pseudogradients of a loss moves by

  df(x) / dt = - SUM_x' K(x, x') e(x') ,   K(x, x') = SUM_theta J(x) J~(x')^T ,

where e(x') is the error, the gradient of the loss in the output, J the Jacobian of the output in
the parameters, and J~ what the rule takes for it: row c is the pseudogradient that the error 1 at
output c gives (Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 3). Under backprop J~ = J, and
K is the empirical NTK (Jacot, Gabriel & Hongler 2018, arXiv 1806.07572); under other rules K need
not be symmetric. A layer that sees one vector a of each sample, and the cotangent g_c of output c,
has the Jacobian g_c a^T, so that

  K_cd(x, x') = (a . a') (g_c . g~'_d)

and the Jacobian, which is as large as the parameters, is never formed.
"""
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.typing import Array, PyTree


class Jacobian(NamedTuple):
  """The derivatives of each sample's outputs [C] in the parameters, by the parameter's path.

  Attributes:
    outer: factors of those that are outer products, a [n, K] and g [n, C, O].
    full: the others, [n, C, p], p the parameter's size; a matrix [K, O] in this order where the
      other Jacobian has factors.
  """
  outer: Mapping[str, tuple[Array, Array]]
  full: Mapping[str, Array]


# Maps samples [n, ...] to their Jacobian.
Differentiate = Callable[[PyTree], Jacobian]


def entk(
    true: Differentiate,
    pseudo: Differentiate,
    x: PyTree,
    x2: PyTree | None = None,
    *,
    trace: bool = False,
    per_layer: bool = False,
    block: int | None = None,
) -> Array | dict[str, Array]:
  """Computes the effective eNTK of a network under a rule.

  Args:
    true: gives the Jacobian.
    pseudo: gives the rule's. `bioprop.jacobians` makes both from a model.
    x: samples, an array or a tree of arrays [n, ...].
    x2: samples [n', ...], as `pseudo` takes them; None: x.
    trace: sum over the outputs, K_cc.
    per_layer: one kernel for each parameter, which the layer's path names, and not their sum.
    block: at most so many samples' derivatives are held at once, of x and of x2; None: all.

  Returns:
    K [n, n', C, C], or [n, n'] under `trace`; by parameter path if `per_layer`. The last axis has
    as many entries as the pseudo-Jacobian has rows for a sample.

  Raises:
    MeasureError: if there are no samples, or block is not positive.
  """
  if block is not None and block < 1:
    raise MeasureError(f'block is {block}, and must be at least 1, or None for all samples.')
  x2 = x if x2 is None else x2
  rows, columns = _blocks(x, block), _blocks(x2, block)
  true, pseudo = (f if isinstance(f, Partial) else Partial(f) for f in (true, pseudo))
  lines = []
  for row in rows:
    left = _call(true, row)
    lines.append(_joined([_contract(trace, per_layer, left, _call(pseudo, column))
                          for column in columns], 1))
  return _joined(lines, 0)


def _blocks(x: PyTree, block: int | None) -> list[PyTree]:
  count = {leaf.shape[0] for leaf in jax.tree.leaves(x)}
  if len(count) != 1 or 0 in count:
    raise MeasureError(f'the samples are to be arrays [n, ...] of one n > 0, and have n of '
                       f'{sorted(count)}.')
  n = count.pop()
  size = min(block or n, n)
  part = lambda at: jax.tree.map(lambda leaf: leaf[at:at + size], x)
  return [part(at) for at in range(0, n, size)]


def _joined(parts, axis: int):
  return parts[0] if len(parts) == 1 else jax.tree.map(
      lambda *leaves: jnp.concatenate(leaves, axis), *parts)


@jax.jit
def _call(function, x):
  """Compiled once for each function; the arrays that a Partial holds are arguments."""
  return function(x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _contract(trace: bool, per_layer: bool, left: Jacobian, right: Jacobian):
  """One block of the kernel."""
  kernels = {}
  for path, (a, g) in left.outer.items():
    if path in right.full:
      kernels[path] = _through(trace, a, g, right.full[path])
      continue
    b, h = right.outer[path]
    inputs, outputs = a @ b.T, _inner(trace, g, h)
    kernels[path] = outputs * inputs.reshape(inputs.shape + (1,) * (outputs.ndim - 2))
  for path, j in left.full.items():
    kernels[path] = _inner(trace, j, right.full[path])
  if per_layer:
    return kernels
  return functools.reduce(jnp.add, kernels.values())


def _inner(trace: bool, g: Array, h: Array) -> Array:
  """Inner products of [n, C, p] and [n', C, p]: [n, n', C, C], or their trace [n, n']."""
  if trace:
    return g.reshape(len(g), -1) @ h.reshape(len(h), -1).T
  return jnp.einsum('ncp,mdp->nmcd', g, h)


def _through(trace: bool, a: Array, g: Array, matrices: Array) -> Array:
  """Of factors a [n, K], g [n, C, O] and matrices [n', C', K O], one sample of n' at a time."""

  def column(matrix):
    out = jnp.einsum('nk,dko->ndo', a, matrix.reshape(-1, a.shape[1], g.shape[2]))
    return jnp.einsum('nco,nco->n' if trace else 'nco,ndo->ncd', g, out)

  return jnp.moveaxis(jax.lax.map(column, matrices), 0, 1)
