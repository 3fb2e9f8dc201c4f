"""jacobians: the derivatives of a model's output, and what its rule takes for them.

Each sample is differentiated by itself, as a batch of one. A layer that sees one vector of it gives
the two factors of its derivative: its input, and the cotangent at its output, which is found as the
derivative in something that is added there. Every other parameter gives its derivative as it is.
"""
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.measure.entk import Differentiate, Jacobian
from bioprop.plug import linen_network, nnx_network, tapped
from bioprop.plug.network import PlugNetwork, Run
from bioprop.plug.output import Where, locate
from bioprop.plug.traced import TracedOp, traced_calls
from bioprop.typing import Array, PyTree


def jacobians(model: nn.Module | nnx.Module, *sample: Any, output: Where = None,
              rngs: Mapping[str, jax.Array] | None = None, **kwargs: Any) -> 'Jacobians':
  """Prepares the derivatives of a model and of its rule, for `bioprop.measure.entk`.

    jacobians = bioprop.jacobians(model, x)
    kernel = bioprop.measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)

  Computes nothing. Several inputs are given to `entk` as a tuple.

  Args:
    model: an unbound linen module or an NNX module, plain (backprop) or plugged.
    *sample: its inputs, arrays [n, ...] or `jax.ShapeDtypeStruct`s, for the shapes.
    output: which of the model's outputs is differentiated, as in `wrap`.
    rngs: random streams of linen models, for rules that draw at every call: each sample is
      differentiated under the same draw.
    **kwargs: the model's keyword arguments. Say train=False where it matters: under batch
      statistics no sample has an output of its own.

  Raises:
    OutputError: if the model's output is not one array.
  """
  alone = tuple(jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for leaf in sample)
  package = nnx_network if isinstance(model, nnx.Module) else linen_network
  return Jacobians(package.make_network(model, alone, rngs or {}, kwargs), alone, output)


class Jacobians:
  """The derivatives of one model; see `jacobians`.

  Each function is made at a linen model's variables (what `init` returned, the parameters moved
  perhaps), or at an NNX model, and is compiled once for all of them.
  """

  def __init__(self, network: PlugNetwork, sample: tuple[Any, ...], output: Where):
    self._network, self._sample, self._output = network, sample, output
    self._made: dict[Any, tuple[_Differentiator, ...]] = {}

  def true(self, variables: Any) -> Differentiate:
    """Maps samples to the derivatives of their outputs.

    Raises:
      MeasureError: if the variables are not the model's.
    """
    return self._at(variables)[0]

  def pseudo(self, variables: Any) -> Differentiate:
    """Maps samples to what the rule takes for the derivatives.

    Raises:
      MeasureError: if the variables are not the model's, or the rule is not linear in the error.
    """
    rule = next((rule for rule in self._network.rules if not rule.linear), None)
    if rule is not None:
      raise MeasureError(
          f'{type(rule).__name__} is not linear in the error, so that it has no Jacobian: an error '
          f'of 2 does not do twice what an error of 1 does. Give it the errors: '
          f'bioprop.measure.entk(jacobians.true(variables), jacobians.update(variables), x, '
          f'(x, error)), which gives [n, n\', C, 1].')
    return self._at(variables)[1]

  def update(self, variables: Any) -> Differentiate:
    """Maps (samples, errors) to the rule's pseudogradients at these errors, one of each sample.

    An error is the gradient of the sample's own loss in its output, shaped like the output.

    Raises:
      MeasureError: if the variables are not the model's.
    """
    return self._at(variables)[2]

  def _at(self, variables) -> tuple[Differentiate, ...]:
    values = self._network.split(variables)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), values)
    leaves, structure = jax.tree.flatten(shapes)
    at = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if at not in self._made:  # Traced once for each dtype.
      self._made[at] = self._make(*shapes)
    return tuple(Partial(made, *values) for made in self._made[at])

  def _make(self, params, others) -> tuple['_Differentiator', ...]:
    network = self._network
    trace = lambda run: _traced(run, params, others, self._sample, self._output)
    plain, acting = trace(network.plain), trace(network.acting)
    products = _products(plain, params)
    reached = Counter(tapped.calls(acting))
    claimed = {label: product for label, product in products.items()
               if reached[label] == 1 and network.multiplies(label)}
    pseudo = _Differentiator(acting, params, claimed, products)
    update = _Differentiator(acting, params, claimed, products, at_error=True)
    # A rule with a forward pass of its own is the derivative of that one.
    true = pseudo if network.own_forward else _Differentiator(plain, params, products, products)
    return true, pseudo, update


