"""Datasets of TFDS, decoded once and then read from the cache."""
import pathlib
from typing import Any

import numpy as np
from absl import logging

from bioprop import errors
from bioprop.data import cache, prepare, prepared
from bioprop.data.split import Source, Split

# Records that are read and decoded at once: enough to save calls, little memory.
_BATCH = 1024


def read(name: str, data_dir: str | None) -> Source:
  """Reads the `train` and `test` splits of a TFDS dataset that is, or can be, prepared.

  No network is used, and TFDS is not even imported, once the images are in the cache.

  Args:
    name: `<dataset>` or `<dataset>/<config>`.
    data_dir: folder that holds `<dataset>/`; None as in `prepared.root`.

  Returns:
    All examples of both splits.

  Raises:
    DataError: the dataset is not prepared and cannot be, or is not an image classification.
    CacheError: the cache of decoded images is damaged.
  """
  root = prepared.root(data_dir)
  folder = prepared.find(name, root) or prepare.prepare(name, root)
  # The full path below data_dir, so that 'emnist' and 'emnist/balanced' share what is the same.
  key = '-'.join(folder.relative_to(root).parts)
  # 128 bits of the fingerprint keep different files apart as surely as all 256.
  path = cache.directory() / f'{key}-{prepared.fingerprint(folder)[:32]}.arrays'
  arrays = cache.read(path)
  if arrays is None:
    logging.info('Decoding %s once, which can take a minute; keeping the arrays in %s', name, path)
    arrays = _decode(name, folder)
    cache.write(path, arrays)
  return Source(int(arrays['num_classes'][0]),
                Split(arrays['train_images'], arrays['train_labels']),
                Split(arrays['test_images'], arrays['test_labels']))


def outline(name: str, data_dir: str | None) -> Source:
  """What `read` gives, as one black image in each split: nothing is decoded, fetched or cached.

  Of a dataset that is not prepared, what TFDS itself says of it.

  Args:
    name: as of `read`.
    data_dir: as of `read`.

  Raises:
    DataError: no dataset has this name, or it is not an image classification.
  """
  import tensorflow_datasets as tfds

  root = prepared.root(data_dir)
  folder = prepared.find(name, root)
  if folder is None:
    prepare.check_known(name, root)
  try:
    builder = tfds.builder(name, data_dir=root) if folder is None else (
        tfds.builder_from_directory(folder))
    features = builder.info.features
  except Exception as err:  # As in `_decode`.
    raise errors.DataError(
        f'What the images of {name!r} are like cannot be known: {type(err).__name__}: '
        f'{next(iter(str(err).splitlines()), "").rstrip(".")}. Give the folder where it is '
        f'prepared: --data_dir=<folder that holds {name}/>') from err
  _check_features(name, builder.info, tfds.features, folder is not None)
  one = Split(np.zeros((1, *features['image'].shape), np.uint8), np.zeros(1, np.int32))
  return Source(features['label'].num_classes, one, one)


def _decode(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Decodes both splits into the arrays that the cache keeps."""
  # Here and not above: it takes a second to import, and is not needed when the cache has the data.
  import tensorflow_datasets as tfds

  try:
    # From the folder and not by name, which could start a download.
    builder = tfds.builder_from_directory(folder)
    _check_features(name, builder.info, tfds.features)
    features = builder.info.features
    arrays = {'num_classes': np.array([features['label'].num_classes], np.int32)}
    for split in ('train', 'test'):
      records = builder.as_data_source(split)
      images, labels = _decode_split(records, features['image'].shape)
      arrays |= {f'{split}_images': images, f'{split}_labels': labels}
  except errors.DataError:
    raise
  except Exception as err:  # TFDS, array_record, protobuf and PIL each raise their own.
    reason = next(iter(str(err).splitlines()), '').rstrip('.')
    raise errors.DataError(
        f'The prepared dataset {name!r} in {folder} cannot be read: {type(err).__name__}: '
        f'{reason}. A file is damaged or missing. Copy or prepare the dataset anew, and give its '
        f'folder: --data_dir=<folder that holds {name}/>') from err
  _check_labels(name, arrays)
  return arrays


def _decode_split(records: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  images = np.empty((len(records), *shape), np.uint8)
  labels = np.empty(len(records), np.int64)
  for start in range(0, len(records), _BATCH):
    stop = min(start + _BATCH, len(records))
    batch = records.__getitems__(list(range(start, stop)))
    images[start:stop] = [record['image'] for record in batch]
    labels[start:stop] = [record['label'] for record in batch]
  return images, labels.astype(np.int32)


def _check_features(name: str, info: Any, features: Any, there: bool = True) -> None:
  """Raises DataError unless this is an image classification that fits an array.

  Of what is not `there`, prepared, TFDS knows no splits and no files.
  """
  formats = {found.value for found in info.available_file_formats()} if there else ()
  if there and 'array_record' not in formats:
    raise errors.DataError(
        f'{name!r} is prepared in {info.data_dir} as {" and ".join(sorted(formats))}; bioprop '
        f'reads array_record, because that needs no TensorFlow. To have it prepared anew '
        f"elsewhere, type: pip install 'bioprop[prepare]' and run again with "
        f'--data_dir=<another folder>')
  if there and (missing := {'train', 'test'} - set(info.splits)):
    raise errors.DataError(
        f'{name!r} has no {" and no ".join(sorted(missing))} split, only {sorted(info.splits)}: '
        f'bioprop trains on train and reports on test. Choose a dataset with both, such as mnist.')
  found = dict(info.features) if isinstance(info.features, features.FeaturesDict) else {}
  image, label = found.get('image'), found.get('label')
  if not isinstance(image, features.Image) or not isinstance(label, features.ClassLabel):
    raise errors.DataError(
        f'{name!r} is not an image classification: bioprop needs the features `image` (Image) and '
        f'`label` (ClassLabel), and this dataset has {sorted(found)}. Choose one such as mnist.')
  dtype = np.dtype(image.np_dtype)
  if dtype != np.uint8 or None in image.shape:
    raise errors.DataError(
        f'The images of {name!r} are {dtype} of shape {image.shape}: bioprop '
        f'needs uint8 images that all have one size. Choose a dataset such as mnist.')


def _check_labels(name: str, arrays: dict[str, np.ndarray]) -> None:
  """Raises DataError if an example has no class, as in a test split whose labels are secret."""
  classes = arrays['num_classes'][0]
  for split in ('train', 'test'):
    labels = arrays[f'{split}_labels']
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
      raise errors.DataError(
          f'The {split} split of {name!r} has {len(labels)} examples with labels outside 0 to '
          f'{classes - 1}, or none: its classes are not published. Choose a dataset such as mnist.')
