"""The weights of a model whose derivatives are sums of outer products."""
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from bioprop.plug import tapped
from bioprop.plug.locations import Located, locate
from bioprop.plug.tapped import Call
from bioprop.plug.traced import traced_calls
from bioprop.typing import Array


class Product(NamedTuple):
  """A weight that multiplies the vectors [K] at the locations of all calls that use it.

  Attributes:
    path: of the weight.
    calls: each call, what it multiplies there, and the shape and dtype of its output.
    shape: the weight's, as it is kept: a matrix [K, O], or [O, K] if it is transposed.
    transposed: the weight is kept as [O, K].
    bias: the path of a bias that is added at the same outputs.
  """
  path: str
  calls: tuple[tuple[Call, Located, jax.ShapeDtypeStruct], ...]
  shape: tuple[int, int]
  transposed: bool
  bias: str | None

  def factors(self, inputs: Mapping[Call, Array],
              cotangents: Mapping[Call, Array]) -> tuple[Array, Array]:
    """One sample's a [T, K] and g [C, T, O], of what went in and of cotangents [C, ...]."""
    a = [located.vectors(inputs[call]) for call, located, _ in self.calls]
    g = [cotangents[call].reshape(len(cotangents[call]), -1, located.outputs)
         for call, located, _ in self.calls]
    return jnp.concatenate(a), jnp.concatenate(g, 1)


def find_products(closed: core.ClosedJaxpr, params: Mapping[str, Any],
                  canonical: Callable[[str], str]) -> list[Product]:
  """The weights all of whose calls run outside of loops, one weight each.

  Args:
    closed: the jaxpr of the model by no rule, of a batch of one, with its ops marked.
    params: shapes of all parameters by path.
    canonical: the path in `params` of a weight that a layer calls by its own path.
  """
  reached, numbers = tapped.calls(closed), Counter()
  uses: dict[str, list] = {}
  for op in traced_calls(closed):
    call = op.label, numbers[op.label]
    numbers[op.label] += 1
    for path in op.weights:
      uses.setdefault(canonical(path), []).append((call, op, path))
  products = []
  for path, calls in uses.items():
    alone = all(len(op.weights) == 1 and op.weights[own].shape == params[path].shape
                and numbers[op.label] == reached[op.label] for _, op, own in calls)
    located = [locate(op, own) for _, op, own in calls] if alone else [None]
    if None not in located and len({(one.outputs, one.transposed) for one in located}) == 1:
      outputs, transposed = located[0].outputs, located[0].transposed
      inputs = params[path].size // outputs
      products.append(Product(
          path, tuple((call, one, op.y) for (call, op, _), one in zip(calls, located)),
          (outputs, inputs) if transposed else (inputs, outputs), transposed,
          _bias(params, path, outputs)))
  return products


def _bias(params: Mapping[str, Any], path: str, outputs: int) -> str | None:
  """The parameter beside a weight that may be added to its product."""
  bias = '/'.join([*path.split('/')[:-1], 'bias'])
  return bias if bias in params and params[bias].size == outputs else None


def acted_on(products: Iterable[Product], closed: core.ClosedJaxpr,
             multiplies: Callable[[str], bool]) -> list[Product]:
  """The products that are so also under a rule, as far as that can be said of its layers.

  Args:
    products: by no rule.
    closed: the jaxpr of the model under the rule.
    multiplies: whether the rule of a layer always multiplies its input with the cotangent.
  """
  reached = tapped.calls(closed)
  count = lambda product: Counter(label for (label, _), *_ in product.calls)
  return [product for product in products if all(
      reached[label] == times and multiplies(label) for label, times in count(product).items())]
