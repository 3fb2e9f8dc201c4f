"""What probes measure: one function for each type, from a network at one moment to named arrays.

Arrays without axes are scalars: they go into the metrics and to TensorBoard. Of a layer they are
named by the layer, 'share/Dense_0/kernel'. n samples, ordered by class.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bioprop.measure.alignment import direct_alignment, weight_alignment
from bioprop.measure.credit import angles as angles_between
from bioprop.measure.jacobian import Jacobian, evaluate
from bioprop.measure.kernels import centred_alignment, effective_rank
from bioprop.measure.layer_kernels import features as features_of
from bioprop.measure.tangent import entk as entk_of
from bioprop.probes.point import Point
from bioprop.typing import Array

Type = Callable[[Point], dict[str, Array]]


def entk(point: Point) -> dict[str, Array]:
  """The effective eNTK and how it is made up.

  Under a rule that is not linear in the error (hebb, drtp) the kernel's entry is what the error of
  x' moves the output of x by, along that error: SUM_c K e_c / |e|^2, which is the mean over outputs
  where every output has the same kernel.

  Returns:
    kernel: [n, n], the mean over outputs of K_cc; rows are the samples whose outputs move.
    target_alignment: with the one-hot targets, both centred; where labels are classes.
    effective_rank: of the kernel.
    share/<parameter>: of the trace of the kernel, which is how fast each sample learns from itself.
  """
  kernels = _kernels(point)
  kernel = sum(kernels.values())
  found = {'kernel': kernel, **_described(kernel, point)}
  return found | {f'share/{path}': jnp.trace(own) / jnp.trace(kernel)
                  for path, own in kernels.items()}


def features(point: Point) -> dict[str, Array]:
  """The kernels of each layer's input, and of the errors at its output.

  Returns:
    phi/<weight>, g/<weight>, g_pseudo/<weight>: [n, n], as in `bioprop.measure.features`.
    target_alignment/<weight>, effective_rank/<weight>: of phi, as in `entk`.
  """
  jacobians, x = point.jacobians, point.batch.x
  true = evaluate(jacobians.true(point.variables), x)
  pseudo = Jacobian({}, {})
  if jacobians.is_linear(point.variables):
    pseudo = evaluate(jacobians.pseudo(point.variables), x)
  found = {}
  for path, kernels in features_of(true, pseudo).items():
    found |= {f'{name}/{path}': getattr(kernels, name) for name in ('phi', 'g', 'g_pseudo')
              if getattr(kernels, name) is not None}
    found |= {f'{name}/{path}': value for name, value in _described(kernels.phi, point).items()}
  return found


def angles(point: Point) -> dict[str, Array]:
  """The angle between pseudogradient and gradient, at the errors of the batch.

  Returns:
    cosine, ratio: of the update by all samples, all parameters together.
    cosine/<parameter>, ratio/<parameter>: of each parameter.
    signals/<weight>: the cosine of the cotangents at the layer's output, mean over samples.
    samples: [n], the cosine of each sample's own update.
  """
  jacobians, at = point.jacobians, (point.batch.x, point.errors)
  each, total = angles_between(evaluate(jacobians.gradient(point.variables), at),
                               evaluate(jacobians.update(point.variables), at))
  found = {'cosine': total.update, 'ratio': total.update_ratio, 'samples': total.samples}
  for path, angle in each.items():
    found |= {f'cosine/{path}': angle.update, f'ratio/{path}': angle.update_ratio}
    if angle.signals is not None:
      found[f'signals/{path}'] = jnp.mean(angle.signals)
  return found


def alignment(point: Point) -> dict[str, Array]:
  """The angle between forward and feedback weights.

  Returns:
    cosine/<weight>: of W and B, of layers that send through a matrix B.
    direct/<layer>: of direct feedback with the product of the weights above it, where these are
      dense and lead one to the next.
  """
  feedback = point.feedback
  found = {f'cosine/{path}': value for path, value in weight_alignment(
      feedback.weights, feedback.sent).items()}
  for label, b in feedback.direct.items():
    above = feedback.above(label)
    if above is not None:
      found[f'direct/{label}'] = direct_alignment(above, b)
  return found


def theory(point: Point) -> dict[str, Array]:
  """The network beside its lazy limit: the same network, all of whose hidden widths are infinite.

  The limit's kernel does not change while training. Its loss is given only where all of training is
  plain gradient descent on this very batch: of minibatches, of a larger training set, or under
  momentum, the outputs on the batch do not follow from the kernel of the batch. A run of `train.py`
  finds that out itself; others say it by `lazy=find_lazy(..., descent=Descent(...))`, and by the
  step that they measure at.

  Returns:
    kernel, target_alignment, effective_rank: of the network as it is now, as in `entk`.
    loss: its mean loss on the batch.
    infinite_kernel, infinite_target_alignment, infinite_effective_rank: of the limit.
    infinite_error: relative error of the limit's kernel, as `InfiniteKernels.error`.
    infinite_loss: of the limit after as many steps.
    distance: |K - K'| / |K'| of the network's kernel K and the limit's K', over all entries.
  """
  kernel, limit = sum(_kernels(point).values()), point.lazy.kernels
  beside = {'kernel': limit.entk, **_described(limit.entk, point),
            'error': jnp.asarray(limit.error)}
  losses = point.lazy.losses
  if losses is not None and point.step is not None and point.step < len(losses):
    beside['loss'] = jnp.asarray(losses[point.step])
  return {'kernel': kernel, **_described(kernel, point), 'loss': point.loss,
          **{f'infinite_{name}': value for name, value in beside.items()},
          'distance': jnp.linalg.norm(kernel - limit.entk) / jnp.linalg.norm(limit.entk)}


TYPES: dict[str, Type] = {
    'entk': entk, 'features': features, 'angles': angles, 'alignment': alignment}
# What is not measured of every network, as not every one has a limit.
PREDICTED: dict[str, Type] = {'theory': theory}


def _kernels(point: Point) -> dict[str, Array]:
  """The kernel of each parameter, a mean over outputs."""
  jacobians, x, variables = point.jacobians, point.batch.x, point.variables
  true = jacobians.true(variables)
  if jacobians.is_linear(variables):
    outputs = point.outputs[0].size
    kernels = entk_of(true, jacobians.pseudo(variables), x, trace=True, per_layer=True,
                      block=point.block)
    return {path: kernel / outputs for path, kernel in kernels.items()}
  errors = point.errors.reshape(len(point.errors), -1)
  moved = entk_of(true, jacobians.update(variables), x, (x, point.errors), per_layer=True,
                  block=point.block)
  return {path: _along(kernel[..., 0], errors) for path, kernel in moved.items()}


@jax.jit
def _along(moved: Array, errors: Array) -> Array:
  return jnp.einsum('nmc,mc->nm', moved, errors) / jnp.sum(errors * errors, 1)[None]


def _described(kernel: Array, point: Point) -> dict[str, Array]:
  found = {'effective_rank': effective_rank(kernel)}
  if point.targets is not None:
    targets = point.targets @ point.targets.T
    found['target_alignment'] = centred_alignment(kernel, targets)
  return found
