"""jacobians: the derivatives of a model's output, and what its rule takes for them.

Each sample is differentiated by itself, as a batch of one. A layer that sees one vector of it gives
the two factors of its derivative: its input, and the cotangent at its output, which is found as the
derivative in something that is added there. Every other parameter gives its derivative as it is.
"""
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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

_TOLERANCE = 0.02  # Of checks: more than bfloat16 rounds, less than what is wrong.


def jacobians(model: nn.Module | nnx.Module, *sample: Any, output: Where = None,
              rngs: Mapping[str, jax.Array] | None = None, **kwargs: Any) -> 'Jacobians':
  """Prepares the derivatives of a model and of its rule, for `bioprop.measure.entk`.

    jacobians = bioprop.jacobians(model, x)
    kernel = bioprop.measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)

  Computes nothing yet. Several inputs are given to `entk` as a tuple. Keep the object: it compiles
  once. Parameters of convolutions, and of all layers that see more than one vector of a sample,
  give their Jacobian as it is, [n, C, p]: bound it by the `block` of `entk`.

  At first use, all is checked on one random sample: layers whose factors do not give their gradient
  are differentiated as they are.

  Args:
    model: an unbound linen module or an NNX module, plain (backprop) or plugged.
    *sample: its inputs, arrays [n, ...] or `jax.ShapeDtypeStruct`s, for the shapes.
    output: which of the model's outputs is differentiated, as in `wrap`; None: the one that the
      model was plugged with.
    rngs: random streams of linen models, for rules that draw at every call: each sample is
      differentiated under the same draw.
    **kwargs: the model's keyword arguments. Say train=False where it matters: under batch
      statistics no sample has an output of its own.
  """
  alone = _batch_of(1, sample)
  package = nnx_network if isinstance(model, nnx.Module) else linen_network
  network = package.make_network(model, alone, rngs or {}, kwargs)
  return Jacobians(network, alone, network.output if output is None else output)


