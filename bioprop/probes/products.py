"""The weights of a model whose derivatives are sums of outer products."""
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.network.layered import Layered
from bioprop.network.values import SeenOp
from bioprop.probes.locations import Located, locate
from bioprop.typing import Array


class Product(NamedTuple):
  """A weight that multiplies the vectors [K] at the locations of all calls that use it.

  Attributes:
    path: of the weight.
    calls: each call, by the number of its op, what it multiplies there, and the shape and dtype of
      its output.
    order: as in `Located`: the weight is a matrix [K, O].
    bias: the path of a bias that is added at the same outputs.
    dtype: the parameter's.
  """
  path: str
  calls: tuple[tuple[int, Located, jax.ShapeDtypeStruct], ...]
  order: np.ndarray | None
  bias: str | None
  dtype: np.dtype

  def factors(self, inputs: Mapping[int, Array],
              cotangents: Mapping[int, Array]) -> tuple[Array, Array]:
    """One sample's a [T, K] and g [C, T, O], of what went in and of cotangents [C, ...]."""
    a = [located.vectors(inputs[call]) for call, located, _ in self.calls]
    g = [jax.vmap(located.cotangents)(cotangents[call]) for call, located, _ in self.calls]
    # Where a layer computes in fewer bits than its parameter has, derivatives have the parameter's.
    wide = lambda of: of.astype(np.promote_types(of.dtype, self.dtype))
    return wide(jnp.concatenate(a)), wide(jnp.concatenate(g, 1))


def find_products(layered: Layered) -> list[Product]:
  """The weights all of whose calls run outside of loops, one parameter each.

  Args:
    layered: the model on a batch of one.
  """
  traced = layered.traced
  network, params = traced.network, dict(zip(traced.paths, traced.closed.in_avals))
  elsewhere = {meeting.path for meeting in network.meetings}
  products = []
  for path in params:
    ops = [op for op in network.ops if path in op.paths]
    if not ops or path in elsewhere or not all(
        op.outermost and op.paths == (path,) for op in ops):
      continue
    located = [locate(op, network.frame) for op in ops]
    if None not in located and all(_alike(one, located[0]) for one in located):
      products.append(Product(
          path, tuple((op.number, one, op.y_aval) for op, one in zip(ops, located)),
          located[0].order, _bias(ops, params, located[0].outputs), params[path].dtype))
  return products


def _alike(one: Located, other: Located) -> bool:
  """Whether two uses of a parameter are of the same matrix."""
  return one.outputs == other.outputs and np.array_equal(one.order, other.order)


def _bias(ops: list[SeenOp], params: Mapping[str, Any], outputs: int) -> str | None:
  """The parameter that is added to all the products of a weight."""
  paths = {op.seen_bias.paths for op in ops}
  if len(paths) != 1 or len(next(iter(paths))) != 1:
    return None
  ((path,),) = paths
  return path if params[path].size == outputs else None


def acted_on(products: Iterable[Product], layered: Layered) -> list[Product]:
  """The products whose rules always multiply what goes in with the cotangent."""
  return [product for product in products if all(
      layered.rules[call].multiplies for call, *_ in product.calls)]
