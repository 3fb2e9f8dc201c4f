"""Several processes that train one model: how they meet, what the first does for all, how they end.

Each process is started by the same command, and computes on its own devices; a mesh (config.mesh)
joins the devices of all. On a cluster with SLURM, one process for each GPU (JAX gives each its
own), here eight on each of four machines:

    srun --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 python train.py \
        --config.mesh=data=4,fsdp=8 --config.distributed=auto --workdir=/shared/run

JAX finds SLURM's processes by itself, and those of Open MPI, of Kubernetes and of Cloud TPUs. By
hand, with an address of the first machine that the others reach, and a free port:

    python train.py --config.mesh=data=2 --config.distributed=10.0.0.1:1234,2,0    # on 10.0.0.1
    python train.py --config.mesh=data=2 --config.distributed=10.0.0.1:1234,2,1    # elsewhere

Process 0 alone writes; all read the checkpoint that they go on from, so that --workdir must be a
directory that all of them see.

Nothing waits for ever. Processes that do not all meet end after `JOIN_SECONDS`. When one dies, its
closed connections end the others' next collective with an error, or JAX ends them; when a whole
machine vanishes, they end after JAX's heartbeat timeout (100 s), and after its shutdown timeout
(300 s) when a process that failed waits for others which still compute. The same command in every
process goes on from the last checkpoint.
"""
import contextlib
import os
import pathlib
import pickle
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from bioprop.errors import BiopropError, ConfigError, DistributedError, LostProcessError
from bioprop.training import mesh, workdir

JOIN_SECONDS = 300
_AUTO = 'auto'
_T = TypeVar('_T')


class Member(NamedTuple):
  """What config.distributed says, if it is not 'auto'."""
  coordinator: str
  processes: int
  process: int


def join(config: ml_collections.ConfigDict) -> None:
  """Meets the other processes, where config.distributed asks for it and it has not happened yet.

  Must come before anything that makes JAX look for devices. If not all processes come in time, JAX
  would abort this one without an exception; it ends with status 1 and a paragraph instead.

  Raises:
    ConfigError: if config.distributed cannot be read, has no mesh, no cluster, or comes too late.
  """
  wish = config.get('distributed')
  if wish is None or jax.distributed.is_initialized():
    return
  member = None if wish == _AUTO else parse(wish)
  if config.get('mesh') is None:
    raise ConfigError(
        f'config.distributed is {wish!r}, and config.mesh is None: one device, which none '
        'shares. Give the mesh of all processes\' devices; with one device in each process, type '
        f'--config.mesh=data={member.processes if member else 8}.')
  mesh.parse(config.mesh)  # A typing error is told before others are waited for.
  if member and member.process == 0:
    _check_port(wish, member)
  # Read when the first device is asked for; elsewhere than on the CPU it changes nothing.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  late = threading.Timer(JOIN_SECONDS, _end_of_waiting, [member])
  late.daemon = True
  late.start()
  try:
    # Longer than the timer: JAX ends its own waiting by aborting the process.
    jax.distributed.initialize(*(member or ()), initialization_timeout=JOIN_SECONDS + 60)
  except (RuntimeError, ValueError, OSError) as error:
    raise ConfigError(_not_joined(wish, member, error)) from error
  finally:
    late.cancel()


def parse(distributed: str) -> Member:
  """Reads 'HOST:PORT,NUM_PROCESSES,PROCESS_ID'.

  Raises:
    ConfigError: if it is of another form, or no port or no process has this number.
  """
  match = re.fullmatch(r'([^\s,]+:(\d+)),(\d+),(\d+)', distributed)
  fault = None
  if not match:
    fault = f'it is neither {_AUTO!r} nor HOST:PORT,NUM_PROCESSES,PROCESS_ID'
  elif not 0 < int(match[2]) < 2**16:
    fault = f'{match[2]} is no port, which are 1 to 65535'
  elif not int(match[4]) < int(match[3]):
    fault = f'process {match[4]} is none of {match[3]}, which count from 0'
  if fault:
    raise ConfigError(
        f'config.distributed is {distributed!r}: {fault}. Under SLURM, Open MPI, Kubernetes or on '
        f'a Cloud TPU type --config.distributed={_AUTO}; else, in the first of two processes, '
        '--config.distributed=localhost:1234,2,0, and in the other --config.distributed='
        'localhost:1234,2,1, with an address of the first one\'s machine.')
  return Member(match[1], int(match[3]), int(match[4]))


