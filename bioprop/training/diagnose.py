"""Where a number first stopped being finite: the same step once more, with everything looked at."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioprop.training import step as step_lib
from bioprop.training.state import State


class Finding(NamedTuple):
  """The first non-finite quantity of a step: what it is, and in which layer ('' for the loss)."""
  what: str
  layer: str


def examine(
    task: step_lib.Task, state: State, batch: step_lib.Examples,
) -> tuple[Finding | None, State]:
  """Makes one step and looks, in the order of computation, for the first non-finite quantity.

  Outputs of layers in the order of their calls, then the loss, then the rule's updates from the
  last layer back to the first, then the model's statistics and the new parameters.

  Returns:
    What was found, None if all is finite, and the state after the step.
  """
  calls = []  # Filled while the model is traced: the only order that says what came first.

  def capture(module, method):
    if method == '__call__' and module.path not in calls:
      calls.append(module.path)
    return method == '__call__'

  def look(state):
    logits, new = step_lib.apply_train(
        task, state.params, state.model_state, batch.images, state.step, capture)
    grads, model_state, metrics = step_lib.gradients(task, state, batch)
    updates, _ = task.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    seen = {'output': new.get('intermediates', {}), 'update': grads, 'statistics': model_state,
            'parameters': params}
    finite = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), seen)
    return finite, jnp.isfinite(metrics.loss) & jnp.all(jnp.isfinite(logits))

  finite, loss_finite = jax.device_get(jax.jit(look)(state))
  after, _ = jax.jit(lambda state: step_lib.train_step(task, state, batch))(state)
  return _first(finite, bool(loss_finite), calls), after


def describe(
    loss: float, finding: Finding | None, epoch: int, step: int, steps: int, total: int,
    rate: float, cure: str = '',
) -> str:
  """Returns one paragraph: what stopped being finite, when and where, and what to try.

  Args:
    loss: of the step that was noticed.
    finding: what `examine` found, None if the replay stayed finite.
    epoch, step, steps: the step's place, counted from 1, among those of its epoch.
    total: the step counted from the first epoch on.
    rate: its learning rate.
    cure: what to type besides.
  """
  where = ('made again, the step stayed finite, so the layer is not known' if finding is None else
           f'the first value that is not finite is {finding.what}'
           + (f' of {finding.layer}' if finding.layer else ''))
  return (f'training diverged in epoch {epoch}, step {step} of {steps} (step {total} in all, '
          f'learning rate {rate:.3g}, loss {loss}): {where}. No checkpoint of this epoch was '
          f'written, and those of earlier epochs are as they were. Try a smaller '
          f'--config.learning_rate={rate / 10:.1g}, or --config.clip_norm=1. {cure}').strip()


def _first(finite, loss_finite, calls):
  """Orders what is not finite by when it was computed."""
  bad = {what: _bad_paths(tree) for what, tree in finite.items()}
  order = {path: number for number, path in enumerate(calls)}
  when = lambda path: max((n for call, n in order.items() if path[:len(call)] == call), default=-1)
  outputs = [path for path in bad['output'] if path in order]
  if outputs:
    return Finding('the output', _name(min(outputs, key=order.get)))
  if not loss_finite:
    return Finding('the loss', '')
  if bad['update']:
    return Finding("the rule's update", _name(max(bad['update'], key=when)))
  for what in ('statistics', 'parameters'):
    if bad[what]:
      return Finding(f'the new {what}', _name(min(bad[what], key=when)))
  return None


def _bad_paths(tree):
  """Paths of modules (the leaf's own name left out) with a leaf that is not all finite."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  paths = [tuple(part.key for part in path if hasattr(part, 'key')) for path, leaf in leaves
           if not np.all(leaf)]
  return [path[:-1] for path in paths]


def _name(path):
  return '/'.join(path) or "the model's output"
