"""Differentiates a model sample by sample, with weights' derivatives as their factors."""
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import MeasureError
from bioprop.measure.jacobian import Jacobian
from bioprop.probes.dilated import undilated
from bioprop.probes.locations import TOLERANCE, distance
from bioprop.probes.model import Values, cast
from bioprop.probes.products import Product
from bioprop.typing import Array, PyTree


class Differentiator:
  """Maps (values of a model, samples) to the derivatives in its parameters."""

  def __init__(self, pull: 'Pull', paths: Sequence[str], sample: PyTree,
               claimed: Sequence[Product], products: Sequence[Product], at_error: bool = False,
               dtype: jax.typing.DTypeLike | None = None):
    """Prepares it.

    Args:
      pull: of the model, `pulled` or `pulled_twin`.
      paths: of all parameters.
      sample: shapes of the model's inputs.
      claimed: products that are given as factors.
      products: all products; those that are not claimed are given as matrices.
      at_error: samples are (samples, errors), and derivatives those of <error, output>.
      dtype: samples are cast to it; None: as they are.
    """
    self._pull, self._claimed, self._at_error = pull, claimed, at_error
    self._kinds, self._inputs, self._dtype = kinds(sample), jax.tree.structure(sample), dtype
    given = {path for product in claimed for path in (product.path, product.bias)}
    self._rest = [path for path in paths if path not in given]
    self._orders = {p.path: p.order for p in products if p.order is not None}

  def __call__(self, values: Values, samples: PyTree) -> Jacobian:
    if self._at_error and not (isinstance(samples, tuple | list) and len(samples) == 2):
      raise MeasureError('gradients are taken at errors: give a pair (x, error), error being the '
                         'gradient of each sample\'s own loss in its output.')
    samples = cast(samples, self._dtype)
    got = kinds(samples[0] if self._at_error else samples)
    if got != self._kinds:
      raise MeasureError(
          f'derivatives were prepared for samples of dtype and shape {self._kinds}, the axis n '
          f'aside, and the samples are {got}. Prepare others: bioprop.measure.jacobians(model, x).')
    outer, full = jax.vmap(lambda one: self._one(values, one))(samples)
    full = {path: leaf[..., self._orders[path]] if path in self._orders else leaf
            for path, leaf in full.items()}
    return Jacobian(outer, full, tuple((p.bias, p.path) for p in self._claimed if p.bias))

  def output(self, values: Values, samples: PyTree) -> Array:
    """The outputs of samples, each by itself: [n, ...]."""
    samples = cast(samples, self._dtype)
    return jax.vmap(lambda one: self._pull(values, self._alone(one), {}, ())[0])(samples)

  def _one(self, values, sample):
    sample, error = sample if self._at_error else (sample, None)
    rest = {path: values.params[path] for path in self._rest}
    out, back, inputs = self._pull(values, self._alone(sample), rest, self._claimed)
    if self._at_error and error.shape != out.shape:
      raise MeasureError(f'an error has the shape {error.shape}, the axis n aside, and an output '
                         f'{out.shape}. Give the gradient of the loss in the outputs.')
    rows = error.reshape(1, -1) if self._at_error else jnp.eye(out.size, dtype=out.dtype)
    full, cotangents = jax.vmap(undilated(back))(rows.astype(out.dtype))
    return ({product.path: product.factors(inputs, cotangents) for product in self._claimed},
            {path: leaf.reshape(len(rows), -1) for path, leaf in full.items()})

  def _alone(self, sample: PyTree) -> PyTree:
    """The model's inputs, a batch of one."""
    return jax.tree.unflatten(self._inputs, [leaf[None] for leaf in jax.tree.leaves(sample)])


def kinds(samples: PyTree) -> list[str]:
  """Dtype and shape of each array of the samples, the axis n aside."""
  return [f'{jax.dtypes.canonicalize_dtype(leaf.dtype)}{list(leaf.shape[1:])}'
          for leaf in jax.tree.leaves(samples)]


def confirmed(pull: 'Pull', values: Values, alone: PyTree,
              claimed: Sequence[Product]) -> tuple[list[Product], bool]:
  """The products whose factors are their gradient, and whether all is linear in the error.

  Tried on one sample, a batch of one, and one random error; and away from where the parameters
  began, at which some rules are backprop.
  """

  @jax.jit
  def tried(values, alone):
    values = values._replace(params=jax.tree.map(_moved, values.params))
    out, back, inputs = pull(values, alone, values.params, claimed)
    error = np.random.RandomState(1).standard_normal(out.size)
    grads, cotangents = jax.vmap(back)(jnp.asarray([error, 2 * error], out.dtype))
    apart = []
    for product in claimed:
      a, g = product.factors(inputs, cotangents)
      grad = grads[product.path][0].reshape(-1)
      grad = grad if product.order is None else grad[product.order]
      off = {product.path: distance((a.T @ g[0]).reshape(-1).astype(grad.dtype), grad)}
      if product.bias:
        bias = grads[product.bias][0].reshape(-1)
        off[product.bias] = distance(g[0].sum(0).astype(bias.dtype), bias)
      apart.append(off)
    return apart, [distance(twice, 2 * once) for once, twice in grads.values()]

  apart, linear = jax.device_get(tried(values, alone))
  good = lambda off, path: path in off and off[path] < TOLERANCE
  kept = [product if good(off, product.bias) else product._replace(bias=None)
          for product, off in zip(claimed, apart) if good(off, product.path)]
  return kept, all(off < TOLERANCE for off in linear)


def _moved(w: Array) -> Array:
  """Other parameters: each number by another factor."""
  wave = 1 + jnp.cos(jnp.arange(w.size)).reshape(w.shape) / 8
  return w * wave.astype(w.dtype) if jnp.issubdtype(w.dtype, jnp.inexact) else w


# Maps (values, a batch of one, what is added to the outputs of ops) to the output [1, ...] and the
# inputs of these ops.
Run = Callable[[Values, PyTree, Mapping[int, Array]], tuple[Array, dict[int, Array]]]
# Maps (values, a batch of one, some of the parameters, products) to the output without its batch
# axis, the vjp of the flat output in (those parameters, the outputs of the products' calls), and
# the inputs of these.
Pull = Callable[..., tuple[Array, Callable[[Array], tuple[dict, dict]], dict]]


def pulled(run: Run) -> Pull:
  """The derivatives of a model that runs so."""

  def pull(values, alone, rest, claimed):

    def output(rest, taps):
      own = values._replace(params={**values.params, **rest})
      out, inputs = run(own, alone, taps)
      return out.reshape(-1), (out[0], inputs)

    taps = {call: jnp.zeros(y.shape, y.dtype)
            for product in claimed for call, _, y in product.calls}
    _, back, (out, inputs) = jax.vjp(output, rest, taps, has_aux=True)
    return out, back, inputs

  return pull


def pulled_twin(acting: Run, plain: Run, moments: tuple[str, str],
                initial: Callable[[Values], Values]) -> Pull:
  """Those of a rule that multiplies inputs and errors of the network as it is or as it began.

  Args:
    acting: the model under the rule.
    plain: by no rule.
    moments: 'now' or 'initial', of the inputs and of the errors.
    initial: maps values to those with the initial parameters.
  """
  ruled, exact = pulled(acting), pulled(plain)

  def pull(values, alone, rest, claimed):
    out, back, _ = ruled(values, alone, rest, ())
    at = {'now': values, 'initial': initial(values)}
    of_inputs, of_errors = (exact(at[moment], alone, {}, claimed) for moment in moments)
    return out, lambda error: (back(error)[0], of_errors[1](error)[1]), of_inputs[2]

  return pull
