"""jacobians: the derivatives of a model's output, and what its rule takes for them.

Each sample is differentiated by itself, as a batch of one. A weight that multiplies vectors gives
the two factors of its derivative: the layer's input, and the cotangent at its output, which is
found as the derivative in something that is added there. Every other parameter gives its derivative
as it is.
"""
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.fronts.choice import Where, locate
from bioprop.fronts.function import Returned, own_forward
from bioprop.measure.jacobian import Differentiate
from bioprop.network.layered import Layered
from bioprop.probes.differentiator import (
  Differentiator,
  Pull,
  Run,
  confirmed,
  pulled,
  pulled_twin,
)
from bioprop.probes.fronts import make_model
from bioprop.probes.locations import TOLERANCE, distance
from bioprop.probes.model import (
  Model,
  Values,
  acting,
  batch_of,
  cast,
  plain,
  shapes_of,
)
from bioprop.probes.products import Product, acted_on, find_products
from bioprop.rules import NetworkRule
from bioprop.typing import PyTree


def jacobians(model: nn.Module | nnx.Module, *sample: Any, output: Where = None,
              rngs: Mapping[str, jax.Array] | None = None,
              dtype: jax.typing.DTypeLike | None = None, **kwargs: Any) -> 'Jacobians':
  """Prepares the derivatives of a model and of its rule, for `bioprop.measure.entk`.

    jacobians = bioprop.measure.jacobians(model, x)
    kernel = bioprop.measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x)

  Computes nothing yet. Several inputs are given to `entk` as a tuple. Keep the object: it compiles
  once. Dense layers, convolutions and embeddings give factors of their derivatives. Elementwise
  parameters, those in loops (RNNs), and weights that two kinds of ops share give their derivatives
  as they are, [n, C, p]: bound them by the `block` of `entk`.

  At first use, all is checked on one random sample: layers whose factors do not give their gradient
  are differentiated as they are.

  Args:
    model: an unbound linen module or an NNX module, plain (backprop) or plugged.
    *sample: its inputs, arrays [n, ...] or `jax.ShapeDtypeStruct`s, for the shapes.
    output: which of the model's outputs is differentiated, as in `bioprop.plug`; None: the one that
      the model was plugged with.
    rngs: random streams of linen models, for rules that draw at every call: each sample is
      differentiated under the same draw.
    dtype: variables and inputs are cast to it, as to jnp.float64 under `jax.enable_x64(True)`;
      None: as they are. A layer that has a dtype of its own computes in that.
    **kwargs: the model's keyword arguments. Say train=False where it matters: under batch
      statistics no sample has an output of its own.

  Raises:
    MeasureError: if the dtype is float64 and JAX has it not enabled.
    SampleError: if there is no sample, or the model cannot be called on it.
  """
  if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
    raise MeasureError(f'derivatives in {jnp.dtype(dtype).name} were asked for, and JAX would give '
                       f'them in {jax.dtypes.canonicalize_dtype(dtype).name}. Enable it first: '
                       f'jax.config.update(\'jax_enable_x64\', True).')
  alone = batch_of(1, sample)
  made = make_model('measure.jacobians', model, alone, rngs, kwargs)
  return Jacobians(made, cast(alone, dtype), output, dtype)


