r"""Alignment scores of trained networks, layer by layer (Boopathy & Fiete 2022).

    python -m bioprop.bench.align_score configs/mnist_align_mlp.py:32 \
        configs/mnist_align_mlp.py:512 --rules=bp,align_ada,fa --epochs=2 --data_dir=...

Trains each rule on each configuration for some epochs, and beside it the shadow network that learns
by align_zero from the same errors, and prints a table: the score, mean over --seeds, and in
brackets that of the control. See bioprop/measure/align_score.py.
"""
import dataclasses
import functools
import math
import statistics

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import flags, logging

from bioprop.bench.sweep import asked, table
from bioprop.errors import ConfigError
from bioprop.fronts.plug import plug, unplug
from bioprop.measure import AlignmentScore, alignment_scores
from bioprop.probes.layers import layers
from bioprop.training import cli, step
from bioprop.training.state import State
from bioprop.training.trainer import Trainer
from bioprop.typing import Array, PyTree


def scores(config: ml_collections.ConfigDict, data_dir: str | None,
           epochs: int) -> dict[str, AlignmentScore]:
  """Trains a network and its shadow, and returns each layer's score.

  Args:
    config: of the run.
    data_dir: folder of prepared datasets.
    epochs: how long to train.
  """
  trainer = Trainer(config, data_dir)
  task, data, state = trainer.task, trainer.train_data, trainer.init()
  initial = jax.tree.map(jnp.copy, state.params)
  shadow = jax.tree.map(jnp.copy, initial), task.tx.init(initial)
  train = jax.jit(functools.partial(train_both, task))
  for epoch in range(1, epochs + 1):
    state, shadow = train(state, shadow, initial, data, epoch)
  moved = lambda params: jax.tree.map(jnp.subtract, params, initial)
  sample = task.normalise(data.images[:task.batch_size])
  return alignment_scores(layers(task.model, sample, train=False), moved(state.params),
                          moved(shadow[0]), key=task.key('step'))


def train_both(
    task: step.Task, state: State, shadow: tuple[PyTree, PyTree], initial: PyTree,
    data: step.Examples, epoch: Array,
) -> tuple[State, tuple[PyTree, PyTree]]:
  """One epoch of a network, and of the shadow that learns by align_zero from its errors.

  Args:
    task: the network's.
    state: its state.
    shadow: the shadow's parameters, and its optimiser's state.
    initial: the parameters that both began with.
    data: the training examples.
    epoch: 1 is the first.
  """
  lazy = dataclasses.replace(task, model=plug(unplug(task.model), 'align_zero'))

  def body(carry, index):
    state, (params, opt_state) = carry
    batch = step.Examples(*(jnp.take(leaf, index, axis=0) for leaf in data))
    kept = {**state.model_state, 'feedback': {'initial': initial}}
    grads = step.gradients(lazy, state.replace(model_state=kept), batch)[0]
    updates, opt_state = task.tx.update(grads, opt_state, params)
    return (step.train_step(task, state, batch)[0],
            (optax.apply_updates(params, updates), opt_state)), None

  indices = step.batch_indices(task, len(data.labels), epoch)
  return jax.lax.scan(body, (state, shadow), indices)[0]


def main(argv):
  """Prints the table."""
  logging.set_verbosity(logging.WARNING)
  with cli.reported():
    if not argv[1:]:
      raise ConfigError('there is nothing to train. Type for instance: python -m '
                        'bioprop.bench.align_score configs/mnist_align_mlp.py --data_dir=...')
    found = {}
    for one in asked.planned('.', argv[1:]):
      for layer, score in scores(one.config, flags.FLAGS.data_dir, flags.FLAGS.epochs).items():
        found.setdefault((one.rule, layer), {}).setdefault(one.column, []).append(score)
  columns = list(dict.fromkeys(column for row in found.values() for column in row))
  print(table.markdown([['rule', 'layer', *columns]] + [
      [*name, *(_cell(row.get(column)) for column in columns)] for name, row in found.items()]))


def _cell(seeds):
  """The mean score of the seeds, and that of the controls."""
  if seeds is None:
    return '-'
  score, control = (statistics.mean(map(float, values)) for values in zip(*seeds))
  return f'{score:.3f} ({control:.3f})' if math.isfinite(score) else 'diverged'


if __name__ == '__main__':
  asked.define_runs()
  flags.DEFINE_integer('epochs', 1, 'Epochs of each run.', lower_bound=1)
  cli.start(main, cli.Program(cli.TRAIN.configs, rules=True))
