"""The NNX training steps that `bioprop.bench.speed` compares, written as Flax's examples are."""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from flax import nnx

from bioprop.bench.steps import Step, compiled_in, draw_batch, peak_mb
from bioprop.fronts.plug import plug
from bioprop.rules import make


class NnxMLP(nnx.Module):
  """784-1024-1024-10, ReLU."""

  def __init__(self, rngs: nnx.Rngs):
    widths = (784, 1024, 1024, 10)
    self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in zip(widths, widths[1:])])

  def __call__(self, images):
    x = images.reshape((images.shape[0], -1))
    for layer in self.layers[:-1]:
      x = nnx.relu(layer(x))
    return self.layers[-1](x)


class NnxCNN(nnx.Module):
  """Two convolutions with batch normalisation and dropout: the network of Flax's NNX example."""

  def __init__(self, rngs: nnx.Rngs):
    self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
    self.norm1 = nnx.BatchNorm(32, rngs=rngs)
    self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
    self.norm2 = nnx.BatchNorm(64, rngs=rngs)
    self.linear1 = nnx.Linear(3136, 256, rngs=rngs)
    self.dropout = nnx.Dropout(0.025, rngs=rngs)
    self.linear2 = nnx.Linear(256, 10, rngs=rngs)

  def __call__(self, images):
    x = nnx.avg_pool(nnx.relu(self.norm1(self.conv1(images))), (2, 2), (2, 2))
    x = nnx.avg_pool(nnx.relu(self.norm2(self.conv2(x))), (2, 2), (2, 2))
    return self.linear2(self.dropout(nnx.relu(self.linear1(x.reshape((x.shape[0], -1))))))


class Case(NamedTuple):
  """A model and the batch that it is timed on."""
  model: Callable[[nnx.Rngs], nnx.Module]
  inputs: tuple[int, ...]


CASES = {'nnx_mlp': Case(NnxMLP, (128, 28, 28, 1)), 'nnx_cnn': Case(NnxCNN, (32, 28, 28, 1))}


def make_step(case: Case, rule: str | None) -> Step:
  """Compiles one step of SGD with momentum on the mean cross-entropy, under `nnx.jit`.

  Args:
    case: the model and the shape of its batch.
    rule: a name in `bioprop.RULES`; None for the plain NNX model.
  """
  batch = draw_batch(case.inputs)
  model = case.model(nnx.Rngs(2))
  if rule is not None:
    plug(model, make(rule), nnx.Rngs(3), batch[0])
  optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

  def step(model, optimizer, images, labels):
    def loss_fn(model):
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(images), labels))

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss

  jitted = lambda: nnx.jit(lambda *args: step(*args), donate_argnums=(0, 1))
  compiled, *seconds = compiled_in(jitted, model, optimizer, *batch)
  # The state is changed in place: what is handed from step to step are the same two objects.
  run = lambda state, batch: (state, compiled(*state, *batch))
  return Step(run, (model, optimizer), batch, peak_mb(compiled), *seconds)
