r"""The angle between a rule's pseudogradient and the gradient.

Of each parameter, and of all together: for the update, which sums over samples, and for each sample
by itself; and of the signals g and g~ that arrive at a layer's output, whose mean over samples is
corr(g, g~) of Bordelon & Pehlevan (2023, arXiv 2210.02157). A rule descends, to first order in its
learning rate, if and only if the cosine of all of the update is positive.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bioprop.errors import MeasureError
from bioprop.measure.contraction import contract
from bioprop.measure.jacobian import Jacobian, matrices
from bioprop.typing import Array, Float


class Angle(NamedTuple):
  """Cosines in [-1, 1], NaN where one of the two is 0; ratios are |pseudogradient| / |gradient|.

  Attributes:
    update, update_ratio: of the sums over samples.
    samples, samples_ratio: of each sample.
    signals: between the cotangents at the layer's output; None where they are not known.
  """
  update: Float[Array, '']
  update_ratio: Float[Array, '']
  samples: Float[Array, ' n']
  samples_ratio: Float[Array, ' n']
  signals: Float[Array, ' n'] | None = None


def angles(gradient: Jacobian, update: Jacobian) -> tuple[dict[str, Angle], Angle]:
  """Compares the pseudogradients of samples with their gradients.

  Args:
    gradient: at errors, `jacobians.gradient(variables)((x, error))`; C = 1.
    update: the rule's, `jacobians.update(variables)((x, error))`.

  Returns:
    The angles by parameter, and of all parameters together.

  Raises:
    MeasureError: if these are not of the same parameters, or not at errors.
  """
  for jacobian in (gradient, update):
    outputs = {leaf.shape[1] for leaf in jacobian.full.values()} | {
        g.shape[1] for _, g in jacobian.outer.values()}
    if outputs != {1}:
      raise MeasureError(
          f'angles are between gradients at errors, one of each sample, and these are derivatives '
          f'of {sorted(outputs)} outputs. Give jacobians.gradient(variables)((x, error)) and '
          f'jacobians.update(variables)((x, error)).')
  return _angles(gradient, update)


@jax.jit
@jax.default_matmul_precision('highest')
def _angles(gradient, update):
  left, right = gradient.by_path(), update.by_path()
  if left.keys() != right.keys():
    raise MeasureError(
        f'the gradients are of {", ".join(sorted(left))}, and the pseudogradients of '
        f'{", ".join(sorted(right))}. Take both from one bioprop.measure.jacobians(model, x).')
  products = {path: (_of_update(left[path], right[path]), _of_samples(left[path], right[path]))
              for path in left}
  each = {path: Angle(*_angle(*of_update), *_angle(*of_samples),
                      _signals(gradient.outer.get(path), update.outer.get(path)))
          for path, (of_update, of_samples) in products.items()}
  total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *products.values())
  return each, Angle(*_angle(*total[0]), *_angle(*total[1]))


def _angle(own: Array, mixed: Array, other: Array) -> tuple[Array, Array]:
  """Cosine and ratio, from <g, g>, <g, g~> and <g~, g~>."""
  return mixed / jnp.sqrt(own * other), jnp.sqrt(other / own)


def _of_update(left, right):
  total = lambda one: (matrices(*one) if isinstance(one, tuple) else one).sum(0).reshape(-1)
  if isinstance(left, tuple) and isinstance(right, tuple):
    # Samples are like locations of one sample, so that no sample's gradient is formed.
    joined = lambda one: (one[0].reshape(1, -1, one[0].shape[2]),
                          one[1].swapaxes(0, 1).reshape(1, 1, -1, one[1].shape[3]))
    left, right = joined(left), joined(right)
  g, h = total(left), total(right)
  return g @ g, g @ h, h @ h


def _of_samples(left, right):
  def one(left, right):
    alone = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
    return tuple(_product(*pair) for pair in (
        (alone(left), alone(left)), (alone(left), alone(right)), (alone(right), alone(right))))

  return jax.lax.map(lambda both: one(*both), (left, right))


def _product(left, right) -> Array:
  """<g, g~> of one sample."""
  if isinstance(left, tuple):
    return contract(left, right, True)[0, 0]
  if isinstance(right, tuple):
    return contract(right, left, True)[0, 0]
  return left.reshape(-1) @ right.reshape(-1)


def _signals(left, right) -> Array | None:
  if left is None or right is None:
    return None
  g, h = (factors[1].reshape(len(factors[1]), -1) for factors in (left, right))
  return jnp.sum(g * h, 1) / jnp.sqrt(jnp.sum(g * g, 1) * jnp.sum(h * h, 1))
