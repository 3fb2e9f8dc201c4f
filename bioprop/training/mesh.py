"""Where arrays lie: on one device, or over a mesh of them.

Every computation is written as for one device. Over a mesh, the arrays that go in lie on many, and
XLA divides the work among them and puts in the communication (GSPMD): numbers are those of one
device, but for the order of sums. Random streams are the same, since JAX draws them by position
(`jax_threefry_partitionable`).

    data    each device has all the parameters and a part of the batch
    fsdp    each device has a part of the parameters too, and of all else in the state

The batch is divided among all devices of both axes. An array of the state is divided over 'fsdp'
along the largest of its dimensions that divides, and is whole on each device where none does. Its
shape alone decides. So frozen feedback lies as its kernel does, and so do Kolen and Pollack's
learned feedback and the optimiser's moments. A step gathers parameters and feedback where it needs
them, and keeps its parts of what it changed. The training examples are whole on each device, which
then picks its part of a batch by itself.
"""
import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bioprop.errors import ConfigError
from bioprop.typing import Array, PyTree

AXES = ('data', 'fsdp')
_EXAMPLES = "'data=8', or 'data=2,fsdp=4'"


@dataclasses.dataclass(frozen=True)
class Placement:
  """Says where each array lies; without a mesh, everything stays where JAX puts it.

  Attributes:
    mesh: the devices, with axes out of `AXES`.
  """
  mesh: Mesh | None = None

  @property
  def devices(self) -> int:
    """How many devices share a batch."""
    return 1 if self.mesh is None else self.mesh.size

  def spread(self, tree: PyTree) -> PyTree:
    """Inside jit: arrays [batch, ...] divided among all devices."""
    return self._constrain(tree, lambda leaf: self._batch(0))

  def shard(self, tree: PyTree) -> PyTree:
    """Inside jit: arrays of the state, each where `sharding` has it."""
    tree = self._constrain(tree, lambda leaf: self.sharding(leaf.shape))
    if self.mesh is None or 'fsdp' not in self.mesh.shape:
      return tree
    # In a loop XLA would see that frozen feedback never changes, and gather the whole of it before
    # the first step: no memory would be saved. Behind a barrier with the rest, it may change.
    return jax.lax.optimization_barrier(tree)

  def everywhere(self, tree: PyTree) -> PyTree:
    """Inside jit: arrays whole on each device, to compute with or for every process to read."""
    return self._constrain(tree, lambda leaf: NamedSharding(self.mesh, P()))

  def sharding(self, shape: Sequence[int]) -> NamedSharding:
    """Where an array of the state lies; only with a mesh."""
    parts = self.mesh.shape.get('fsdp', 1)
    divisible = [size if size % parts == 0 else 0 for size in shape]
    if parts == 1 or not any(divisible):
      return NamedSharding(self.mesh, P())
    axis = divisible.index(max(divisible))
    return NamedSharding(self.mesh, P(*[None] * axis, 'fsdp'))

  def put_everywhere(self, tree: PyTree) -> PyTree:
    """Moves host arrays to the device, or whole to each."""
    return self._put(tree, lambda: NamedSharding(self.mesh, P()))

  def put_batches(self, tree: PyTree) -> PyTree:
    """Moves host arrays [batches, batch, ...] to the device, or each batch divided among all."""
    return self._put(tree, lambda: self._batch(1))

  def _batch(self, axis):
    return NamedSharding(self.mesh, P(*[None] * axis, self.mesh.axis_names))

  def _constrain(self, tree, sharding):
    if self.mesh is None:
      return tree
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding(leaf)), tree)

  def _put(self, tree, sharding):
    if self.mesh is None:
      return jax.device_put(tree)
    return jax.tree.map(lambda leaf: _to_mesh(leaf, sharding()), tree)


ONE_DEVICE = Placement()


def make_placement(config: ml_collections.ConfigDict) -> Placement:
  """Returns the placement that config.mesh asks for.

  Raises:
    ConfigError: if it cannot be read, or does not fit the devices or the batch.
  """
  if config.mesh is None:
    if jax.distributed.is_initialized() and jax.process_count() > 1:
      raise ConfigError(
          f'config.mesh is None, one device, but {jax.process_count()} processes run together. '
          f'Type --config.mesh=data={jax.device_count()}.')
    return ONE_DEVICE
  sizes = parse(config.mesh)
  wanted, there = math.prod(sizes.values()), jax.device_count()
  if wanted != there:
    virtual = ('' if jax.default_backend() != 'cpu' or wanted % jax.process_count() else
               '; or, for virtual devices of the CPU, set XLA_FLAGS='
               f'--xla_force_host_platform_device_count={wanted // jax.process_count()}')
    raise ConfigError(
        f'config.mesh is {config.mesh!r}, which makes {wanted} devices, and there are {there} '
        f'({jax.default_backend()}). A mesh takes all of them: type --config.mesh=data={there}'
        f'{virtual}.')
  if config.batch_size % wanted:
    near = max(config.batch_size // wanted, 1) * wanted
    raise ConfigError(
        f'config.batch_size is {config.batch_size}, which the {wanted} devices of config.mesh='
        f'{config.mesh} cannot share evenly. Type for instance --config.batch_size={near}.')
  return Placement(jax.make_mesh(
      tuple(sizes.values()), tuple(sizes),
      axis_types=(jax.sharding.AxisType.Auto,) * len(sizes)))


def parse(mesh: str) -> dict[str, int]:
  """Reads 'data=2,fsdp=4' into the size of each axis.

  Raises:
    ConfigError: if it is of another form, or names an axis that is not in `AXES`.
  """
  sizes = {}
  for part in mesh.split(','):
    match = re.fullmatch(r'\s*(\w+)\s*=\s*([1-9]\d*)\s*', part)
    if not match:
      raise ConfigError(
          f'config.mesh is {mesh!r}, and {part!r} is not an axis and its size, a positive number. '
          f'A mesh is for instance {_EXAMPLES}: type --config.mesh=data=8.')
    name, size = match.groups()
    if name not in AXES or name in sizes:
      fault = 'the axis {!r} twice' if name in sizes else 'an axis {!r}, which is none'
      raise ConfigError(
          f'config.mesh is {mesh!r}, with {fault.format(name)}. The axes are {AXES[0]!r}, which '
          f'divides the batch, and {AXES[1]!r}, which divides the parameters too: for instance '
          f'{_EXAMPLES}. Type --config.mesh=data={size}.')
    sizes[name] = int(size)
  return sizes


def put_like(template: Array, leaf: np.ndarray) -> Array:
  """Moves a host array to where `template` lies, of the same shape."""
  if isinstance(template.sharding, NamedSharding):
    return _to_mesh(leaf, template.sharding)
  return jnp.asarray(leaf)


def gather(leaf: Array) -> np.ndarray:
  """A copy of a whole array on the host; of one that lies in several processes, in each of them.

  All processes must call this on the same arrays in the same order.
  """
  if leaf.is_fully_addressable or leaf.is_fully_replicated:
    return np.array(leaf)
  return multihost_utils.process_allgather(leaf, tiled=True)


def _to_mesh(leaf, sharding):
  """Each process hands over the parts of its own devices."""
  leaf = np.asarray(leaf)
  return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
