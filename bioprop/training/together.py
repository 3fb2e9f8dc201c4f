"""Which runs one program can train together: those that differ in nothing but numbers.

Seeds, learning rates, scales of feedback: such runs do the same with other numbers, so that one
compiled step can do it for all of them, each with a state, an order of examples and numbers of its
own. Nobody says what such a number is; `training.common` finds out.
"""
import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from bioprop.training import step as step_lib
from bioprop.training.common import common
from bioprop.training.replicas import Alone, Numbered, Replicas
from bioprop.training.trainer import Trainer

_SHARE = 0.8  # Of the memory that is there, what one program may take.


def use_all_cores() -> None:
  """Makes each core that this process may use a device of the CPU, unless JAX has started."""
  with contextlib.suppress(RuntimeError):  # It has.
    if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
      cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
      jax.config.update('jax_num_cpu_devices', cores or 1)


def likeness(config: ml_collections.ConfigDict) -> str | None:
  """What configurations have in common whose runs may be replicas; None of one that stays alone.

  They differ in the seed and in numbers with a point, nothing else. Whether these are numbers to
  the program too, only `together` can tell.
  """
  if config.mesh is not None or config.distributed is not None:
    return None

  def settings(node):
    if isinstance(node, dict):
      return {name: settings(value) for name, value in node.items()}
    return 'a number' if isinstance(node, float) else node

  return json.dumps({**settings(config.to_dict()), 'seed': None}, sort_keys=True, default=str)


def but_for_seed(config: ml_collections.ConfigDict) -> str:
  """What configurations have in common of which one program is that of the other's seed too."""
  own = config.to_dict()
  if config.examples is None:  # Or the seed chooses these, and their mean.
    own['seed'] = None
  return json.dumps(own, sort_keys=True, default=str)


def together(trainers: Sequence[Trainer]) -> list[Alone | Replicas]:
  """Divides trainers into those that are one program.

  Args:
    trainers: of configurations of one `likeness`.
  """
  if likeness(trainers[0].config) is None:
    return [Alone(trainer) for trainer in trainers]
  by_state: dict[str, list[Trainer]] = {}  # An optimiser without momentum keeps less of it.
  for trainer in trainers:
    by_state.setdefault(str(jax.eval_shape(trainer.init)), []).append(trainer)
  return [engine for alike in by_state.values() for engine in _together(alike)]


def _together(trainers):
  if len(trainers) == 1:
    return [Alone(trainers[0])]
  # Seeds are inputs: only configurations that differ otherwise are traced.
  kinds: dict[str, list[int]] = {}
  for number, trainer in enumerate(trainers):
    kinds.setdefault(but_for_seed(trainer.config), []).append(number)
  members = list(kinds.values())
  # Of each kind and each of its functions, which program it is, and which row of its numbers.
  rows: list[dict[str, tuple[int, int]]] = [{} for _ in members]
  programs: dict[str, list[Any]] = {}
  for name, (function_of, args) in _functions(trainers[0]).items():
    programs[name] = common([function_of(trainers[own[0]]) for own in members], *args)
    for number, (_, chosen, _) in enumerate(programs[name]):
      for row, kind in enumerate(chosen):
        rows[kind][name] = number, row
  alike: dict[tuple[int, ...], list[int]] = {}
  for kind, own in enumerate(rows):
    alike.setdefault(tuple(number for number, _ in own.values()), []).append(kind)
  found: list[Alone | Replicas] = []
  for kinds_of_one in alike.values():
    where = sorted((number, kind) for kind in kinds_of_one for number in members[kind])
    own = [trainers[number] for number, _ in where]
    functions = {}
    for name in programs:
      program, _, numbers = programs[name][rows[kinds_of_one[0]][name][0]]
      order = [rows[kind][name][1] for _, kind in where]
      functions[name] = Numbered(program, [one[order] for one in numbers])
    found.append(Alone(own[0]) if len(own) == 1 else Replicas(own, functions))
  return found


def _functions(trainer: Trainer) -> dict[str, tuple[Callable[[Trainer], Callable], tuple]]:
  """What replicas have in common: maker from a trainer, and shapes of the arguments, by name."""
  seeded = lambda trainer, seed: dataclasses.replace(trainer.task, seed=seed)
  stepping = lambda trainer: lambda seed, *args: step_lib.train_step(seeded(trainer, seed), *args)
  evaluating = lambda trainer: lambda seed, *args: step_lib.evaluate(seeded(trainer, seed), *args)
  seed, state = jax.ShapeDtypeStruct((), jnp.uint32), jax.eval_shape(trainer.init)
  batch = step_lib.Examples(*(
      jax.ShapeDtypeStruct((trainer.config.batch_size, *leaf.shape[1:]), leaf.dtype)
      for leaf in trainer.train_data))
  found = {'step': (stepping, (seed, state, batch)),
           'test': (evaluating, (seed, state, jax.eval_shape(trainer.test_batches)))}
  if trainer.validation is not None:
    found['validation'] = evaluating, (seed, state, trainer.validation)
  return found


def within_memory(trainers: Sequence[Trainer], limit_gib: float | None = None
                  ) -> Iterator[Alone | Replicas]:
  """Yields what trains all of them: each as large as memory holds, made when it is asked for.

  Args:
    trainers: of configurations of one `likeness`.
    limit_gib: memory that one program may take on a device; None: most of what there is.
  """
  limit = _memory() if limit_gib is None else limit_gib * 2**30
  for engine in together(trainers):
    count = len(engine.trainers)
    if count > 1 and (needed := engine.bytes_needed()) > limit:
      size = math.ceil(count / math.ceil(needed / limit))
      logging.warning('%d runs together would take %.3g GiB of a device, and there are %.3g: they '
                      'are trained %d at a time.', count, needed / 2**30, limit / 2**30, size)
      for start in range(0, count, size):  # Examples are there however few they are: look again.
        yield from within_memory(engine.trainers[start:start + size], limit_gib)
    else:
      yield engine


def _memory() -> float:
  """Most of the bytes that a device has."""
  found = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in found:
    return _SHARE * found['bytes_limit']
  whole = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return _SHARE * whole / jax.local_device_count()
