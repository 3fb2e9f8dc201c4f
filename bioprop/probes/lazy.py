"""The lazy limit of a model on a probe's batch: found once, as training does not change it.

Its kernel is of infinite width and of any training. What the loss on the batch comes to is not: a
step moves outputs by the kernel of the batch with the samples of that step, times their errors, so
that the losses of a batch follow from nothing else only where each step is plain gradient descent
on all of this batch. That is what `Descent` says.
"""
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.fronts.choice import Where
from bioprop.limit.infinite import InfiniteKernels, infinite
from bioprop.probes.point import Batch, Loss
from bioprop.theory.prediction import predict_steps
from bioprop.typing import Array

_AT_ONCE = 100  # Steps whose outputs are held.


class Descent(NamedTuple):
  """Gradient descent without momentum on the mean of a batch's losses, all of it at each step.

  Attributes:
    outputs: of the network before the first step, [n, C].
    rates: the learning rate of each step, [steps].
  """
  outputs: Array
  rates: np.ndarray


class Lazy(NamedTuple):
  """What a network of infinite width does.

  Attributes:
    kernels: of the batch.
    losses: the mean loss on the batch after 0, 1, ... steps, [steps + 1]; None where it is unknown.
  """
  kernels: InfiniteKernels
  losses: np.ndarray | None


def find_lazy(model: nn.Module | nnx.Module, batch: Batch, loss: Loss, *,
              descent: Descent | None = None, block: int | None = None, output: Where = None,
              **kwargs: Any) -> Lazy:
  """Finds the lazy limit of a model under the rule that it has.

  Args:
    model: a linen or an NNX model, plugged, or plain for backprop. Of an NNX model the variances of
      parameters are those of its own as they are now: ask before it is trained.
    batch: inputs [n, ...] and labels.
    loss: maps outputs and labels to the loss of each sample.
    descent: how it is trained, if that is on this batch alone; None: no losses are predicted.
    block: samples of a block, as in `bioprop.theory.infinite`.
    output: which of the model's outputs, as in `bioprop.plug`.
    **kwargs: the model's keyword arguments, those of training.

  Raises:
    TheoryError, ConvergenceError, SampleError: as `bioprop.theory.infinite`.
    MeasureError: if the outputs of `descent` are none of the batch's.
  """
  x = tuple(batch.x) if isinstance(batch.x, tuple | list) else batch.x
  kernels = infinite(model, x, rule=None, output=output, block=block, **kwargs)
  if descent is None:
    return Lazy(kernels, None)
  if descent.outputs.ndim != 2 or len(descent.outputs) != len(batch.labels):
    raise MeasureError(f'losses are predicted of outputs [n, C] of the {len(batch.labels)} samples '
                       f'of a batch, and descent.outputs has the shape {descent.outputs.shape}. '
                       f'Give these, or leave descent out.')
  return Lazy(kernels, _losses(kernels.entk, batch.labels, loss, descent))


def _losses(kernel: Array, labels: Array, loss: Loss, descent: Descent) -> np.ndarray:
  outputs = jnp.asarray(descent.outputs, kernel.dtype)
  rates = np.asarray(descent.rates, np.float64) / len(outputs)  # Of a sum over samples.
  one = lambda f, label: loss(f[None], label[None])[0]
  mean, found = Partial(loss), []
  for start in range(0, len(rates), _AT_ONCE):
    part = rates[start:start + _AT_ONCE]
    course = predict_steps(kernel, labels, part, len(part), loss=one, initial=outputs).train
    found.append(_means(mean, course[:-1], labels))
    outputs = course[-1]
  return np.concatenate([*found, _means(mean, outputs[None], labels)])


@jax.jit
def _means(loss, outputs, labels):
  """Of outputs [T, n, C], the mean losses [T]."""
  return jax.lax.map(lambda f: jnp.mean(loss(f, labels)), outputs)
