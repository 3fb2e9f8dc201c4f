"""jacobians: the derivatives of a model's output, and what its rule takes for them.

Each sample is differentiated by itself, as a batch of one. A layer that sees one vector of it gives
the two factors of its derivative: its input, and the cotangent at its output, which is found as the
derivative in something that is added there. Every other parameter gives its derivative as it is.
"""
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    MeasureError: if the rule is not linear in the error, so that it has no Jacobian.
    OutputError: if the model's output is not one array.
  """
  alone = tuple(jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for leaf in sample)
  package = nnx_network if isinstance(model, nnx.Module) else linen_network
  return Jacobians(package.make_network(model, alone, rngs or {}, kwargs), alone, output)


class Jacobians:
  """The derivatives of one model; see `jacobians`."""

  def __init__(self, network: PlugNetwork, sample: tuple[Any, ...], output: Where):
    rule = next((rule for rule in network.rules if not rule.linear), None)
    if rule is not None:
      raise MeasureError(
          f'{type(rule).__name__} is not linear in the error, so that it has no Jacobian: what an '
          f'error of 2 does is not twice what an error of 1 does.')
    self._network, self._sample, self._output = network, sample, output
    self._made: dict[Any, tuple[_Differentiator, _Differentiator]] = {}

  def true(self, variables: Any) -> Differentiate:
    """The derivatives, at a linen model's variables or an NNX model's own state.

    Args:
      variables: what `init` of the model returned, moved perhaps; or the NNX model itself.

    Raises:
      MeasureError: if the variables are not the model's.
    """
    return self._at(variables)[0]

  def pseudo(self, variables: Any) -> Differentiate:
    """What the rule takes for the derivatives; see `true`."""
    return self._at(variables)[1]

  def _at(self, variables) -> tuple[Differentiate, Differentiate]:
    values = self._network.split(variables)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), values)
    leaves, structure = jax.tree.flatten(shapes)
    at = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if at not in self._made:  # Traced once for each dtype.
      self._made[at] = self._make(*shapes)
    return tuple(Partial(made, *values) for made in self._made[at])

  def _make(self, params, others) -> tuple['_Differentiator', '_Differentiator']:
    network = self._network
    trace = lambda run: _traced(run, params, others, self._sample, self._output)
    plain, acting = trace(network.plain), trace(network.acting)
    claimed = _claimed(plain, acting, params, network.multiplies)
    pseudo = _Differentiator(acting, params, claimed)
    # A rule with a forward pass of its own is the derivative of that one.
    return pseudo if network.own_forward else _Differentiator(plain, params, claimed), pseudo


class _Differentiator:
  """Maps (parameters by path, other variables, samples) to their derivatives."""

  def __init__(self, closed: core.ClosedJaxpr, paths: Iterable[str],
               claimed: Mapping[str, TracedOp]):
    self._closed, self._claimed = closed, claimed
    outer = {path for op in claimed.values() for path in op.weights}
    self._rest = [path for path in paths if path not in outer]

  def __call__(self, params: Mapping[str, Array], others: PyTree, samples: PyTree) -> Jacobian:
    inputs, cotangents, full = jax.vmap(lambda one: self._one(params, others, one))(samples)
    outer = {path: (inputs[label], cotangents[label])
             for label, op in self._claimed.items() for path in op.weights}
    return Jacobian(outer, full)

  def _one(self, params, others, sample):
    alone = tuple(leaf[None] for leaf in jax.tree.leaves(sample))

    def output(rest, taps):
      arguments = jax.tree.leaves(({**params, **rest}, others, alone))
      (out,), inputs = tapped.run(self._closed, arguments, taps)
      return out.reshape(-1), inputs

    taps = {label: jnp.zeros(op.y.shape, op.y.dtype) for label, op in self._claimed.items()}
    out, back, inputs = jax.vjp(output, {path: params[path] for path in self._rest}, taps,
                                has_aux=True)
    full, cotangents = jax.vmap(back)(jnp.eye(len(out), dtype=out.dtype))
    flat = lambda tree: {path: leaf.reshape(len(out), -1) for path, leaf in tree.items()}
    return {label: a.reshape(-1) for label, a in inputs.items()}, flat(cotangents), flat(full)


def _traced(run: Run, params, others, sample, output: Where) -> core.ClosedJaxpr:
  """The jaxpr of the one output, with ops marked; the inputs are leaves in this order."""
  return jax.make_jaxpr(lambda *inputs: locate(run(*inputs), output)[1])(params, others, sample)


def _claimed(plain: core.ClosedJaxpr, acting: core.ClosedJaxpr, params: Mapping[str, Any],
             multiplies: Callable[[str], bool]) -> dict[str, TracedOp]:
  """The ops, called once, whose derivative is an outer product under the rule too, by label."""
  found = list(traced_calls(plain))
  uses = Counter(path for op in found for path in op.weights)
  reached, reached_too = Counter(tapped.calls(plain)), Counter(tapped.calls(acting))
  return {op.label: op for op in found
          if reached[op.label] == reached_too[op.label] == 1 and multiplies(op.label)
          and _is_outer(op) and all(uses[path] == 1 for path in op.weights)
          and all(params[path].shape == w.shape for path, w in op.weights.items())}


def _is_outer(op: TracedOp) -> bool:
  """Whether every number of the input meets every number of the output in a weight of its own."""
  sizes = [math.prod(weight.shape) for weight in op.weights.values()]
  return jnp.issubdtype(op.x.dtype, jnp.inexact) and (
      sizes == [math.prod(op.x.shape) * math.prod(op.y.shape)])