class Jacobians:
  """The derivatives of one model; see `jacobians`.

  Each function is made at a linen model's variables (what `init` returned, the parameters moved
  perhaps), or at an NNX model, and is compiled once for all of them.
  """

  def __init__(self, model: Model, sample: tuple[Any, ...], output: Where = None,
               dtype: jax.typing.DTypeLike | None = None):
    self._model, self._sample, self._dtype = model, sample, dtype
    self._output = model.plug.output if output is None else output
    self._made: dict[Any, tuple[Differentiator, ...]] = {}
    self._linear = all(rule.linear for rule in model.rules)

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
      raise MeasureError(
          f'{self._model.named()} is not linear in the error, so that it has no Jacobian: an error '
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
    values = cast(self._model.split(variables), self._dtype)
    shapes = shapes_of(values)
    leaves, structure = jax.tree.flatten(shapes)
    at = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if at not in self._made:  # Traced once for each dtype.
      if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values)):
        raise MeasureError(
            'derivatives are checked on real numbers when they are first used, and here the '
            'parameters are traced. Call jacobians.true(variables) once outside of jit.')
      self._made[at] = self._make(values, shapes)
    return tuple(Partial(made, values) for made in self._made[at])

  def _make(self, values: Values, shapes: Values) -> tuple[Differentiator, ...]:
    sample, choice, output = self._sample, self._model.plug.choice, self._output
    # The derivative is that of the forward pass which there is, where the rule has its own.
    model = acting(self._model) if own_forward(choice) else self._model
    (layered, run), (pair, run_pair) = (
        _seen(model, shapes, batch_of(n, sample), output) for n in (1, 2))
    exact = run(plain(layered))
    _refuse_coupled(exact, run_pair(plain(pair)), values, sample)
    check = lambda pull, products: confirmed(pull, values, _drawn(sample), products)
    products, _ = check(pulled(exact), find_products(layered))
    make = lambda pull, claimed: tuple(
        Differentiator(pull, tuple(shapes.params), sample, claimed, products, at_error, self._dtype)
        for at_error in (False, True))
    true, gradient = make(pulled(exact), products)
    if model.plug.choice.exact:
      return true, true, gradient, gradient
    if choice.network is None:
      ruled, hopeful = pulled(run(layered)), acted_on(products, layered)
    else:
      ruled, hopeful = _of_network(model, choice.network, exact, output, products)
    claimed, linear = check(ruled, hopeful)
    self._linear = self._linear and linear
    pseudo, update = make(ruled, claimed)
    return true, pseudo, update, gradient


def _of_network(model: Model, rule: NetworkRule, exact: Run, output: Where,
                products: list[Product]) -> tuple[Pull, list[Product]]:
  """The derivatives of a rule of the whole network, and what products may have factors under it."""
  act = lambda values, alone, _: (locate(model.act(values, alone), output)[1], {})
  if rule.multiplies is None:
    return pulled(act), []
  return pulled_twin(act, exact, rule.multiplies, model.initial), products


def _seen(model: Model, values: Values, sample: tuple[Any, ...],
          output: Where) -> tuple[Layered, Callable[[Layered], Run]]:
  """The model as it is seen on a batch, and what runs it, or `plain` of it, up to its output.

  Raises:
    MeasureError: if the output's first axis is not the batch.
    OutputError: if the output is not one array.
  """
  returned = Returned()
  layered = model.seen(values, sample, returned)
  found = locate(returned.restore(layered.traced.out[0]), output)
  n, (position, out) = jax.tree.leaves(sample)[0].shape[0], returned.position(*found)
  if out.shape[0] != n:
    raise MeasureError(
        f'the output of a batch of {n} has shape {out.shape}: its first axis is not the batch. '
        f'Arrays with a batch axis belong among the inputs, not among the keyword arguments: '
        f'bioprop.measure.jacobians(model, x, mask).')

  def run(layered: Layered) -> Run:

    def output_and_inputs(values, alone, taps):
      outs, inputs = model.run(layered, values, alone, taps)
      return outs[position], inputs

    return output_and_inputs

  return layered, run


def _refuse_coupled(single: Run, double: Run, values: Values, sample: PyTree) -> None:
  """Raises MeasureError if a sample's output changes with what else is in the batch."""

  @jax.jit
  def apart(values, both):
    alone = jax.tree.map(lambda leaf: leaf[:1], both)
    return distance(double(values, both, {})[0][:1], single(values, alone, {})[0])

  if not float(apart(values, _drawn(batch_of(2, sample)))) < TOLERANCE:
    raise MeasureError(
        'a sample\'s output depends on what else is in the batch (batch statistics, dropout), so '
        'that no sample has derivatives of its own. Prepare them in evaluation mode: '
        'bioprop.measure.jacobians(model, x, train=False), or model.eval() in NNX; a model that '
        'takes the batch\'s moments in evaluation too cannot be measured sample by sample.')


def _drawn(shapes: PyTree) -> PyTree:
  """Normal numbers; zeros where there are tokens."""
  draw = np.random.RandomState(2).standard_normal
  return jax.tree.map(lambda s: jnp.asarray(draw(s.shape) if jnp.issubdtype(s.dtype, jnp.inexact)
                                            else np.zeros(s.shape), s.dtype), shapes)
