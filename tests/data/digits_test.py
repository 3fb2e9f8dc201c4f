"""`digits`: the embedded default."""
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from bioprop import data, errors


@pytest.fixture(scope='module')
def digits():
  return data.load('digits', validation=200)


def test_every_image_is_in_exactly_one_split(digits):
  images, labels = sklearn_datasets.load_digits(return_X_y=True)
  published = sorted((bytes(i.astype(np.uint8)), int(c)) for i, c in zip(images, labels))
  splits = [digits.train, digits.validation, digits.test]
  ours = sorted((i.tobytes(), int(c)) for s in splits for i, c in zip(s.images, s.labels))
  assert ours == published
  assert [len(s.labels) for s in splits] == [1237, 200, 360]


def test_shapes_and_dtypes(digits):
  for split in (digits.train, digits.validation, digits.test):
    assert split.images.dtype == np.uint8 and split.images.shape[1:] == (8, 8, 1)
    assert split.labels.dtype == np.int32 and split.labels.shape == split.images.shape[:1]
  assert digits.num_classes == 10 and digits.name == 'digits'
  assert digits.train.images.max() == 16


def test_test_split_is_stratified(digits):
  # The classes of load_digits, as its documentation lists them, times 360/1797.
  counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
  np.testing.assert_allclose(np.bincount(digits.test.labels), counts * 360 / 1797, atol=1)


def test_test_split_does_not_depend_on_the_arguments(digits):
  other = data.load('digits', validation=0, seed=5)
  np.testing.assert_array_equal(other.test.images, digits.test.images)
  # Pinned: the labels of the first twenty test images, so that no release moves the test split.
  assert ''.join(map(str, digits.test.labels[:20])) == '14865991322207481539'


def test_statistics_are_those_of_the_train_images(digits):
  pixels = digits.train.images.astype(np.float64)
  np.testing.assert_allclose(digits.mean, [pixels.mean()], rtol=1e-6)
  np.testing.assert_allclose(digits.std, [pixels.std()], rtol=1e-6)
  assert digits.mean.dtype == digits.std.dtype == np.float32


@pytest.mark.parametrize('name', [None, 3, b'digits', ['digits']])
def test_names_are_strings(name):
  with pytest.raises(errors.DataError, match=r"a string, and this is .*data\.load\('digits'\)"):
    data.load(name)


@pytest.mark.slow
def test_digits_does_not_pay_for_importing_tfds():
  code = ("import sys; from bioprop import data; data.load('digits', validation=9); "
          "sys.exit('tensorflow_datasets' in sys.modules or 'array_record' in sys.modules)")
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