class _Product(NamedTuple):
  """An op whose derivative in its one weight is an outer product.

  Attributes:
    path: of the weight.
    y: shape and dtype of the op's output.
    shape: the weight's, as a matrix.
    transposed: the matrix is [outputs, inputs], and not [inputs, outputs].
  """
  path: str
  y: jax.ShapeDtypeStruct
  shape: tuple[int, int]
  transposed: bool


class _Differentiator:
  """Maps (parameters by path, other variables, samples) to their derivatives."""

  def __init__(self, closed: core.ClosedJaxpr, paths: Iterable[str],
               claimed: Mapping[str, _Product], products: Mapping[str, _Product],
               at_error: bool = False):
    """Of `products`, those that are claimed are given as factors, and the others as matrices."""
    self._closed, self._claimed, self._at_error = closed, claimed, at_error
    outer = {product.path for product in claimed.values()}
    self._rest = [path for path in paths if path not in outer]
    self._transposed = {p.path: p.shape for p in products.values() if p.transposed}

  def __call__(self, params: Mapping[str, Array], others: PyTree, samples: PyTree) -> Jacobian:
    inputs, cotangents, full = jax.vmap(lambda one: self._one(params, others, one))(samples)
    outer = {product.path: (inputs[label], cotangents[label])
             for label, product in self._claimed.items()}
    for path, (rows, columns) in self._transposed.items():
      if path in full:
        matrices = full[path].reshape(*full[path].shape[:2], rows, columns)
        full[path] = matrices.swapaxes(-1, -2).reshape(full[path].shape)
    return Jacobian(outer, full)

  def _one(self, params, others, sample):
    sample, error = sample if self._at_error else (sample, None)
    alone = tuple(leaf[None] for leaf in jax.tree.leaves(sample))

    def output(rest, taps):
      arguments = jax.tree.leaves(({**params, **rest}, others, alone))
      (out,), inputs = tapped.run(self._closed, arguments, taps)
      return out.reshape(-1), inputs

    taps = {label: jnp.zeros(p.y.shape, p.y.dtype) for label, p in self._claimed.items()}
    out, back, inputs = jax.vjp(output, {path: params[path] for path in self._rest}, taps,
                                has_aux=True)
    rows = error.reshape(1, -1) if self._at_error else jnp.eye(len(out), dtype=out.dtype)
    full, cotangents = jax.vmap(back)(rows.astype(out.dtype))
    flat = lambda tree: {path: leaf.reshape(len(rows), -1) for path, leaf in tree.items()}
    return {label: a.reshape(-1) for label, a in inputs.items()}, flat(cotangents), flat(full)


def _traced(run: Run, params, others, sample, output: Where) -> core.ClosedJaxpr:
  """The jaxpr of the one output, with ops marked; the inputs are leaves in this order."""
  return jax.make_jaxpr(lambda *inputs: locate(run(*inputs), output)[1])(params, others, sample)


def _products(closed: core.ClosedJaxpr, params: Mapping[str, Any]) -> dict[str, _Product]:
  """The ops that run once, outside of loops, and see one vector, by label."""
  found = list(traced_calls(closed))
  uses = Counter(path for op in found for path in op.weights)
  reached = Counter(tapped.calls(closed))
  products = {}
  for op in found:
    (path, *more), product = list(op.weights) or [''], None
    if reached[op.label] == 1 and not more and uses[path] == 1:
      product = _product(op, path, params[path].shape)
    if product is not None:
      products[op.label] = product
  return products


def _product(op: TracedOp, path: str, shape: tuple[int, ...]) -> _Product | None:
  """Tries it: the derivative at random inputs and cotangents is their outer product, or is not."""
  inputs, outputs = math.prod(op.x.shape), math.prod(op.y.shape)
  if not jnp.issubdtype(op.x.dtype, jnp.inexact) or (
      not shape == op.weights[path].shape or math.prod(shape) != inputs * outputs):
    return None
  draw = np.random.RandomState(0).standard_normal
  with jax.ensure_compile_time_eval():
    a, g = jnp.asarray(draw(op.x.shape), op.x.dtype), jnp.asarray(draw(op.y.shape), op.y.dtype)
    zeros = jnp.zeros(shape, op.weights[path].dtype)
    got = jax.vjp(lambda w: op.linear({path: w}, a), zeros)[1](g)[0].astype(jnp.float32)
    want = jnp.outer(a.reshape(-1), g.reshape(-1)).astype(jnp.float32)
    far = 0.02 * jnp.max(jnp.abs(want))  # More than bfloat16 rounds, less than anything else is.
    same = lambda matrix: bool(jnp.max(jnp.abs(got - matrix.reshape(shape))) < far)
    if same(want):
      return _Product(path, op.y, (inputs, outputs), False)
    return _Product(path, op.y, (outputs, inputs), True) if same(want.T) else None
