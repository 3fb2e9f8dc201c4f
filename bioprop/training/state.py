"""What training carries from step to step, and what a checkpoint holds."""
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from bioprop.typing import PyTree

Init = Callable[[dict[str, jax.Array], jax.Array], dict[str, PyTree]]


@flax.struct.dataclass
class State:
  """The whole state of a run: with the configuration, it determines all that follows.

  Attributes:
    step: number of updates made, int32 [].
    params: what the optimiser moves.
    model_state: the model's other collections: 'feedback' (frozen), 'batch_stats'.
    opt_state: the optimiser's state.
  """
  step: jax.Array
  params: PyTree
  model_state: dict[str, PyTree]
  opt_state: PyTree


def make_init(model: nn.Module) -> Init:
  """Returns the model's init, compiled once for all keys."""
  return jax.jit(lambda keys, x: model.init(keys, x, train=False))


def make_state(
    init: Init, tx: optax.GradientTransformation, key: jax.Array, sample: jax.Array,
) -> State:
  """Returns the state before the first step.

  Args:
    init: of `make_init`.
    tx: the optimiser.
    key: for all that is drawn.
    sample: [1, ...], which gives the input's shape.
  """
  params_key, feedback_key, dropout_key = jax.random.split(key, 3)
  rngs = {'params': params_key, 'feedback': feedback_key, 'dropout': dropout_key}
  variables = init(rngs, sample)
  params = variables['params']
  model_state = {name: tree for name, tree in variables.items() if name != 'params'}
  return State(jnp.zeros((), jnp.int32), params, model_state, tx.init(params))
