r"""The effective empirical neural tangent kernel of a learning rule.

A network f(x; theta) whose parameters follow a rule's pseudogradients of a loss moves by

  df(x) / dt = - SUM_x' K(x, x') e(x') ,   K(x, x') = SUM_theta J(x) J~(x')^T ,

where e(x') is the error, the gradient of the loss in the output, J the Jacobian of the output in
the parameters, and J~ what the rule takes for it: row c is the pseudogradient that the error 1 at
output c gives (Bordelon & Pehlevan 2023, arXiv 2210.02157, equation 3). Under backprop J~ = J, and
K is the empirical NTK (Jacot, Gabriel & Hongler 2018, arXiv 1806.07572); under other rules K need
not be symmetric. A layer that sees one vector a of each sample, and the cotangent g_c of output c,
has the Jacobian a g_c^T, so that

  K_cd(x, x') = (a . a') (g_c . g~'_d)

and the Jacobian, which is as large as the parameters, is never formed. Layers that see several
vectors of a sample, convolutions above all, are contracted as `bioprop.measure.contraction` says.
"""
import functools
from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.measure.contraction import contract, formed, gram, inner
from bioprop.measure.jacobian import Differentiate, Jacobian
from bioprop.typing import Array, Float, PyTree

_SHARED, _DIVIDED = PartitionSpec(), PartitionSpec('samples')


@overload
def entk(true: Differentiate, pseudo: Differentiate, x: PyTree, x2: PyTree | None = None, *,
         trace: Literal[True], per_layer: Literal[False] = False, block: int | None = None,
         devices: Sequence[jax.Device] | None = None) -> Float[Array, 'n m']: ...
@overload
def entk(true: Differentiate, pseudo: Differentiate, x: PyTree, x2: PyTree | None = None, *,
         trace: Literal[False] = False, per_layer: Literal[False] = False,
         block: int | None = None, devices: Sequence[jax.Device] | None = None
         ) -> Float[Array, 'n m c d']: ...
@overload
def entk(true: Differentiate, pseudo: Differentiate, x: PyTree, x2: PyTree | None = None, *,
         trace: bool = False, per_layer: Literal[True], block: int | None = None,
         devices: Sequence[jax.Device] | None = None) -> dict[str, Array]: ...
@overload
def entk(true: Differentiate, pseudo: Differentiate, x: PyTree, x2: PyTree | None = None, *,
         trace: bool = False, per_layer: bool = False, block: int | None = None,
         devices: Sequence[jax.Device] | None = None) -> Array | dict[str, Array]: ...
