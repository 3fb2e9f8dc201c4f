"""A network at one moment: its variables, the probe batch, and what all probes need of both."""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from bioprop.errors import MeasureError
from bioprop.measure.jacobian import evaluate
from bioprop.probes.feedback_weights import FeedbackWeights
from bioprop.probes.jacobian import Jacobians
from bioprop.typing import Array, PyTree

# Maps outputs [n, ...] and labels to the loss of each sample, or of each of its labels.
Loss = Callable[[Array, Array], Array]


class Batch(NamedTuple):
  """What is measured on.

  Attributes:
    x: inputs of the model, [n, ...]; a tuple where it takes several.
    labels: what the loss takes; whole numbers [n] where they are classes.
  """
  x: PyTree
  labels: Array


class Point:
  """A network at one moment; what is computed is kept.

  Attributes:
    batch: the samples.
    block: at most so many samples' derivatives are held at once; None: all.
    lazy: the model's lazy limit on the samples, `bioprop.probes.lazy.Lazy`; None: nobody asked.
    step: how many steps of training were made; None: unknown.
  """

  def __init__(self, jacobians: Jacobians, feedback: Callable[[Any], FeedbackWeights], loss: Loss,
               batch: Batch, block: int | None, variables: Any, lazy: Any = None,
               step: int | None = None):
    self._jacobians, self._feedback, self._loss = jacobians, feedback, loss
    self._variables, self.batch, self.block = variables, batch, block
    self.lazy, self.step = lazy, step

  @property
  def jacobians(self) -> Jacobians:
    """The derivatives of the model and of its rule."""
    return self._jacobians

  @property
  def variables(self) -> Any:
    """What the derivatives are taken at."""
    return self._variables

  @functools.cached_property
  def outputs(self) -> Array:
    """The network's outputs, [n, ...]."""
    return evaluate(self._jacobians.output(self._variables), self.batch.x)

  @functools.cached_property
  def loss(self) -> Array:
    """The mean loss on the samples."""
    return jnp.mean(self._loss(self.outputs, self.batch.labels))

  @functools.cached_property
  def errors(self) -> Array:
    """The gradient of each sample's own loss in its output, shaped like the outputs.

    Raises:
      MeasureError: if it is not finite although the outputs are.
    """
    errors = _errors(Partial(self._loss), self.outputs, self.batch.labels)
    if bool(jnp.isfinite(self.outputs).all() & ~jnp.isfinite(errors).all()):
      raise MeasureError(
          f'the gradient of the loss is not finite, although the outputs {self.outputs.shape} are. '
          f'Labels run from {self.batch.labels.min()} to {self.batch.labels.max()}: classes are '
          f'numbered from 0, and there are as many as outputs.')
    return errors

  @functools.cached_property
  def feedback(self) -> FeedbackWeights:
    """The weights that carry errors back."""
    return self._feedback(self._variables)

  @functools.cached_property
  def targets(self) -> Array | None:
    """The classes, one-hot and centred [n, C]; None where labels are none."""
    labels, outputs = self.batch.labels, self.outputs
    if labels.ndim != 1 or outputs.ndim != 2 or not jnp.issubdtype(labels.dtype, jnp.integer):
      return None
    one_hot = jax.nn.one_hot(labels, outputs.shape[1], dtype=outputs.dtype)
    return one_hot - one_hot.mean(0, keepdims=True)


@jax.jit
def _errors(loss, outputs, labels):
  return jax.grad(lambda outputs: jnp.sum(loss(outputs, labels)))(outputs)
