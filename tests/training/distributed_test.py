"""Two processes that train one model: the parameters of one, and an end in every case."""
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from bioprop.errors import ConfigError, DistributedError, LostProcessError
from bioprop.training import base, distributed, metrics
from bioprop.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ('--config.epochs=2', '--config.model_options.hidden=16', '--config.batch_size=100')
MESH = '--config.mesh=fsdp=2'  # Each process has half of each parameter.
SECONDS = 600  # Two processes that start, on two cores that others use.

# train.py in a process that kills itself when it has saved the first epoch.
DIES = '''
import os, runpy, signal, sys
from bioprop.training.checkpoint import Checkpoints
plain = Checkpoints.save
def save(self, epoch, state):
  plain(self, epoch, state)
  os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save = save
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''
# train.py in a process that waits for others only this long.
IMPATIENT = '''
import runpy, sys
from bioprop.training import distributed
distributed.JOIN_SECONDS = 3
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


def _start(cwd, *flags, program=None, env=None):
  how = ['-c', program] if program else []
  # One device in each process, whatever this machine has.
  clean = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return subprocess.Popen(
      [sys.executable, *how, str(ROOT / 'train.py'), *flags], cwd=cwd, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=clean | {'JAX_PLATFORMS': 'cpu'} | (env or {}))


def _ended(*processes):
  """(status, stdout, stderr) of each; none is left behind."""
  try:
    ends = [process.communicate(timeout=SECONDS) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, *end) for process, end in zip(processes, ends)]


def _free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def _two(cwd, *flags, programs=(None, None), own=((), ())):
  """Runs the same command in two processes, with flags of their `own`."""
  where = f'--config.distributed=localhost:{_free_port()},2'
  return _ended(*(
      _start(cwd, *SMALL, MESH, *flags, *own[number], f'{where},{number}',
             program=programs[number]) for number in range(2)))


def _leaves(run):
  """Every leaf of the last state, by path."""
  flat = {}

  def walk(node, path):
    for name, value in node.items():
      if isinstance(value, dict):
        walk(value, f'{path}/{name}')
      else:
        flat[f'{path}/{name}'] = value
  walk(Checkpoints(run / 'checkpoints', 2)._read(2), '')
  return flat


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """The directory where two processes trained without --workdir, and how they ended."""
  path = tmp_path_factory.mktemp('pair')
  return path / 'runs' / 'digits_mlp-fa-seed0', _two(path)


@pytest.mark.slow
def test_two_processes_train_to_the_parameters_of_one(pair, tmp_path):
  run, ends = pair
  assert [status for status, _, _ in ends] == [0, 0], ends
  (alone,) = _ended(_start(tmp_path, *SMALL, '--workdir=one'))
  assert alone[0] == 0, alone
  leaves, expected = _leaves(run), _leaves(tmp_path / 'one')
  assert leaves.keys() == expected.keys()
  for path, leaf in leaves.items():
    np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-5, err_msg=path)
  for record, other in zip(metrics.read(run), metrics.read(tmp_path / 'one'), strict=True):
    for name in record.keys() - {'seconds', 'steps_per_second'}:
      assert record[name] == pytest.approx(other[name], rel=1e-4), name


