"""Reading prepared datasets: what is found, decoded, cached and refused."""
import os
import pathlib
import socket

import numpy as np
import pytest

from bioprop import data, errors
from bioprop.data import tfds_source


def test_toy_dataset(toy):
  loaded = data.load('toy', toy(), validation=0)
  assert loaded.num_classes == 3
  assert loaded.train.images.shape == (5, 2, 3, 1) and loaded.test.images.shape == (2, 2, 3, 1)
  assert loaded.train.images[:, 1, 2, 0].tolist() == [0, 10, 20, 30, 40]
  assert loaded.train.labels.tolist() == [0, 1, 2, 0, 1]
  assert loaded.test.labels.tolist() == [2, 1]
  np.testing.assert_allclose(loaded.mean, [20])
  np.testing.assert_allclose(loaded.std, [200**.5])


def test_constant_channel_has_deviation_one(toy):
  loaded = data.load('toy', toy(splits={'train': [0], 'test': [1]}), validation=0)
  assert loaded.mean.tolist() == [0] and loaded.std.tolist() == [1]


def test_no_network_from_prepared_files(toy, monkeypatch):
  for name in ('socket', 'create_connection', 'getaddrinfo'):
    monkeypatch.setattr(socket, name, None)  # A call is a TypeError.
  data.load('toy', toy(), validation=0)


def test_second_load_decodes_nothing(toy, monkeypatch):
  data_dir = toy()
  first = data.load('toy', data_dir, validation=1)
  monkeypatch.setattr(tfds_source, '_decode', None)
  second = data.load('toy', data_dir, validation=1)
  for a, b in zip(first.train + first.validation + first.test,
                  second.train + second.validation + second.test):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  assert second.num_classes == first.num_classes


def test_changed_source_is_decoded_anew(toy, cache_dir):
  folder = pathlib.Path(toy(), 'toy', '1.0.0')
  assert data.load('toy', str(folder.parents[1]), validation=0).test.labels.tolist() == [2, 1]
  before = folder.stat().st_mtime
  train, test = (folder / f'toy-{s}.array_record-00000-of-00001' for s in ('train', 'test'))
  # Same version, same dates, other labels: the two shards change places.
  third = folder / 'third'
  os.rename(train, third)
  os.rename(test, train)
  os.rename(third, test)
  info = folder / 'dataset_info.json'
  lengths = str.maketrans({'5': '2', '2': '5'})
  info.write_text(info.read_text().translate(lengths))
  os.utime(folder, (before, before))
  changed = data.load('toy', str(folder.parents[1]), validation=0)
  assert changed.test.labels.tolist() == [0, 1, 2, 0, 1]
  assert len(os.listdir(cache_dir)) == 2


def test_nothing_is_written_into_data_dir(toy):
  data_dir = toy()
  before = sorted(pathlib.Path(data_dir).rglob('*'))
  data.load('toy', data_dir, validation=0)
  assert sorted(pathlib.Path(data_dir).rglob('*')) == before


def test_damaged_cache_is_an_error_and_stays(toy, cache_dir):
  data_dir = toy()
  data.load('toy', data_dir, validation=0)
  file, = cache_dir.iterdir()
  damaged = file.read_bytes()[:-1]
  file.write_bytes(damaged)
  with pytest.raises(errors.CacheError, match=f'rm {file}$'):
    data.load('toy', data_dir, validation=0)
  assert file.read_bytes() == damaged


def test_unwritable_cache_does_not_lose_the_run(toy, cache_dir):
  cache_dir.write_text('a file where the folder should be')
  assert data.load('toy', toy(), validation=0).test.labels.tolist() == [2, 1]


def test_data_dir_from_the_environment(toy, monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', toy())
  assert data.load('toy', validation=0).num_classes == 3
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  os.rename(tmp_path / 'data', tmp_path / 'tensorflow_datasets')
  assert data.load('toy', validation=0).num_classes == 3


def test_newest_finished_version(toy):
  for version, classes in (('3.0.9', 3), ('3.0.10', 4), ('2.9.9', 5), ('9.0.0.incomplete8', 6)):
    data_dir = toy(version=version, classes=classes)
  pathlib.Path(data_dir, 'toy', '8.0.0').mkdir()
  assert data.load('toy', data_dir, validation=0).num_classes == 4


def test_configs(toy):
  data_dir = toy('toy/plain', classes=3)
  assert data.load('toy', data_dir, validation=0).num_classes == 3
  toy('toy/rich', classes=4)
  assert data.load('toy/rich', data_dir, validation=0).num_classes == 4
  with pytest.raises(errors.DataError, match=r'2 configs \(plain, rich\).*: toy/plain$'):
    data.load('toy', data_dir, validation=0)


@pytest.mark.parametrize('options, message', [
    ({'splits': {'train': [0, 1]}}, "has no test split, only .'train'."),
    ({'splits': {'train': [0, 1], 'test': [-1]}}, 'test split .* are not published'),
    ({'splits': {'train': [0, 3], 'test': [1]}}, 'labels outside 0 to 2'),
    ({'label_class': 'Text'}, 'not an image classification.*ClassLabel'),
    ({'label': 'sort'}, r"not an image classification.*\['image', 'sort'\]"),
    ({'dtype': 'uint16'}, r'are uint16 of shape \(2, 3, 1\)'),
    ({'shape': (None, None, 3)}, r'shape \(None, None, 3\).*one size'),
    ({'file_format': 'tfrecord'}, 'as tfrecord; .*--data_dir=')])
def test_datasets_that_are_refused(toy, cache_dir, options, message):
  with pytest.raises(errors.DataError, match=message) as info:
    data.load('toy', toy(**options), validation=0)
  assert '\n' not in str(info.value)
  assert not cache_dir.exists()  # Nothing of it was kept.


@pytest.mark.parametrize('damage', ['missing', 'cut', 'flipped'])
def test_damaged_source_is_a_data_error(toy, cache_dir, damage):
  data_dir = toy()
  shard, = pathlib.Path(data_dir).rglob('toy-test*')
  content = shard.read_bytes()
  if damage == 'missing':
    shard.unlink()
  else:
    at = content.index(b'PNG') + 20
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]
    shard.write_bytes({'cut': content[:len(content) // 2], 'flipped': flipped}[damage])
  with pytest.raises(errors.DataError, match="'toy' in .*toy/1.0.0 cannot be read: .*--data_dir="):
    data.load('toy', data_dir, validation=0)
  assert not cache_dir.exists()
