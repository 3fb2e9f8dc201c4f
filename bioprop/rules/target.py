r"""Direct random target projection (Frenkel, Lefebvre & Bol 2021, arXiv 1909.01311, equation 4).

Direct feedback alignment waits for the error; here each layer's input receives the one-hot target
in its place, through the same kind of fixed random matrix:

  dW = x^T g ,   dx = -B y* / n .

In a classifier the sign of the error is known before the forward pass ends: the entry of the
target class is negative, all others are positive. -y* stands for that entry, as large as it can
be. The readout sees the true error.

The target is read from the error: it is the class whose entry is the lowest, where there is one
below zero. So the loss must be a classification loss on one-hot targets (softmax or sigmoid
cross-entropy; squares, once no output lies above its target by more than the target class lies
below). Samples and positions without an error, such as masked ones, have no target. In time it does
as direct feedback alignment does.
"""
import dataclasses
import math

import jax
import jax.numpy as jnp

from bioprop.rules.base import check_choice
from bioprop.rules.direct import DirectFeedbackAlignment


@dataclasses.dataclass(frozen=True)
class DirectRandomTargetProjection(DirectFeedbackAlignment):
  """Direct random target projection: direct feedback alignment of the target.

  Attributes:
    scale: factor on the feedback, as in direct feedback alignment.
    spatial: as in direct feedback alignment.
    max_gib: as in direct feedback alignment.
    reduction: how the loss is reduced over samples, 'mean' or 'sum'.
  """
  reduction: str = 'mean'
  linear = False

  def __post_init__(self):
    super().__post_init__()
    check_choice(self, 'reduction', ('mean', 'sum'))

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; -B y* / n sent to its input; see `Rule.backward`."""
    samples = math.prod(e.shape[:max(1, e.ndim - 1)]) if self.reduction == 'mean' else 1
    target = jax.nn.one_hot(jnp.argmin(e, -1), e.shape[-1], dtype=e.dtype)
    known = jnp.min(e, -1, keepdims=True) < 0
    proxy = jnp.where(known, -target / jnp.asarray(samples, e.dtype), jnp.zeros_like(e))
    return super().backward(op, params, x, feedback, g, proxy)
