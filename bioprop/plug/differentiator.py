"""Differentiates a model's jaxpr sample by sample, with weights' derivatives as their factors."""
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.extend import core

from bioprop.errors import MeasureError
from bioprop.measure.jacobian import Jacobian
from bioprop.plug import tapped
from bioprop.plug.locations import TOLERANCE, distance
from bioprop.plug.network import cast
from bioprop.plug.products import Product
from bioprop.typing import Array, PyTree


class Differentiator:
  """Maps (parameters by path, other variables, samples) to their derivatives."""

  def __init__(self, pull: 'Pull', paths: Iterable[str], sample: PyTree,
               claimed: Sequence[Product], products: Sequence[Product], at_error: bool = False,
               dtype: jax.typing.DTypeLike | None = None):
    """Prepares it.

    Args:
      pull: of the model, `pulled` or `pulled_twin`.
      paths: of all parameters.
      sample: shapes of the samples.
      claimed: products that are given as factors.
      products: all products; those that are not claimed are given as matrices.
      at_error: samples are (samples, errors), and derivatives those of <error, output>.
      dtype: samples are cast to it; None: as they are.
    """
    self._pull, self._claimed, self._at_error = pull, claimed, at_error
    self._kinds, self._dtype = kinds(sample), dtype
    given = {path for product in claimed for path in (product.path, product.bias)}
    self._rest = [path for path in paths if path not in given]
    self._transposed = {p.path: p.shape for p in products if p.transposed}

  def __call__(self, params: Mapping[str, Array], others: PyTree, samples: PyTree) -> Jacobian:
    if self._at_error and not (isinstance(samples, tuple | list) and len(samples) == 2):
      raise MeasureError('gradients are taken at errors: give a pair (x, error), error being the '
                         'gradient of each sample\'s own loss in its output.')
    samples = cast(samples, self._dtype)
    got = kinds(samples[0] if self._at_error else samples)
    if got != self._kinds:
      raise MeasureError(
          f'derivatives were prepared for samples of dtype and shape {self._kinds}, the axis n '
          f'aside, and the samples are {got}. Prepare others: bioprop.jacobians(model, x).')
    outer, full = jax.vmap(lambda one: self._one(params, others, one))(samples)
    for path, (rows, columns) in self._transposed.items():
      if path in full:
        matrices = full[path].reshape(*full[path].shape[:2], rows, columns)
        full[path] = matrices.swapaxes(-1, -2).reshape(full[path].shape)
    return Jacobian(outer, full, tuple((p.bias, p.path) for p in self._claimed if p.bias))

  def output(self, params: Mapping[str, Array], others: PyTree, samples: PyTree) -> Array:
    """The outputs of samples, each by itself: [n, ...]."""
    samples = cast(samples, self._dtype)

    def one(sample):
      alone = jax.tree.map(lambda leaf: leaf[None], sample)
      return self._pull(params, others, alone, {}, ())[0]

    return jax.vmap(one)(samples)

  def _one(self, params, others, sample):
    sample, error = sample if self._at_error else (sample, None)
    alone = jax.tree.map(lambda leaf: leaf[None], sample)
    rest = {path: params[path] for path in self._rest}
    out, back, inputs = self._pull(params, others, alone, rest, self._claimed)
    if self._at_error and error.shape != out.shape:
      raise MeasureError(f'an error has the shape {error.shape}, the axis n aside, and an output '
                         f'{out.shape}. Give the gradient of the loss in the outputs.')
    rows = error.reshape(1, -1) if self._at_error else jnp.eye(out.size, dtype=out.dtype)
    full, cotangents = jax.vmap(back)(rows.astype(out.dtype))
    return ({product.path: product.factors(inputs, cotangents) for product in self._claimed},
            {path: leaf.reshape(len(rows), -1) for path, leaf in full.items()})


def kinds(samples: PyTree) -> list[str]:
  """Dtype and shape of each array of the samples, the axis n aside."""
  return [f'{jax.dtypes.canonicalize_dtype(leaf.dtype)}{list(leaf.shape[1:])}'
          for leaf in jax.tree.leaves(samples)]


def confirmed(pull: 'Pull', params: Mapping[str, Array], others: PyTree, alone: PyTree,
              claimed: Sequence[Product]) -> tuple[list[Product], bool]:
  """The products whose factors are their gradient, and whether all is linear in the error.

  Tried on one sample, a batch of one, and one random error.
  """

  @jax.jit
  def tried(params, others, alone):
    out, back, inputs = pull(params, others, alone, params, claimed)
    error = jax.random.normal(jax.random.key(1), (out.size,), out.dtype)
    (grads, cotangents), (twice, _) = back(error), back(2 * error)
    apart = []
    for product in claimed:
      a, g = product.factors(inputs, {call: g[None] for call, g in cotangents.items()})
      outer = a.T @ g[0]
      outer = (outer.T if product.transposed else outer).reshape(grads[product.path].shape)
      off = {product.path: distance(outer.astype(grads[product.path].dtype), grads[product.path])}
      if product.bias:
        bias = grads[product.bias]
        off[product.bias] = distance(g[0].sum(0).reshape(bias.shape).astype(bias.dtype), bias)
      apart.append(off)
    return apart, [distance(twice[path], 2 * grads[path]) for path in params]

  apart, linear = tried(params, others, alone)
  good = lambda off, path: path in off and bool(off[path] < TOLERANCE)
  kept = [product if good(off, product.bias) else product._replace(bias=None)
          for product, off in zip(claimed, apart) if good(off, product.path)]
  return kept, all(off < TOLERANCE for off in linear)


# Maps (params, others, a batch of one, some of the parameters, products) to the output without its
# batch axis, the vjp of the flat output in (those parameters, the outputs of the products' calls),
# and the inputs of these.
Pull = Callable[..., tuple[Array, Callable[[Array], tuple[dict, dict]], dict]]


def pulled(closed: core.ClosedJaxpr) -> Pull:
  """The derivatives of a jaxpr of (params, others, a batch of one)."""

  def pull(params, others, alone, rest, claimed):

    def output(rest, taps):
      arguments = jax.tree.leaves(({**params, **rest}, others, alone))
      (out,), inputs = tapped.run(closed, arguments, taps)
      return out.reshape(-1), (out[0], inputs)

    taps = {call: jnp.zeros(y.shape, y.dtype)
            for product in claimed for call, _, y in product.calls}
    _, back, (out, inputs) = jax.vjp(output, rest, taps, has_aux=True)
    return out, back, inputs

  return pull


def pulled_twin(acting: core.ClosedJaxpr, plain: core.ClosedJaxpr, moments: tuple[str, str],
                initial: Callable[[PyTree], dict[str, Array]]) -> Pull:
  """Those of a rule that multiplies inputs and errors of the network as it is or as it began.

  Args:
    acting: the jaxpr under the rule.
    plain: by no rule.
    moments: 'now' or 'initial', of the inputs and of the errors.
    initial: maps all other variables to the initial parameters.
  """
  ruled, exact = pulled(acting), pulled(plain)

  def pull(params, others, alone, rest, claimed):
    out, back, _ = ruled(params, others, alone, rest, ())
    at = {'now': params, 'initial': initial(others)}
    of_inputs, of_errors = (exact(at[moment], others, alone, {}, claimed) for moment in moments)
    return out, lambda error: (back(error)[0], of_errors[1](error)[1]), of_inputs[2]

  return pull
