"""Pure functions of one step, many steps in one scan, and evaluation: nothing here touches a disk.

All randomness is a function of (seed, epoch) or of (seed, step), never of what ran before, so that
a run that was interrupted goes on exactly as if it had not been.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioprop.jaxprs.convolutions import fast_convolutions
from bioprop.training.loss import counted
from bioprop.training.mesh import ONE_DEVICE, Placement
from bioprop.training.state import State
from bioprop.typing import Array, Key, PyTree


class Examples(NamedTuple):
  """Examples on the device: images uint8 [n, h, w, c] and labels int32 [n] (-1: padding).

  Or a text: characters uint8 [n, T], and a label for each of them, int32 [n, T]. Or sequences of
  numbers [n, T, c], with labels int32 [n, T] (-1: not asked) or targets float32 [n, T, outputs]
  (NaN: not asked, and padding).
  """
  images: Array
  labels: Array


class Metrics(NamedTuple):
  """Loss, and how many answers are correct and how many count.

  Of each step [steps], or summed over all labels []; no answer to targets is correct.
  """
  loss: Array
  correct: Array
  counted: Array


@dataclasses.dataclass(frozen=True)
class Task:
  """What stays the same from step to step: closed over, never traced.

  Attributes:
    model: maps images [n, h, w, c] to logits [n, classes], or sequences [n, T] or [n, T, c] to
      logits [n, T, classes].
    tx: the optimiser.
    loss: maps logits [..., classes] and labels [...] to the loss of each label [...].
    decide: maps logits [..., classes] to the labels [...] that they stand for; None for targets.
    augment: maps a key and images [n, h, w, c] to as many images, or None.
    mean, std: of each channel of the uint8 images, float32 [c], or of all pixels of rows, [1]; None
      for other sequences.
    seed: of all randomness; where replicas share a step, an array [].
    batch_size: examples of one step.
    placement: the devices that share a step.
    masked: some labels of the training examples do not count.
  """
  model: nn.Module
  tx: optax.GradientTransformation
  loss: Callable[[Array, Array], Array]
  decide: Callable[[Array], Array] | None
  augment: Callable[[Key, Array], Array] | None
  mean: np.ndarray | None
  std: np.ndarray | None
  seed: int | Array
  batch_size: int
  placement: Placement = ONE_DEVICE
  masked: bool = False

  def key(self, stream: str) -> Key:
    """The root of one stream of randomness: 'init', 'order' or 'step'."""
    return jax.random.fold_in(jax.random.key(self.seed), ('init', 'order', 'step').index(stream))

  def normalise(self, images: Array) -> Array:
    """Maps uint8 [n, h, w, c] to float32 of mean 0 and standard deviation 1 per channel.

    Numbers stay what they are, and so do characters, as int32 [n, T].
    """
    if self.mean is None:
      return images if jnp.issubdtype(images.dtype, jnp.floating) else images.astype(jnp.int32)
    shape = (1,) * (images.ndim - 1) + (-1,)
    return (images.astype(jnp.float32) - self.mean.reshape(shape)) / self.std.reshape(shape)


def apply_train(
    task: Task, params: PyTree, model_state: dict[str, PyTree], images: Array, step: Array,
    capture: Callable[[nn.Module, str], bool] | bool = False,
) -> tuple[Array, dict[str, PyTree]]:
  """Runs the model in training mode on uint8 images, as step `step` does.

  `capture` is flax's capture_intermediates: which outputs to return under 'intermediates'.

  Returns:
    Logits [n, classes] or [n, T, classes], and the collections that the model changed.
  """
  augment_key, dropout_key, feedback_key = jax.random.split(
      jax.random.fold_in(task.key('step'), step), 3)
  if task.augment is not None:
    images = task.augment(augment_key, images)
  # Frozen feedback stays as it was made; everything else that a model keeps (batch statistics)
  # may change.
  mutable = [name for name in model_state if name != 'feedback']
  if capture:
    mutable.append('intermediates')
  # Said here, or XLA may divide a layer's outputs as its weights are, and no longer as the batch.
  variables = task.placement.everywhere({'params': params, **model_state})
  return task.model.apply(
      variables, task.normalise(images), train=True, mutable=mutable,
      rngs={'dropout': dropout_key, 'feedback': feedback_key}, capture_intermediates=capture)


def gradients(task: Task, state: State, batch: Examples) -> tuple[PyTree, PyTree, Metrics]:
  """Returns the rule's gradients, the new model_state and the metrics of one batch."""
  def loss_fn(params):
    logits, new = apply_train(task, params, state.model_state, batch.images, state.step)
    losses = task.loss(logits, batch.labels)
    number = jnp.sum(counted(batch.labels))
    loss = jnp.sum(losses) / jnp.maximum(number, 1) if task.masked else jnp.mean(losses)
    return loss, ({**state.model_state, **new}, _correct(task, logits, batch.labels), number)

  (loss, (model_state, correct, number)), grads = jax.value_and_grad(
      loss_fn, has_aux=True)(state.params)
  return grads, model_state, Metrics(loss, correct, number)


