"""Trainers of runs that differ in nothing but numbers, in one program.

Where they run. Over all local devices, as many on each. On an accelerator those of one device are
`vmap`ed. On the CPU they take turns: a convolution by a batch of kernels is slower there than one
after the other. A core is a device then (`together.use_all_cores`), and two cores train two
replicas at once, each without waiting for the other, which makes more of them than sharing out the
products of one.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bioprop.training import probing
from bioprop.training import step as step_lib
from bioprop.training.average import Average
from bioprop.training.state import State
from bioprop.training.trainer import NotFinite, Tally, Trainer, wait
from bioprop.typing import PyTree

_AXIS = 'replica'

Tick = Callable[[int], None]
See = Callable[[int, probing.Measured], None]  # Of which replica, and what a probe found.


class Numbered(NamedTuple):
  """A function of numbers and other arguments, and the numbers of all replicas."""
  run: Callable[..., Any]
  numbers: list[np.ndarray]


class Alone:
  """One trainer, with the methods of `Replicas`."""

  def __init__(self, trainer: Trainer):
    self.trainers = [trainer]

  def stack(self, states: Sequence[State]) -> State:
    """The state, as `epoch` takes it."""
    state, = states
    return state

  def each(self, state: State) -> Iterator[State]:
    """The state."""
    yield state

  def epoch(self, state: State, epoch: int, tick: Tick, see: See
            ) -> tuple[State, list[Average | NotFinite]]:
    """One epoch; the state that came in is used up."""
    trainer, = self.trainers
    try:
      state, train = trainer.epoch(state, epoch, tick, functools.partial(see, 0))
    except NotFinite as failure:
      return state, [failure]
    return state, [train]

  def validate(self, state: State) -> list[Average | None]:
    """What is reported of the validation split, None where there is none."""
    return [self.trainers[0].validate(state)]

  def test(self, state: State) -> list[Average]:
    """What is reported of the test split, which is for no choice."""
    return [self.trainers[0].test(state)]


class Replicas:
  """Several trainers in one program; made by `together.together`.

  States are one `State` whose arrays are stacked, [replicas, ...], and lie over the devices.

  Attributes:
    trainers: one for each replica.
  """

  def __init__(self, trainers: Sequence[Trainer], functions: Mapping[str, Numbered]):
    """Prepares the program.

    Args:
      trainers: of runs that are alike.
      functions: 'step' maps numbers, a seed, a state and a batch to what `train_step` gives; 'test'
        and 'validation' map numbers, a seed, a state and batches to metrics.
    """
    self.trainers, first = list(trainers), trainers[0]
    devices = jax.local_devices()[:len(trainers)]
    # As many on each device; the last one again where there are not enough, and not looked at.
    padded = -(-len(trainers) // len(devices)) * len(devices)
    self._mine = np.minimum(np.arange(padded), len(trainers) - 1)
    self._mesh = Mesh(np.asarray(devices), (_AXIS,))
    seeds = np.asarray([trainer.config.seed for trainer in trainers], np.uint32)
    self._numbers = {name: self._spread([one[self._mine] for one in own.numbers])
                     for name, own in functions.items()}
    self._seeds = self._spread(seeds[self._mine])
    self._own_data = first.config.examples is not None
    self._data = (self._spread(jax.tree.map(
        lambda *leaves: np.stack(leaves)[self._mine],
        *(jax.device_get(trainer.train_data) for trainer in trainers)))
                  if self._own_data else self._whole(first.train_data))
    self._validation = None if first.validation is None else self._whole(first.validation)

    def train(length, numbers, seeds, states, data, epoch, start):
      def one(numbers, seed, state, data):
        return step_lib.train_steps(
            dataclasses.replace(first.task, seed=seed), length, state, data, epoch, start,
            functools.partial(functions['step'].run, numbers, seed))
      if self._own_data:
        return _each(one, numbers, seeds, states, data)
      return _each(lambda *args: one(*args, data), numbers, seeds, states)

    data = P(_AXIS) if self._own_data else P()
    specs = (P(_AXIS),) * 3 + (data, P(), P())
    self._train = lambda length: jax.jit(
        self._mapped(functools.partial(train, length), specs), donate_argnums=2)
    self._compiled: dict[int, Any] = {}  # By the number of steps of a call.
    self._evaluate = {name: jax.jit(self._mapped(
        lambda numbers, seeds, states, batches, run=functions[name].run: _each(
            lambda *args: run(*args, batches), numbers, seeds, states),
        (P(_AXIS),) * 3 + (P(),))) for name in functions if name != 'step'}

  def bytes_needed(self) -> int:
    """Memory that the program takes on one device, as XLA counts it."""
    _, length = next(self.trainers[0].calls())
    stacked = lambda leaf: jax.ShapeDtypeStruct(
        (len(self._mine), *leaf.shape), leaf.dtype, sharding=NamedSharding(self._mesh, P(_AXIS)))
    states = jax.tree.map(stacked, jax.eval_shape(self.trainers[0].init))
    memory = self._compile(length, states).memory_analysis()
    return (memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes - memory.alias_size_in_bytes)

  def _compile(self, length, states):
    if length not in self._compiled:
      self._compiled[length] = self._train(length).lower(
          *self._of_step(states, 1, 0)).compile()
    return self._compiled[length]

  def stack(self, states: Sequence[State]) -> State:
    """States of all replicas, as `epoch` takes them."""
    hosts = [jax.device_get(state) for state in states]
    return self._spread(jax.tree.map(lambda *leaves: np.stack(leaves)[self._mine], *hosts))

  def each(self, states: State) -> Iterator[State]:
    """The state of each replica, in their order."""
    host = jax.device_get(states)
    for number in range(len(self.trainers)):
      yield jax.tree.map(lambda leaf, at=number: jnp.asarray(leaf[at]), host)

  def epoch(self, states: State, epoch: int, tick: Tick, see: See
            ) -> tuple[State, list[Average | NotFinite]]:
    """One epoch of all; the states that came in are used up.

    A replica whose numbers stop being finite is reported as such, and computes on with what it has:
    the others do not notice.
    """
    tallies: list[Tally | NotFinite] = [Tally(trainer, epoch) for trainer in self.trainers]
    for start, length in self.trainers[0].calls():
      self._probe(states, start, see, [isinstance(tally, Tally) for tally in tallies])
      states, metrics, finite = self._compile(length, states)(
          *self._of_step(states, epoch, start))
      wait(finite, tick)
      metrics, finite = jax.device_get((metrics, finite))
      for number, tally in enumerate(tallies):
        if isinstance(tally, Tally):
          own = step_lib.Metrics(*(leaf[number] for leaf in metrics))
          try:
            tally.add(start, own, bool(finite[number]))
          except NotFinite as failure:
            tallies[number] = failure
      tick(length)
    return states, [one.average() if isinstance(one, Tally) else one for one in tallies]

  def validate(self, states: State) -> list[Average | None]:
    """What is reported of the validation split, of each; None where there is none."""
    if self._validation is None:
      return [None] * len(self.trainers)
    return self._averages(states, self._validation, 'validation')

  def test(self, states: State) -> list[Average]:
    """What is reported of the test split, of each."""
    return self._averages(states, self._whole(self.trainers[0].test_batches()), 'test')

  def _probe(self, states, start, see, finite):
    """Asks the probes that are due, of replicas that are finite; all have the same."""
    if any(start % probe.every == 0 for probe in self.trainers[0].probes):
      for number, (trainer, state) in enumerate(zip(self.trainers, self.each(states))):
        for measured in probing.measure(trainer.probes, state, start) if finite[number] else ():
          see(number, measured)

  def _of_step(self, states, epoch, start):
    counts = self._whole((np.int32(epoch), np.int32(start)))
    return self._numbers['step'], self._seeds, states, self._data, *counts

  def _averages(self, states, batches, split):
    found = jax.device_get(self._evaluate[split](
        self._numbers[split], self._seeds, states, batches))
    return [trainer.average(step_lib.Metrics(*(leaf[number] for leaf in found)), split)
            for number, trainer in enumerate(self.trainers)]

  def _mapped(self, function, specs):
    return jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=P(_AXIS),
                         check_vma=False)

  def _spread(self, tree: PyTree) -> PyTree:
    return jax.device_put(tree, NamedSharding(self._mesh, P(_AXIS)))

  def _whole(self, tree: PyTree) -> PyTree:
    return jax.device_put(tree, NamedSharding(self._mesh, P()))


def _each(function, *stacked):
  """[replicas, ...] of all that the function gives, of this device's replicas."""
  if _takes_turns():
    return jax.lax.map(lambda args: function(*args), stacked)
  return jax.vmap(function)(*stacked)


def _takes_turns() -> bool:
  """Whether replicas of one device run one after the other."""
  return jax.default_backend() == 'cpu'