def entk(
    true: Differentiate,
    pseudo: Differentiate,
    x: PyTree,
    x2: PyTree | None = None,
    *,
    trace: bool = False,
    per_layer: bool = False,
    block: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Array | dict[str, Array]:
  """Computes the effective eNTK of a network under a rule.

  Where `pseudo` is `true` and there is no x2, only a triangle of the kernel is computed.

  Args:
    true: gives the Jacobian.
    pseudo: gives the rule's. `bioprop.measure.jacobians` makes both from a model.
    x: samples, an array or a tree of arrays [n, ...].
    x2: samples [n', ...], as `pseudo` takes them; None: x.
    trace: sum over the outputs, K_cc.
    per_layer: one kernel for each parameter, which the layer's path names, and not their sum.
    block: at most so many samples' derivatives are held at once, of x and of x2; None: all.
    devices: share the samples of each block. None: the default device.

  Returns:
    K [n, n', C, C], or [n, n'] under `trace`; by parameter path if `per_layer`. The last axis has
    as many entries as the pseudo-Jacobian has rows for a sample.

  Raises:
    MeasureError: if there are no samples, or block is not positive.
  """
  if block is not None and block < 1:
    raise MeasureError(f'block is {block}, and must be at least 1, or None for all samples.')
  true, pseudo = (f if isinstance(f, Partial) else Partial(f) for f in (true, pseudo))
  symmetric = x2 is None and _same(true, pseudo)
  rows = _blocks(x, block)
  columns = rows if x2 is None else _blocks(x2, block)
  how = trace, per_layer
  if devices is not None:
    tile = functools.partial(_tile_on, tuple(devices), *how, true, pseudo)
    return _joined([_joined([tile(row, column) for column in columns], 1) for row in rows], 0)
  of = functools.partial(_derivatives, trace)
  if len(rows) == 1 and x2 is None:
    if symmetric:
      return _triangle(*how, *of((true,), x))
    return _contract(*how, *of((true, pseudo), x))
  lines = []
  for i, row in enumerate(rows):
    left, = of((true,), row)
    lines.append([
        jax.tree.map(_mirrored, lines[j][i]) if symmetric and j < i else
        _contract(*how, left, left if symmetric and i == j else of((pseudo,), column)[0])
        for j, column in enumerate(columns)])
  return _joined([_joined(line, 1) for line in lines], 0)


@overload
def ntk(true: Differentiate, x: PyTree, x2: PyTree | None = None, *,
        trace: Literal[True], per_layer: Literal[False] = False, block: int | None = None,
        devices: Sequence[jax.Device] | None = None) -> Float[Array, 'n m']: ...
@overload
def ntk(true: Differentiate, x: PyTree, x2: PyTree | None = None, *,
        trace: Literal[False] = False, per_layer: Literal[False] = False, block: int | None = None,
        devices: Sequence[jax.Device] | None = None) -> Float[Array, 'n m c c']: ...
@overload
def ntk(true: Differentiate, x: PyTree, x2: PyTree | None = None, *,
        trace: bool = False, per_layer: Literal[True], block: int | None = None,
        devices: Sequence[jax.Device] | None = None) -> dict[str, Array]: ...
@overload
def ntk(true: Differentiate, x: PyTree, x2: PyTree | None = None, *,
        trace: bool = False, per_layer: bool = False, block: int | None = None,
        devices: Sequence[jax.Device] | None = None) -> Array | dict[str, Array]: ...
def ntk(true: Differentiate, x: PyTree, x2: PyTree | None = None,
        **options: Any) -> Array | dict[str, Array]:
  """Computes the empirical NTK, the case of backprop: `entk` of the Jacobian with itself.

  Args:
    true: gives the Jacobian.
    x: samples.
    x2: others, or None for the same.
    **options: of `entk`.

  Returns:
    As `entk`.

  Raises:
    MeasureError: as `entk`.
  """
  true = true if isinstance(true, Partial) else Partial(true)
  return entk(true, true, x, x2, **options)


def _same(true: Partial, pseudo: Partial) -> bool:
  """Whether two functions are one, of the same arrays."""
  (own, own_tree), (other, other_tree) = jax.tree.flatten(true), jax.tree.flatten(pseudo)
  return own_tree == other_tree and all(a is b for a, b in zip(own, other))


def _blocks(x: PyTree, block: int | None) -> list[PyTree]:
  count = {leaf.shape[0] for leaf in jax.tree.leaves(x)}
  if len(count) != 1 or 0 in count:
    raise MeasureError(f'the samples are to be arrays [n, ...] of one n > 0, and have n of '
                       f'{sorted(count)}.')
  n = count.pop()
  return _split(x, n, min(block or n, n))


def _split(tree: PyTree, n: int, size: int) -> list[PyTree]:
  part = lambda at: jax.tree.map(lambda leaf: leaf[at:at + size], tree)
  return [tree] if size == n else [part(at) for at in range(0, n, size)]


def _joined(parts, axis: int):
  return parts[0] if len(parts) == 1 else jax.tree.map(
      lambda *leaves: jnp.concatenate(leaves, axis), *parts)


def _mirrored(kernel: Array) -> Array:
  """K(x', x) of K(x, x'), where the kernel is symmetric."""
  return kernel.swapaxes(0, 1) if kernel.ndim == 2 else kernel.transpose(1, 0, 3, 2)


def _derivatives(trace: bool, functions: tuple[Partial, ...], x: PyTree) -> tuple[Jacobian, ...]:
  """What each function gives, ready to be contracted.

  Arrays that functions share are passed once, so that the compiler sees what both compute of them:
  the true Jacobian and a rule's have one forward pass.
  """
  leaves, structure = jax.tree.flatten(functions)
  distinct = {id(leaf): leaf for leaf in leaves}
  places = tuple(list(distinct).index(id(leaf)) for leaf in leaves)
  return _evaluated(trace, structure, places, tuple(distinct.values()), x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluated(trace, structure, places, distinct, x):
  functions = jax.tree.unflatten(structure, [distinct[place] for place in places])
  n = len(jax.tree.leaves(x)[0])
  return tuple(formed(one(x), n, trace) for one in functions)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _contract(trace: bool, per_layer: bool, left: Jacobian, right: Jacobian):
  return _tile(trace, per_layer, left, right)


@functools.partial(jax.jit, static_argnums=(0, 1))
@jax.default_matmul_precision('highest')
def _triangle(trace: bool, per_layer: bool, jacobian: Jacobian):
  """The kernel of one set of samples with itself."""
  joint = set() if per_layer else set(jacobian.biases)
  return _in_order(trace, per_layer, {
      path: gram(one, trace) for path, one in _by_path(jacobian, joint).items()})


def _tile_on(devices, trace, per_layer, true, pseudo, row, column):
  """One block of the kernel, its rows divided over devices."""
  mesh = Mesh(devices, ('samples',))
  shared, divided = (NamedSharding(mesh, spec) for spec in (_SHARED, _DIVIDED))
  filled = lambda tree: jax.tree.map(lambda leaf: _filled(leaf, len(devices)), tree)
  n, m = (len(jax.tree.leaves(tree)[0]) for tree in (row, column))
  true, pseudo = jax.device_put((true, pseudo), shared)
  row, column = jax.device_put((filled(row), filled(column)), divided)
  kernel = _on_mesh(mesh, trace, per_layer, true, pseudo, row, column)
  return jax.tree.map(lambda leaf: leaf[:n, :m], kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _on_mesh(mesh, trace, per_layer, true, pseudo, row, column):

  def own(true, pseudo, row, column):
    everywhere = lambda leaf: jax.lax.all_gather(leaf, 'samples', tiled=True)
    return _tile(trace, per_layer, true(row), jax.tree.map(everywhere, pseudo(column)))

  # What a rule's custom derivatives vary over is not followed by the check.
  return jax.shard_map(own, mesh=mesh, in_specs=(_SHARED, _SHARED, _DIVIDED, _DIVIDED),
                       out_specs=_DIVIDED, check_vma=False)(true, pseudo, row, column)


def _filled(leaf: Array, devices: int) -> Array:
  """As many samples as devices can share evenly; the last is repeated."""
  fill = -len(leaf) % devices
  return jnp.concatenate([leaf, *[leaf[-1:]] * fill]) if fill else leaf


@jax.default_matmul_precision('highest')  # Accelerators would round as in TensorFloat-32.
def _tile(trace: bool, per_layer: bool, left: Jacobian, right: Jacobian):
  """The kernel between two sets of samples, whose derivatives are given."""
  joint = set() if per_layer else set(left.biases) & set(right.biases)
  rows, columns = _by_path(left, joint), _by_path(right, joint)
  kernels = {}
  for path, own in rows.items():
    other = columns[path]
    if isinstance(own, tuple):
      kernels[path] = contract(own, other, trace)
    elif isinstance(other, tuple):
      kernels[path] = contract(other, own, trace).T if trace else (
          contract(other, own, trace).transpose(2, 3, 0, 1))
    else:
      kernels[path] = inner(own, other, trace)
  return _in_order(trace, per_layer, kernels)


def _by_path(jacobian: Jacobian, joint: set[tuple[str, str]]):
  """Derivatives by path; a bias of `joint` is a column of what its weight multiplies, a 1."""
  biases, weights = ({pair[at] for pair in joint} for at in (0, 1))
  return {path: _widened(one) if path in weights else one
          for path, one in jacobian.by_path().items() if path not in biases}


def _in_order(trace: bool, per_layer: bool, kernels):
  """Kernels as they are returned, or their sum."""
  in_order = lambda kernel: kernel if trace else kernel.swapaxes(1, 2)
  if per_layer:
    return jax.tree.map(in_order, kernels)
  return in_order(functools.reduce(jnp.add, kernels.values()))


def _widened(factors):
  a, g = factors
  return jnp.concatenate([a, jnp.ones((*a.shape[:2], 1), a.dtype)], 2), g