class Jacobians:
  """The derivatives of one model; see `jacobians`.

  Each function is made at a linen model's variables (what `init` returned, the parameters moved
  perhaps), or at an NNX model, and is compiled once for all of them.
  """

  def __init__(self, network: PlugNetwork, sample: tuple[Any, ...], output: Where):
    self._network, self._sample, self._output = network, sample, output
    self._made: dict[Any, tuple[_Differentiator, ...]] = {}
    self._linear = all(rule.linear for rule in network.rules)

  def true(self, variables: Any) -> Differentiate:
    """Maps samples to the derivatives of their outputs.

    Raises:
      MeasureError: if the variables are not the model's, or a sample's output depends on others.
      OutputError: if the model's output is not one array.
    """
    return self._at(variables)[0]

  def pseudo(self, variables: Any) -> Differentiate:
    """Maps samples to what the rule takes for the derivatives.

    Raises:
      MeasureError: as `true`, and if the rule is not linear in the error.
      OutputError: as `true`.
    """
    pseudo = self._at(variables)[1]
    if not self._linear:
      names = ', '.join(sorted({type(rule).__name__ for rule in self._network.rules}))
      raise MeasureError(
          f'{names} is not linear in the error, so that it has no Jacobian: an error '
          f'of 2 does not do twice what an error of 1 does. Give it the errors: '
          f'bioprop.measure.entk(jacobians.true(variables), jacobians.update(variables), x, '
          f'(x, error)), which gives [n, n\', C, 1].')
    return pseudo

  def update(self, variables: Any) -> Differentiate:
    """Maps (samples, errors) to the rule's pseudogradients at these errors, one of each sample.

    An error is the gradient of the sample's own loss in its output, shaped like the output.

    Raises:
      MeasureError, OutputError: as `true`.
    """
    return self._at(variables)[2]

  def _at(self, variables) -> tuple[Differentiate, ...]:
    values = self._network.split(variables)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), values)
    leaves, structure = jax.tree.flatten(shapes)
    at = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if at not in self._made:  # Traced once for each dtype.
      if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        raise MeasureError(
            'derivatives are checked on real numbers when they are first used, and here the '
            'parameters are traced. Call jacobians.true(variables) once outside of jit.')
      self._made[at] = self._make(values, shapes)
    return tuple(Partial(made, *values) for made in self._made[at])

  def _make(self, values, shapes) -> tuple['_Differentiator', ...]:
    network, sample = self._network, self._sample
    trace = lambda run, n: _traced(run, *shapes, _batch_of(n, sample), self._output)
    plain = trace(network.plain, 1)
    _refuse_coupled(plain, trace(network.plain, 2), values, sample)
    acting = trace(network.acting, 1)
    products = _products(plain, shapes[0], network.canonical)
    wrong = _wrong(plain, *values, sample, products)[0]
    products = {label: p for label, p in products.items() if p.path not in wrong}
    reached = Counter(tapped.calls(acting))
    claimed = {label: product for label, product in products.items()
               if reached[label] == 1 and network.multiplies(label)}
    wrong, linear = _wrong(acting, *values, sample, claimed)
    self._linear = self._linear and linear
    claimed = {label: p for label, p in claimed.items() if p.path not in wrong}
    make = functools.partial(_Differentiator, acting, shapes[0], sample, claimed, products)
    pseudo = make()
    # A rule with a forward pass of its own is the derivative of that one.
    true = pseudo if network.own_forward else _Differentiator(
        plain, shapes[0], sample, products, products)
    return true, pseudo, make(at_error=True)


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

  def __init__(self, closed: core.ClosedJaxpr, paths: Iterable[str], sample: PyTree,
               claimed: Mapping[str, _Product], products: Mapping[str, _Product],
               at_error: bool = False):
    """Of `products`, those that are claimed are given as factors, and the others as matrices."""
    self._closed, self._claimed, self._at_error = closed, claimed, at_error
    self._kinds = _kinds(sample)
    outer = {product.path for product in claimed.values()}
    self._rest = [path for path in paths if path not in outer]
    self._transposed = {p.path: p.shape for p in products.values() if p.transposed}

  def __call__(self, params: Mapping[str, Array], others: PyTree, samples: PyTree) -> Jacobian:
    got = _kinds(samples[0] if self._at_error else samples)
    if got != self._kinds:
      raise MeasureError(
          f'derivatives were prepared for samples of dtype and shape {self._kinds}, the axis n '
          f'aside, and the samples are {got}. Prepare others: bioprop.jacobians(model, x).')
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
    alone = jax.tree.map(lambda leaf: leaf[None], sample)
    rest = {path: params[path] for path in self._rest}
    out, back, inputs = _pulled(self._closed, params, others, alone, rest, self._claimed)
    rows = error.reshape(1, -1) if self._at_error else jnp.eye(len(out), dtype=out.dtype)
    full, cotangents = jax.vmap(back)(rows.astype(out.dtype))
    flat = lambda tree: {path: leaf.reshape(len(rows), -1) for path, leaf in tree.items()}
    return {label: a.reshape(-1) for label, a in inputs.items()}, flat(cotangents), flat(full)


def _pulled(closed, params, others, alone, rest, claimed: Mapping[str, _Product]):
  """The output [C] of a batch of one, its vjp in (rest, taps of `claimed`), and their inputs."""

  def output(rest, taps):
    arguments = jax.tree.leaves(({**params, **rest}, others, alone))
    (out,), inputs = tapped.run(closed, arguments, taps)
    return out.reshape(-1), inputs

  taps = {label: jnp.zeros(p.y.shape, p.y.dtype) for label, p in claimed.items()}
  return jax.vjp(output, rest, taps, has_aux=True)


def _wrong(closed: core.ClosedJaxpr, params, others, sample,
           claimed: Mapping[str, _Product]) -> tuple[set[str], bool]:
  """The claimed weights whose factors are not their gradient, and whether all is linear.

  Tried on one random sample and one random error.
  """
  paths = {p.path for p in claimed.values()}

  @jax.jit
  def tried(params, others, alone):
    own = {path: params[path] for path in paths}
    out, back, inputs = _pulled(closed, params, others, alone, params, claimed)
    error = jax.random.normal(jax.random.key(1), out.shape, out.dtype)
    (grads, cotangents), (twice, _) = back(error), back(2 * error)
    apart = {}
    for label, product in claimed.items():
      outer = jnp.outer(inputs[label].reshape(-1), cotangents[label].reshape(-1))
      outer = (outer.T if product.transposed else outer).reshape(own[product.path].shape)
      apart[product.path] = _distance(outer.astype(own[product.path].dtype), grads[product.path])
    return apart, [_distance(twice[path], 2 * grads[path]) for path in params]

  apart, linear = tried(params, others, _drawn(sample))
  return ({path for path, distance in apart.items() if not distance < _TOLERANCE},
          all(distance < _TOLERANCE for distance in linear))


