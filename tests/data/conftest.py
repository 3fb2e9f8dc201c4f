"""Data tests: no test touches the user's cache, and small prepared datasets are written by hand."""
import io
import json
import pathlib
import struct

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> pathlib.Path:
  """An empty cache directory for one test."""
  monkeypatch.setenv('BIOPROP_CACHE', str(tmp_path / 'cache'))
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  return tmp_path / 'cache'


@pytest.fixture(scope='session')
def decoded_cache(tmp_path_factory) -> str:
  """One cache for all tests that read MNIST or CIFAR-10, so that each is decoded once."""
  return str(tmp_path_factory.mktemp('decoded'))


@pytest.fixture
def toy(tmp_path):
  """Returns a function that writes a prepared dataset of tiny PNG images, without TFDS."""

  def write(name='toy', version='1.0.0', splits=None, shape=(2, 3, 1), classes=3,
            file_format='array_record', label='label', label_class='ClassLabel', dtype='uint8'):
    folder = tmp_path / 'data' / name / version
    folder.mkdir(parents=True)
    dataset = name.split('/')[0]
    splits = splits or {'train': [0, 1, 2, 0, 1], 'test': [2, 1]}
    for split, labels in splits.items():
      _write_split(folder / f'{dataset}-{split}.{file_format}-00000-of-00001', labels, shape, label)
    (folder / 'dataset_info.json').write_text(json.dumps({
        'name': dataset, 'version': version, 'fileFormat': file_format,
        'splits': [{'name': split, 'shardLengths': [str(len(labels))], 'numBytes': '1',
                    'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'}
                   for split, labels in splits.items()]}))
    features = _features(shape, dtype, classes, label, label_class)
    (folder / 'features.json').write_text(json.dumps(features))
    return str(tmp_path / 'data')

  return write


def _write_split(path, labels, shape, label):
  # Imported here, because it is native code that only these datasets need.
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for index, value in enumerate(labels):
    image = np.full([side or 2 for side in shape], 10 * index, np.uint8)
    png = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if shape[-1] == 1 else image).save(png, 'PNG')
    writer.write(_example({'image': _field(1, _field(1, png.getvalue())),
                           label: _field(3, _field(1, _varint(value)))}))
  writer.close()


def _features(shape, dtype, classes, label, label_class):
  module = 'tensorflow_datasets.core.features.'
  sides = [str(side or -1) for side in shape]
  kinds = {'ClassLabel': {'pythonClassName': module + 'class_label_feature.ClassLabel',
                          'classLabel': {'numClasses': str(classes)}},
           'Text': {'pythonClassName': module + 'text_feature.Text', 'text': {}}}
  return {'pythonClassName': module + 'features_dict.FeaturesDict', 'featuresDict': {'features': {
      'image': {'pythonClassName': module + 'image_feature.Image', 'image': {
          'dtype': dtype, 'shape': {'dimensions': sides}, 'encodingFormat': 'png'}},
      label: kinds[label_class]}}}


def _example(features):
  """A serialized tf.train.Example: map<string, Feature> in field 1 of field 1."""
  return _field(1, b''.join(_field(1, _field(1, name.encode()) + _field(2, feature))
                            for name, feature in features.items()))


def _field(number, payload):
  return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value):
  value = struct.unpack('<Q', struct.pack('<q', value))[0]
  digits = []
  while value >= 128:
    digits.append(value & 127 | 128)
    value >>= 7
  return bytes([*digits, value])
