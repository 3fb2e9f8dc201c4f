"""`characters`: the embedded novel, in windows that share no label."""
import configparser
import math
import pathlib

import numpy as np
import pytest

import bioprop
from bioprop import data, errors

ROOT = pathlib.Path(bioprop.__file__).parents[1]


@pytest.fixture(scope='module')
def novel():
  return data.load('characters', validation=300)


def _splits(dataset):
  return dataset.train, dataset.validation, dataset.test


def test_shapes_and_dtypes(novel):
  assert [len(split.labels) for split in _splits(novel)] == [2710, 300, 334]
  for split in _splits(novel):
    assert split.images.dtype == np.uint8 and split.images.shape[1:] == (64,)
    assert split.labels.dtype == np.int32 and split.labels.shape == split.images.shape
  assert novel.num_classes == 75 and novel.name == 'characters'
  assert novel.mean is None and novel.std is None


def test_the_windows_are_the_text_and_the_labels_the_text_one_further(novel):
  text = (pathlib.Path(data.__file__).parent / 'persuasion.txt').read_text()
  flat = text.replace('\n\n', '¶').replace('\n', ' ').replace('¶', '\n').rstrip() + '\n'
  alphabet = sorted(set(flat))
  read = lambda arrays: ''.join(alphabet[i] for a in arrays for i in a.ravel())
  inputs = read(split.images for split in _splits(novel))
  labels = read(split.labels for split in _splits(novel))
  assert len(alphabet) == 75 and len(inputs) == 3344 * 64
  assert flat.startswith(inputs[0] + labels) and inputs[1:] == labels[:-1]
  assert inputs.startswith('Chapter 1\nSir Walter Elliot, of Kellynch Hall, in Somersetshire')
  assert len(flat) - len(inputs) <= 64


def test_the_text_has_neither_markup_nor_licence():
  text = (pathlib.Path(data.__file__).parent / 'persuasion.txt').read_text('ascii')
  assert 150_000 < len(text) < 300_000
  for word in ('Gutenberg', 'http', 'Copyright', 'License', 'Transcri', '<', '_', '*', '\t', '  '):
    assert word not in text


def test_validation_is_the_end_of_train_and_test_stays(novel):
  other = data.load('characters', validation=10, seed=5)
  np.testing.assert_array_equal(
      np.concatenate([other.train.images, other.validation.images]),
      np.concatenate([novel.train.images, novel.validation.images]))
  np.testing.assert_array_equal(other.validation.labels, novel.validation.labels[-10:])
  np.testing.assert_array_equal(other.test.labels, novel.test.labels)


@pytest.mark.parametrize('validation', [-1, 3010])
def test_impossible_number(validation):
  with pytest.raises(errors.DataError, match=rf"{validation} val.*3010 train.*'characters'"):
    data.load('characters', validation=validation)


def test_entropies_by_hand():
  # Pairs ab ab ba bb: each a is followed by b; b by a or b, evenly. Labels: one a and three b.
  split = data.Split(np.array([[0, 0], [1, 1]], np.uint8), np.array([[1, 1], [0, 1]], np.int32))
  assert data.unigram_entropy(split) == pytest.approx(
      -0.25 * math.log(0.25) - 0.75 * math.log(0.75), rel=1e-12)
  assert data.bigram_entropy(split) == pytest.approx(0.5 * math.log(2), rel=1e-12)


def test_entropies_are_the_losses_of_the_best_tables(novel):
  """Counted in loops of their own: one distribution, and one for each character before."""
  inputs, labels = novel.train.images.ravel(), novel.train.labels.ravel()
  unigram = bigram = 0.
  for count in np.bincount(labels):
    unigram -= count * math.log(count / len(labels)) if count else 0.
  for before in set(inputs):
    after = labels[inputs == before]
    for count in np.bincount(after):
      bigram -= count * math.log(count / len(after)) if count else 0.
  assert data.unigram_entropy(novel.train) == pytest.approx(unigram / len(labels), rel=1e-9)
  assert data.bigram_entropy(novel.train) == pytest.approx(bigram / len(labels), rel=1e-9)
  assert 2.9 < data.unigram_entropy(novel.train) < 3.1  # The figures in configs/.


def test_the_package_carries_every_file_that_is_not_code():
  """What `pip install .` copies beside the code is what setup.cfg names."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  named = {ROOT.joinpath(*package.split('.'), name)
           for package, names in setup['options.package_data'].items() for name in names.split()}
  there = {path for path in (ROOT / 'bioprop').rglob('*')
           if path.is_file() and path.suffix not in ('.py', '.pyc')}
  assert named == there and there