def _refuse_coupled(single: core.ClosedJaxpr, double: core.ClosedJaxpr, values, sample) -> None:
  """Raises MeasureError if a sample's output changes with what else is in the batch."""
  both = _drawn(_batch_of(2, sample))
  run = lambda closed, inputs: core.jaxpr_as_fun(closed)(*jax.tree.leaves((*values, inputs)))[0]
  alone = run(single, jax.tree.map(lambda leaf: leaf[:1], both))[0]
  if not _distance(run(double, both)[0], alone) < _TOLERANCE:
    raise MeasureError(
        'a sample\'s output depends on what else is in the batch (batch statistics, dropout), so '
        'that no sample has derivatives of its own. Prepare them in evaluation mode: '
        'bioprop.jacobians(model, x, train=False), or model.eval() in NNX; a model that takes the '
        'batch\'s moments in evaluation too cannot be measured sample by sample.')


def _distance(a: Array, b: Array) -> Array:
  """The largest difference over the largest value; 0 of zeros."""
  size = jnp.max(jnp.abs(b), initial=0)
  return jnp.max(jnp.abs(a - b), initial=0) / jnp.where(size > 0, size, 1)


def _drawn(shapes: PyTree) -> PyTree:
  """Normal numbers; zeros where there are tokens."""
  draw = np.random.RandomState(2).standard_normal
  return jax.tree.map(lambda s: jnp.asarray(draw(s.shape) if jnp.issubdtype(s.dtype, jnp.inexact)
                                            else np.zeros(s.shape), s.dtype), shapes)


def _batch_of(n: int, sample: PyTree) -> PyTree:
  shape = lambda leaf: (n, *leaf.shape[1:])
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
      shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)), sample)


def _kinds(samples: PyTree) -> list[str]:
  return [f'{jax.dtypes.canonicalize_dtype(leaf.dtype)}{list(leaf.shape[1:])}'
          for leaf in jax.tree.leaves(samples)]


def _traced(run: Run, params, others, sample, output: Where) -> core.ClosedJaxpr:
  """The jaxpr of the one output, with ops marked; the inputs are leaves in this order."""
  closed = jax.make_jaxpr(lambda *inputs: locate(run(*inputs), output)[1])(params, others, sample)
  n, shape = jax.tree.leaves(sample)[0].shape[0], closed.out_avals[0].shape
  if not shape or shape[0] != n:
    raise MeasureError(
        f'the output of a batch of {n} has shape {shape}: its first axis is not the batch. Arrays '
        f'with a batch axis belong among the inputs, not among the keyword arguments: '
        f'bioprop.jacobians(model, x, mask).')
  return closed


def _products(closed: core.ClosedJaxpr, params: Mapping[str, Any],
              canonical: Callable[[str], str]) -> dict[str, _Product]:
  """The ops that run once, outside of loops, and see one vector, by label."""
  found = list(traced_calls(closed))
  uses = Counter(canonical(path) for op in found for path in op.weights)
  reached = Counter(tapped.calls(closed))
  products = {}
  for op in found:
    (path, *more), product = list(op.weights) or [''], None
    if reached[op.label] == 1 and not more and uses[canonical(path)] == 1:
      product = _product(op, path, canonical(path), params[canonical(path)].shape)
    if product is not None:
      products[op.label] = product
  return products


def _product(op: TracedOp, path: str, canonical: str, shape: tuple[int, ...]) -> _Product | None:
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
    same = lambda matrix: bool(_distance(got, matrix.reshape(shape)) < _TOLERANCE)
    if same(want):
      return _Product(canonical, op.y, (inputs, outputs), False)
    return _Product(canonical, op.y, (outputs, inputs), True) if same(want.T) else None