def is_first() -> bool:
  """Whether this is the process that writes; the only one is."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def from_first(function: Callable[[], _T]) -> _T:
  """Calls a function in process 0, and returns its result, or raises its error, in every process.

  All processes must call this in the same order. The result must be picklable.

  Raises:
    DistributedError: in the other processes, if the function failed by anything but an error of
      ours.
  """
  if not jax.distributed.is_initialized():
    return function()
  outcome, raised = None, None
  if is_first():
    try:
      outcome = function(), None
    except Exception as error:
      raised = error
      outcome = None, error if isinstance(error, BiopropError) else DistributedError(
          f'process 0 failed, and with it the run: {type(error).__name__}: {error}. Its own output '
          'says where.')
  result, error = _broadcast(outcome)
  if error is not None:
    raise raised or error
  return result


def on_first(function: Callable[[], _T]) -> _T | None:
  """Calls a function in process 0; returns its result there, and None elsewhere.

  Raises:
    DistributedError: as `from_first`.
  """
  results = []
  from_first(lambda: results.append(function()))
  return results[0] if results else None


def check_same(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError in every process if one was started with another configuration."""
  if not jax.distributed.is_initialized():
    return
  own = _shared(config)
  lines = workdir.differences(from_first(lambda: own), own)
  other = np.flatnonzero(multihost_utils.process_allgather(np.array([bool(lines)])))
  if other.size:
    which = '; '.join(lines) or f'see what process {other[0]} says'
    raise ConfigError(
        f'process {", ".join(map(str, other))} was started with another configuration than process '
        f'0: {which}. Give all processes the same command, but for config.distributed.')


@contextlib.contextmanager
def needing_all() -> Iterator[None]:
  """Says which error it is when a collective failed because another process is gone.

  Raises:
    LostProcessError: in place of what JAX raised.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    gloo = 'Gloo' in str(error)  # The CPU's collectives raise a ValueError.
    own = 'RESOURCE_EXHAUSTED' in str(error)  # Out of memory: no other's fault.
    if own or not jax.distributed.is_initialized() or not (
        gloo or isinstance(error, jax.errors.JaxRuntimeError)):
      raise
    raise LostProcessError(
        f'process {jax.process_index()} of {jax.process_count()} can no longer compute with the '
        f'others, most likely because one of them ended ({str(error).splitlines()[0]}). Its '
        'own output says why. The same command in every process goes on from the last checkpoint.'
    ) from error


def leave(status: int) -> None:
  """Ends the process at once: at a normal end, JAX would wait for those that are gone."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _broadcast(value: Any) -> Any:
  """The value that process 0 has, in every process."""
  message = np.frombuffer(pickle.dumps(value), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  # Few sizes, since each one is compiled.
  buffer = np.zeros(max(4096, 1 << (size - 1).bit_length()), np.uint8)
  if is_first():
    buffer[:size] = message
  return pickle.loads(multihost_utils.broadcast_one_to_all(buffer)[:size].tobytes())


def _shared(config):
  """The configuration but for what differs between processes."""
  values = workdir.as_json(config)
  values.pop('distributed', None)
  return values


def _end_of_waiting(member):
  """Runs beside `join` when it takes too long."""
  where = (f' at {member.coordinator}' if member else '')
  who = (f'process {member.process} of {member.processes}' if member else 'this process')
  print(f'{pathlib.Path(sys.argv[0]).name}: the processes of config.distributed did not all meet'
        f'{where} within {JOIN_SECONDS} seconds, and {who} ends. Start the same command in every '
        'one of them, process 0 on the machine whose address it is, with a port that the others '
        'can reach.', file=sys.stderr)
  leave(1)


def _check_port(wish, member):
  """Raises ConfigError if another program has the port: JAX may crash the process instead."""
  dual = socket.has_dualstack_ipv6()
  try:
    socket.create_server(
        ('', int(member.coordinator.rpartition(':')[2])), dualstack_ipv6=dual,
        family=socket.AF_INET6 if dual else socket.AF_INET).close()
  except OSError as error:
    raise ConfigError(_not_joined(wish, member, error)) from error


def _not_joined(wish, member, error):
  reason = ' '.join(str(error).split())[:200]
  if 'must be called before' in reason:
    return (f'config.distributed is {wish!r}, but JAX has already made its devices in this '
            'process, without the others. Call bioprop.training.distributed.join(config) before '
            'anything else of JAX.')
  if member is None:
    return ('config.distributed is \'auto\', and JAX finds no cluster that it knows around this '
            f'process ({reason}). Start it by srun or mpirun; or type, in the first of two '
            'processes, --config.distributed=localhost:1234,2,0, and ...,2,1 in the other.')
  return (f'process {member.process} cannot meet the others at {member.coordinator}: {reason}. '
          'Process 0 must run on the machine of that address, and its port must be free: try '
          'another one in --config.distributed=HOST:PORT,NUM_PROCESSES,PROCESS_ID.')
