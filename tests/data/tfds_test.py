"""MNIST and CIFAR-10 as loaded, against their files read by another route and the literature."""
import io
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bioprop import data

pytestmark = pytest.mark.slow  # All of both is decoded.

# The start of the encoded image, and the label's number, in a serialized tf.train.Example: key,
# then Feature (tag 0x12) { int64_list (0x1a) { value (0x0a) } }, each with its length.
SIGNATURES = {'mnist': b'\x89PNG', 'cifar10': b'\xff\xd8\xff'}
LABEL = re.compile(rb'label\x12.\x1a.\x0a\x01(.)', re.DOTALL)


@pytest.fixture
def load(tfds_dir, decoded_cache, monkeypatch):
  monkeypatch.setenv('BIOPROP_CACHE', decoded_cache)
  return lambda name, **kwargs: data.load(name, tfds_dir, **kwargs)


def raw_records(tfds_dir, name, split, keys):
  """Images and labels of a few records, with array_record and PIL and nothing of TFDS."""
  from array_record.python import array_record_module

  path, = pathlib.Path(tfds_dir, name).glob(f'*/*-{split}.array_record-00000-of-00001')
  reader = array_record_module.ArrayRecordReader(str(path))
  records = reader.read(keys)
  reader.close()
  images = [Image.open(io.BytesIO(r[r.index(SIGNATURES[name]):])) for r in records]
  return [np.asarray(i) for i in images], [LABEL.search(r)[1][0] for r in records]


@pytest.mark.parametrize('name, shape', [('mnist', (28, 28, 1)), ('cifar10', (32, 32, 3))])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_images_and_labels_are_those_of_the_files(load, tfds_dir, name, shape, split):
  loaded = getattr(load(name, validation=0), split)
  keys = [0, 1, 1023, 1024, 4321, 9999]  # Both sides of the border between two batches.
  images, labels = raw_records(tfds_dir, name, split, keys)
  for key, image, label in zip(keys, images, labels):
    np.testing.assert_array_equal(loaded.images[key], image.reshape(shape))
    assert loaded.labels[key] == label
  assert loaded.images.dtype == np.uint8 and loaded.labels.dtype == np.int32
  assert loaded.images.shape == (len(loaded.labels), *shape)


def test_mnist_has_its_published_counts(load):
  mnist = load('mnist')
  assert mnist.num_classes == 10
  # LeCun's counts of each digit.
  assert np.bincount(mnist.test.labels).tolist() == [
      980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  both = np.concatenate([mnist.train.labels, mnist.validation.labels])
  assert np.bincount(both).tolist() == [
      5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
  assert len(mnist.validation.labels) == 5000


def test_mnist_has_its_well_known_mean_and_deviation(load):
  mnist = load('mnist', validation=0)
  np.testing.assert_allclose(mnist.mean / 255, [0.1307], atol=5e-5)
  np.testing.assert_allclose(mnist.std / 255, [0.3081], atol=5e-5)


def test_cifar10_has_its_published_counts_and_statistics(load):
  cifar10 = load('cifar10', validation=0)
  assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
  assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10
  # The usual constants; some files are JPEG copies, whose pixels differ slightly.
  np.testing.assert_allclose(cifar10.mean / 255, [0.4914, 0.4822, 0.4465], atol=2e-3)
  np.testing.assert_allclose(cifar10.std / 255, [0.2470, 0.2435, 0.2616], atol=4e-3)


def test_validation_comes_from_train_and_leaves_test_alone(load):
  whole, first, again, other = (
      load('mnist', validation=v, seed=s) for v, s in ((0, 0), (5000, 0), (5000, 0), (5000, 1)))

  def images(*splits):
    return sorted(image.tobytes() for split in splits for image in split.images)

  assert images(first.train, first.validation) == images(whole.train)
  np.testing.assert_array_equal(first.validation.images, again.validation.images)
  assert (first.validation.labels != other.validation.labels).any()
  for each in (first, other):
    np.testing.assert_array_equal(each.test.images, whole.test.images)


def test_second_start_needs_neither_tfds_nor_network(load, tfds_dir):
  load('mnist')
  code = '''
import socket, sys, time
from bioprop import data
socket.socket = socket.create_connection = socket.getaddrinfo = None  # A call is a TypeError.
start = time.perf_counter()
data.load('mnist', sys.argv[1])
assert time.perf_counter() - start < 5  # 0.3 s on two idle cores.
assert 'tensorflow_datasets' not in sys.modules
'''
  subprocess.run([sys.executable, '-c', code, tfds_dir], check=True, timeout=60)
