"""jacobians: the derivatives of a model's output, and what its rule takes for them.

Each sample is differentiated by itself, as a batch of one. A weight that multiplies vectors gives
the two factors of its derivative: the layer's input, and the cotangent at its output, which is
found as the derivative in something that is added there. Every other parameter gives its derivative
as it is.
"""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.measure.jacobian import Differentiate
from bioprop.plug.differentiator import Differentiator, confirmed, pulled, pulled_twin
from bioprop.plug.locations import TOLERANCE, distance
from bioprop.plug.network import PlugNetwork, batch_of, cast, traced
from bioprop.plug.networks import make_network
from bioprop.plug.output import Where
from bioprop.plug.products import acted_on, find_products
from bioprop.typing import Array, PyTree


def jacobians(model: nn.Module | nnx.Module, *sample: Any, output: Where = None,
              rngs: Mapping[str, jax.Array] | None = None,
              dtype: jax.typing.DTypeLike | None = None, **kwargs: Any) -> 'Jacobians':
  """Prepares the derivatives of a model and of its rule, for `bioprop.measure.entk`.

    jacobians = bioprop.jacobians(model, x)
    kernel = bioprop.measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)

  Computes nothing yet. Several inputs are given to `entk` as a tuple. Keep the object: it compiles
  once. Dense layers, convolutions and embeddings give factors of their derivatives. Elementwise
  parameters, those in loops (RNNs), weights that two kinds of ops share, and all under gln give
  their derivatives as they are, [n, C, p]: bound them by the `block` of `entk`.

  At first use, all is checked on one random sample: layers whose factors do not give their gradient
  are differentiated as they are.

  Args:
    model: an unbound linen module or an NNX module, plain (backprop) or plugged.
    *sample: its inputs, arrays [n, ...] or `jax.ShapeDtypeStruct`s, for the shapes.
    output: which of the model's outputs is differentiated, as in `wrap`; None: the one that the
      model was plugged with.
    rngs: random streams of linen models, for rules that draw at every call: each sample is
      differentiated under the same draw.
    dtype: variables and inputs are cast to it, as to jnp.float64 under `jax.enable_x64(True)`;
      None: as they are. A layer that has a dtype of its own computes in that.
    **kwargs: the model's keyword arguments. Say train=False where it matters: under batch
      statistics no sample has an output of its own.

  Raises:
    MeasureError: if the dtype is float64 and JAX has it not enabled.
  """
  if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
    raise MeasureError(f'derivatives in {jnp.dtype(dtype).name} were asked for, and JAX would give '
                       f'them in {jax.dtypes.canonicalize_dtype(dtype).name}. Enable it first: '
                       f'jax.config.update(\'jax_enable_x64\', True).')
  alone = batch_of(1, sample)
  network = make_network(model, alone, rngs, kwargs)
  return Jacobians(network, cast(alone, dtype), network.output if output is None else output, dtype)


class Jacobians:
  """The derivatives of one model; see `jacobians`.

  Each function is made at a linen model's variables (what `init` returned, the parameters moved
  perhaps), or at an NNX model, and is compiled once for all of them.
  """

  def __init__(self, network: PlugNetwork, sample: tuple[Any, ...], output: Where,
               dtype: jax.typing.DTypeLike | None = None):
    self._network, self._sample, self._output, self._dtype = network, sample, output, dtype
    self._made: dict[Any, tuple[Differentiator, ...]] = {}
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

  def gradient(self, variables: Any) -> Differentiate:
    """Maps (samples, errors) to the true gradients at these errors; see `update`.

    Raises:
      MeasureError, OutputError: as `true`.
    """
    return self._at(variables)[3]

  def output(self, variables: Any) -> Partial:
    """Maps samples to the outputs that are differentiated, [n, ...].

    Raises:
      MeasureError, OutputError: as `true`.
    """
    true = self._at(variables)[0]
    return Partial(true.func.output, *true.args)

  def is_linear(self, variables: Any) -> bool:
    """Whether the rule is linear in the error, so that there is a `pseudo`.

    Raises:
      MeasureError, OutputError: as `true`.
    """
    self._at(variables)
    return self._linear

  def _at(self, variables) -> tuple[Differentiate, ...]:
    values = cast(self._network.split(variables), self._dtype)
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

  def _make(self, values, shapes) -> tuple[Differentiator, ...]:
    network, sample = self._network, self._sample
    trace = lambda run, n: traced(run, *shapes, batch_of(n, sample), self._output)
    plain = trace(network.plain, 1)
    _refuse_coupled(plain, trace(network.plain, 2), values, sample)
    # Away from where they began, at which some rules are backprop.
    elsewhere = jax.tree.map(_moved, values[0]), values[1]
    check = lambda pull, products: confirmed(pull, *elsewhere, _drawn(sample), products)
    exact = pulled(plain)
    products, _ = check(exact, find_products(plain, shapes[0], network.canonical))
    make = lambda pull, claimed: tuple(
        Differentiator(pull, shapes[0], sample, claimed, products, at_error, self._dtype)
        for at_error in (False, True))
    ruled, claimed = exact, products
    if not network.exact:
      acting = trace(network.acting, 1)
      if network.twin:
        ruled = pulled_twin(acting, plain, network.twin, network.initial)
        claimed, linear = check(ruled, products)
      else:
        ruled = pulled(acting)
        claimed, linear = check(ruled, acted_on(products, acting, network.multiplies))
      self._linear = self._linear and linear
    pseudo, update = make(ruled, claimed)
    # The derivative is that of the forward pass which there is, where the rule has its own.
    true, gradient = (pseudo, update) if network.own_forward or network.exact else (
        make(exact, products))
    return true, pseudo, update, gradient


def _refuse_coupled(single: core.ClosedJaxpr, double: core.ClosedJaxpr, values, sample) -> None:
  """Raises MeasureError if a sample's output changes with what else is in the batch."""
  both = _drawn(batch_of(2, sample))
  run = lambda closed, inputs: jax.jit(core.jaxpr_as_fun(closed))(
      *jax.tree.leaves((*values, inputs)))[0]
  alone = run(single, jax.tree.map(lambda leaf: leaf[:1], both))[0]
  if not distance(run(double, both)[0], alone) < TOLERANCE:
    raise MeasureError(
        'a sample\'s output depends on what else is in the batch (batch statistics, dropout), so '
        'that no sample has derivatives of its own. Prepare them in evaluation mode: '
        'bioprop.jacobians(model, x, train=False), or model.eval() in NNX; a model that takes the '
        'batch\'s moments in evaluation too cannot be measured sample by sample.')


def _moved(w: Array) -> Array:
  wave = 1 + jnp.cos(jnp.arange(w.size)).reshape(w.shape) / 8
  return w * wave.astype(w.dtype) if jnp.issubdtype(w.dtype, jnp.inexact) else w


def _drawn(shapes: PyTree) -> PyTree:
  """Normal numbers; zeros where there are tokens."""
  draw = np.random.RandomState(2).standard_normal
  return jax.tree.map(lambda s: jnp.asarray(draw(s.shape) if jnp.issubdtype(s.dtype, jnp.inexact)
                                            else np.zeros(s.shape), s.dtype), shapes)
