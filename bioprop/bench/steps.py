"""The training steps that `bioprop.bench.speed` compares: one model, with and without a plug."""
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bioprop.fronts.plug import plug
from bioprop.models import MLP, LeNet, ResNet18, ResNet20, Transformer
from bioprop.rules import make


class Case(NamedTuple):
  """A model and the batch that it is timed on: images, or tokens [n, T], each with its label."""
  model: nn.Module
  inputs: tuple[int, ...]
  tokens: bool = False


# The batch of the large ResNet is what two CPU cores step through in about a second.
CASES = {
    'mlp': Case(MLP(hidden=(1024, 1024), activation='relu'), (128, 28, 28, 1)),
    'lenet': Case(LeNet(), (64, 28, 28, 1)),
    'resnet20': Case(ResNet20(), (128, 32, 32, 3)),
    'resnet18': Case(ResNet18(), (16, 32, 32, 3)),
    'transformer': Case(Transformer(layers=4), (16, 64), tokens=True),
}


class Step(NamedTuple):
  """A compiled training step and what it is called with.

  Attributes:
    run: maps (state, batch) to (state, loss); uses the state up.
    state: the first state.
    batch: images and labels.
    peak_mb: memory that the step needs on the device, in MB: arguments, results, temporaries.
    trace_s: seconds that tracing took.
    compile_s: seconds that lowering and compiling took.
  """
  run: Callable[[Any, Any], tuple[Any, jax.Array]]
  state: Any
  batch: tuple[jax.Array, jax.Array]
  peak_mb: float
  trace_s: float
  compile_s: float


def make_step(case: Case, rule: str | None) -> Step:
  """Compiles one step of SGD with momentum on the mean cross-entropy.

  Args:
    case: the model and the shape of its batch.
    rule: a name in `bioprop.RULES`; None for the plain Flax model.
  """
  model = case.model if rule is None else plug(case.model, make(rule))
  inputs, labels = draw_batch(case.inputs, case.tokens)
  variables = jax.jit(model.init)(jax.random.key(2), inputs)
  params = variables.pop('params')
  tx = optax.sgd(1e-3, momentum=0.9)
  # Frozen feedback is an input that stays; batch statistics change and travel with the state.
  frozen = {name: value for name, value in variables.items() if name == 'feedback'}
  moving = {name: value for name, value in variables.items() if name != 'feedback'}

  def step(state, frozen, batch):
    params, opt_state, moving, key = state
    key, now = jax.random.split(key)

    def loss_fn(params):
      logits, new = model.apply({'params': params, **frozen, **moving}, batch[0], train=True,
                                mutable=list(moving), rngs={'feedback': now})
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
      return jnp.mean(loss), new

    (loss, moving), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, moving, key), loss

  state, batch = (params, tx.init(params), moving, jax.random.key(3)), (inputs, labels)
  compiled, *seconds = compiled_in(
      lambda: jax.jit(lambda *args: step(*args), donate_argnums=0), state, frozen, batch)
  return Step(lambda state, batch: compiled(state, frozen, batch), state, batch,
              peak_mb(compiled), *seconds)


def draw_batch(shape: tuple[int, ...], tokens: bool = False) -> tuple[jax.Array, jax.Array]:
  """Images of a shape [n, ...] and labels in 0..9 [n]; or tokens and labels, both [n, T]."""
  inputs = (jax.random.randint(jax.random.key(0), shape, 0, 10) if tokens else
            jax.random.normal(jax.random.key(0), shape))
  return inputs, jax.random.randint(jax.random.key(1), shape if tokens else shape[:1], 0, 10)


def compiled_in(make: Callable[[], Any], *args: Any) -> tuple[Any, float, float]:
  """Compiles a step, and says how long that takes.

  Args:
    make: makes a jitted step that was not traced before.
    *args: of the step.

  Returns:
    The compiled step, seconds of tracing (the second time, as the first also fills caches of what
    all models use), and seconds of lowering and compiling.
  """
  make().trace(*args)
  jitted, began = make(), time.perf_counter()
  traced = jitted.trace(*args)
  seconds, began = time.perf_counter() - began, time.perf_counter()
  return traced.lower().compile(), seconds, time.perf_counter() - began


def peak_mb(compiled: Any) -> float:
  """Memory that a compiled function needs on the device, in MB."""
  memory = compiled.memory_analysis()
  return (memory.argument_size_in_bytes + memory.output_size_in_bytes
          + memory.temp_size_in_bytes - memory.alias_size_in_bytes) / 1e6