def _correct(task, logits, labels):
  """How many answers are right; a label of -1 is nobody's answer."""
  if task.decide is None:
    return jnp.zeros((), jnp.int32)
  return jnp.sum(task.decide(logits) == labels)


def train_step(task: Task, state: State, batch: Examples) -> tuple[State, Metrics]:
  """One update."""
  grads, model_state, metrics = gradients(task, state, batch)
  updates, opt_state = task.tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return State(state.step + 1, params, model_state, opt_state), metrics


def batch_indices(task: Task, examples: int, epoch: Array | int) -> Array:
  """Which examples each step of an epoch sees: int32 [steps, batch_size].

  A permutation of all of them, less the incomplete last batch.
  """
  order = jax.random.permutation(jax.random.fold_in(task.key('order'), epoch), examples)
  steps = examples // task.batch_size
  return order[:steps * task.batch_size].reshape(steps, task.batch_size)


def train_steps(
    task: Task, length: int, state: State, data: Examples, epoch: Array, start: Array,
    step: Callable[[State, Examples], tuple[State, Metrics]] | None = None,
) -> tuple[State, Metrics, Array]:
  """Runs `length` steps of an epoch, from its step `start` on, as one scan.

  `step` makes one update; None: `train_step` of the task.

  Returns:
    The new state, the metrics of each step [length], and whether the new state is finite [].
  """
  place = task.placement
  indices = batch_indices(task, len(data.labels), epoch)
  indices = jax.lax.dynamic_slice_in_dim(indices, start, length)
  step = step or functools.partial(train_step, task)

  def body(state, index):
    batch = Examples(jnp.take(data.images, index, axis=0), jnp.take(data.labels, index, axis=0))
    state, metrics = step(state, place.spread(batch))
    return place.shard(state), metrics

  state, metrics = jax.lax.scan(
      fast_convolutions(body, alone=place.mesh is None), state, indices)
  return place.shard(state), *place.everywhere((metrics, all_finite(state)))


def predict(task: Task, state: State, images: Array) -> Array:
  """The model's logits for raw images [n, h, w, c] or sequences, in evaluation mode."""
  # A rule that draws its feedback asks for the stream although only the backward pass uses it.
  variables = task.placement.everywhere({'params': state.params, **state.model_state})
  return task.model.apply(
      variables, task.normalise(images), train=False, rngs={'feedback': task.key('step')})


def evaluate(task: Task, state: State, data: Examples) -> Metrics:
  """Sums loss and correct answers over all labels of batches, [batches, batch, ...]."""
  def body(total, batch):
    logits = predict(task, state, batch.images)
    real = counted(batch.labels)
    loss = jnp.sum(jnp.where(real, task.loss(logits, batch.labels), jnp.zeros((), logits.dtype)))
    new = Metrics(loss, _correct(task, logits, batch.labels), jnp.sum(real))
    return jax.tree.map(jnp.add, total, new), None

  zero = Metrics(jnp.zeros((), jnp.float32), *jnp.zeros((2,), jnp.int32))
  return task.placement.everywhere(jax.lax.scan(body, zero, data)[0])


def in_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, place: Placement = ONE_DEVICE,
) -> Examples:
  """Cuts examples into batches [batches, batch, ...] on the devices, the last filled up.

  What it is filled with has labels of -1, or targets of NaN, and counts nowhere.

  Over a mesh, batches are enlarged to what its devices can share evenly.
  """
  batch_size = -(-min(batch_size, len(labels)) // place.devices) * place.devices
  fill = -len(labels) % batch_size
  behind = lambda array: [(0, fill)] + [(0, 0)] * (array.ndim - 1)
  images = np.pad(images, behind(images))
  nothing = np.nan if np.issubdtype(labels.dtype, np.floating) else -1
  labels = np.pad(labels, behind(labels), constant_values=nothing)
  return place.put_batches(Examples(images.reshape(-1, batch_size, *images.shape[1:]),
                                    labels.reshape(-1, batch_size, *labels.shape[1:])))


def all_finite(tree: PyTree) -> Array:
  """Whether every floating-point leaf is finite, bool []."""
  leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
