"""Checkpoints under damage: every file, flipped, cut, emptied or missing."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.errors import CheckpointError
from bioprop.training.checkpoint import Checkpoints, digest
from bioprop.training.state import State


def _state(value):
  return State(
      step=jnp.asarray(value, jnp.int32),
      params={'Dense_0': {'kernel': jnp.full((4, 3), value / 7), 'bias': jnp.arange(3.) * value}},
      model_state={'feedback': {'Dense_0': {'b': jnp.ones((3, 2), jnp.bfloat16)}}},
      opt_state=((), ({'trace': jnp.full((4,), -value / 3)}, jnp.asarray(value, jnp.int32))))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp('run') / 'checkpoints'
  checkpoints = Checkpoints(path, keep=2)
  for epoch in (1, 2, 3):
    checkpoints.save(epoch, _state(epoch))
  checkpoints.close()
  return path


def _same(a, b):
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
      x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
      for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_checkpoint_gives_back_every_bit_and_the_oldest_goes(saved):
  checkpoints = Checkpoints(saved, keep=2)
  assert checkpoints.epochs() == [2, 3]
  assert _same(checkpoints.restore(3, _state(0)), _state(3))
  assert _same(checkpoints.restore(2, _state(0)), _state(2))


def _flip(at):
  def damage(path):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
  return damage


DAMAGE = {
    **{f'flip at {at}': _flip(at) for at in (0, 0.2, 0.4, 0.6, 0.8, 1)},
    'cut': lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    'emptied': lambda path: path.write_bytes(b''),
    'missing': lambda path: path.unlink(),
}


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.some(2)
def test_damage_is_harmless_or_an_error_never_other_numbers(saved, tmp_path, damage):
  files = [path.relative_to(saved) for path in (saved / '3').rglob('*') if path.is_file()]
  assert len(files) > 5
  refused = 0
  for number, name in enumerate(files):
    copy = tmp_path / str(number) / 'checkpoints'
    shutil.copytree(saved, copy)
    if (copy / name).stat().st_size == 0:
      continue
    DAMAGE[damage](copy / name)
    checkpoints = Checkpoints(copy, keep=2)
    assert checkpoints.epochs() == [2, 3]
    try:
      restored = checkpoints.restore(3, _state(0))
    except CheckpointError as error:
      refused += 1
      assert 'epoch 3' in str(error) and '\n' not in str(error)
      assert 'epoch 2 is whole' in str(error) and f'mv {copy}/3 ' in str(error)
    else:
      assert _same(restored, _state(3)), name
  assert refused >= 2


def test_a_directory_that_is_missing_half_its_files_is_refused(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'checkpoints')
  shutil.rmtree(tmp_path / 'checkpoints' / '3' / 'state')
  with pytest.raises(CheckpointError, match='epoch 2 is whole'):
    Checkpoints(tmp_path / 'checkpoints', keep=2).restore(3, _state(0))


def test_whole_files_of_another_epoch_are_not_what_was_written(saved, tmp_path):
  # Every file reads well; only the digest can tell.
  shutil.copytree(saved, tmp_path / 'checkpoints')
  shutil.rmtree(tmp_path / 'checkpoints' / '3' / 'state')
  shutil.copytree(saved / '2' / 'state', tmp_path / 'checkpoints' / '3' / 'state')
  with pytest.raises(CheckpointError, match='not what was written'):
    Checkpoints(tmp_path / 'checkpoints', keep=2).restore(3, _state(0))


def test_a_damaged_older_checkpoint_is_not_offered(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'checkpoints')
  for epoch in ('2', '3'):
    shutil.rmtree(tmp_path / 'checkpoints' / epoch / 'state')
  with pytest.raises(CheckpointError, match='no older one'):
    Checkpoints(tmp_path / 'checkpoints', keep=2).restore(3, _state(0))


def test_a_checkpoint_of_another_model_is_refused(saved):
  other = _state(0)
  other = other.replace(params={'Dense_0': {'kernel': jnp.zeros((4, 2)), 'bias': jnp.zeros(3)}})
  with pytest.raises(CheckpointError, match=r'kernel is float32\[4, 3\] there'):
    Checkpoints(saved, keep=2).restore(3, other)


def test_the_digest_sees_names_dtypes_shapes_and_bits():
  base = {'a': {'b': np.zeros((2, 3), np.float32)}}
  others = [{'a': {'c': np.zeros((2, 3), np.float32)}}, {'a': {'b': np.zeros((2, 3), np.int32)}},
            {'a': {'b': np.zeros((3, 2), np.float32)}}, {'a': {'b': -np.zeros((2, 3), np.float32)}},
            {'a/b': np.zeros((2, 3), np.float32), 'c': np.zeros((0,))}]
  assert len({digest(tree) for tree in (base, *others)}) == len(others) + 1