@pytest.mark.slow
def test_only_the_first_process_writes_and_reports(pair):
  run, ((_, table, _), (_, silence, other)) = pair
  assert 'fa' in table and 'digits_mlp-fa-seed0' in table
  assert 'digits' not in silence and 'step/s' not in other
  assert [path.name for path in run.parent.iterdir()] == ['digits_mlp-fa-seed0']
  assert sorted({path.name.split('.')[0] for path in run.iterdir()}) == [
      '', 'checkpoints', 'config', 'curves', 'environment', 'events', 'metrics']
  assert len(list(run.glob('events*'))) == 1


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_both_go_on_to_the_same_bits(pair, tmp_path):
  survivor, victim = _two(tmp_path, '--workdir=run', programs=(None, DIES))
  assert victim[0] == -signal.SIGKILL
  assert survivor[0] == 1 and 'Traceback' not in survivor[2], survivor
  assert 'process 0 of 2 can no longer compute with the others' in survivor[2]
  assert Checkpoints(tmp_path / 'run' / 'checkpoints', 2).epochs() == [1]
  ends = _two(tmp_path, '--workdir=run')
  assert [status for status, _, _ in ends] == [0, 0], ends
  leaves, expected = _leaves(tmp_path / 'run'), _leaves(pair[0])
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.slow
def test_what_only_one_process_sees_ends_both_with_the_same_paragraph(tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').touch()
  for status, stdout, stderr in _two(tmp_path, '--workdir=mine'):
    assert status == 1 and 'thesis.tex' in stderr and 'Traceback' not in stderr, stderr
    assert 'rule' not in stdout


@pytest.mark.slow
def test_processes_with_different_configurations_are_told_the_difference(tmp_path):
  first, other = _two(tmp_path, own=((), ('--config.learning_rate=0.2',)))
  assert (first[0], other[0]) == (1, 1)
  assert 'process 1 was started with another configuration' in first[2]
  assert 'learning_rate is 0.05 there and 0.2 here' in other[2]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_process_whose_others_never_come_ends_with_a_paragraph(tmp_path, number):
  where = f'localhost:{_free_port()},2,{number}'
  ((status, _, stderr),) = _ended(_start(
      tmp_path, MESH, f'--config.distributed={where}', program=IMPATIENT))
  assert status == 1 and 'Traceback' not in stderr, stderr
  assert f'within 3 seconds, and process {number} of 2 ends' in stderr


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path):
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    ((status, _, stderr),) = _ended(_start(
        tmp_path, MESH, f'--config.distributed=localhost:{taken.getsockname()[1]},2,0'))
  assert status == 1 and 'its port must be free' in stderr and 'Traceback' not in stderr, stderr


@pytest.mark.slow
def test_auto_finds_the_processes_of_slurm(tmp_path):
  # The variables that srun sets; JAX derives the port from the job's number.
  job = {'SLURM_JOB_ID': str(os.getpid()), 'SLURM_STEP_NODELIST': 'localhost',
         'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_NODES': '1'}
  flags = (*SMALL, MESH, '--config.epochs=1', '--config.distributed=auto', '--workdir=run')
  ends = _ended(*(
      _start(tmp_path, *flags, env=job | {'SLURM_PROCID': rank, 'SLURM_LOCALID': rank})
      for rank in '01'))
  assert [status for status, _, _ in ends] == [0, 0], ends
  assert metrics.is_finished(tmp_path / 'run')


@pytest.mark.parametrize('value,words', [
    ('localhost', "neither 'auto' nor HOST:PORT"), ('localhost:1,2', 'neither'), ('', 'neither'),
    ('localhost,2,0', 'neither'), ('localhost:1,2,2', 'process 2 is none of 2'),
    ('localhost:1,0,0', 'process 0 is none of 0'), ('localhost:0,2,0', '0 is no port'),
    ('localhost:65536,2,1', '65536 is no port')])
def test_what_cannot_be_read_says_what_to_type(value, words):
  config = base()
  config.update(mesh='data=2', distributed=value)
  with pytest.raises(ConfigError, match=f'{words}.*--config.distributed=localhost:1234,2,0'):
    distributed.join(config)


def test_many_processes_need_a_mesh_that_can_be():
  config = base()
  config.distributed = 'localhost:1234,3,0'
  with pytest.raises(ConfigError, match='type --config.mesh=data=3'):
    distributed.join(config)
  config.mesh = 'model=3'
  with pytest.raises(ConfigError, match="an axis 'model'"):
    distributed.join(config)


def test_forms_of_addresses():
  assert distributed.parse('10.0.0.1:1234,2,1') == ('10.0.0.1:1234', 2, 1)
  assert distributed.parse('[::1]:1234,16,15') == ('[::1]:1234', 16, 15)


def test_one_process_is_the_first_and_asks_nobody():
  assert distributed.is_first()
  assert distributed.from_first(lambda: 3) == 3 and distributed.on_first(lambda: 4) == 4
  with pytest.raises(OSError, match='mine'):
    distributed.from_first(_raises)
  distributed.join(base())
  distributed.check_same(base())


@pytest.mark.parametrize('error', [ValueError('Gloo failed'), RuntimeError('mine')])
def test_errors_of_one_process_stay_what_they_are(error):
  with pytest.raises(type(error)) as caught, distributed.needing_all():
    raise error
  assert not isinstance(caught.value, DistributedError)


def test_a_process_that_is_out_of_memory_says_so_itself(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  error = jax.errors.JaxRuntimeError
  with pytest.raises(error, match='Out of memory'), distributed.needing_all():
    raise error('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.')
  with pytest.raises(LostProcessError, match='reset by peer'), distributed.needing_all():
    raise error('UNKNOWN: Connection reset by peer')


def _raises():
  raise OSError('mine')
