"""The validation split: disjoint, complete, reproducible, and dependent on nothing but its seed."""
import numpy as np
import pytest

from bioprop import data, errors
from bioprop.data import split

TOTAL = 300


@pytest.fixture
def published():
  # Each image holds its own index, so that it can be traced.
  images = np.arange(TOTAL, dtype=np.uint16).view(np.uint8).reshape(TOTAL, 1, 1, 2)
  return split.Split(images, (np.arange(TOTAL) % 7).astype(np.int32))


def indices(part):
  index = np.ascontiguousarray(part.images).view(np.uint16).ravel()
  np.testing.assert_array_equal(part.labels, index % 7)  # Labels moved with their images.
  return index.tolist()


def test_parts_are_disjoint_and_complete_and_keep_the_order(published):
  train, held = map(indices, split.hold_out('x', published, 40, seed=3))
  assert len(held) == 40
  assert sorted(train + held) == list(range(TOTAL))
  assert train == sorted(train) and held == sorted(held)


def test_same_seed_same_choice_whatever_numpy_drew_before(published):
  first = indices(split.hold_out('x', published, 40, seed=3)[1])
  np.random.seed(99)
  np.random.rand(5)
  assert indices(split.hold_out('y', published, 40, seed=3)[1]) == first


def test_drawing_leaves_numpys_global_stream_alone(published):
  np.random.seed(1)
  expected = np.random.rand()
  np.random.seed(1)
  split.hold_out('x', published, 40, seed=3)
  assert np.random.rand() == expected


def test_other_seed_other_choice(published):
  first, second = (set(indices(split.hold_out('x', published, 40, seed=s)[1])) for s in (3, 4))
  assert len(first & second) < 20  # By chance 40 * 40 / 300, about 5.


def test_choice_is_spread_over_train(published):
  held = indices(split.hold_out('x', published, 100, seed=0)[1])
  assert np.mean(held) == pytest.approx(149.5, abs=25)  # Three standard errors of 100 in 300.


def test_smaller_split_is_within_the_larger(published):
  small, large = (set(indices(split.hold_out('x', published, n, seed=0)[1])) for n in (10, 60))
  assert small < large


def test_no_validation(published):
  train, held = split.hold_out('x', published, 0, seed=0)
  assert indices(train) == list(range(TOTAL))
  assert held.images.shape == (0, 1, 1, 2) and held.labels.shape == (0,)
  assert held.images.dtype == np.uint8 and held.labels.dtype == np.int32


@pytest.mark.parametrize('validation', [-1, TOTAL, 5000])
def test_impossible_number(published, validation):
  with pytest.raises(errors.DataError, match=rf"{validation} val.*{TOTAL} train.*'x'.*=30\."):
    split.hold_out('x', published, validation, seed=0)


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_impossible_seed(published, seed):
  with pytest.raises(errors.DataError, match=f'seed {seed}'):
    split.hold_out('x', published, 5, seed)


def test_fewer_examples_are_within_more(published):
  """With the same seed; another chooses others."""
  chosen = [set(indices(split.choose('x', published, n, seed=5))) for n in (1, 30, 31, 200, TOTAL)]
  assert [len(part) for part in chosen] == [1, 30, 31, 200, TOTAL]
  assert all(fewer < more for fewer, more in zip(chosen, chosen[1:]))
  other = set(indices(split.choose('x', published, 30, seed=6)))
  assert len(chosen[1] & other) < 15  # By chance 30 * 30 / 300, which is 3.


def test_chosen_examples_keep_the_order_and_are_spread_over_train(published):
  """Labels go with their images, and drawing uses up nothing of numpy's own stream."""
  np.random.seed(1)
  expected = np.random.rand()
  np.random.seed(1)
  kept = indices(split.choose('x', published, 100, seed=0))
  assert np.random.rand() == expected
  assert kept == sorted(kept) and len(set(kept)) == 100
  assert np.mean(kept) == pytest.approx(149.5, abs=25)  # Three standard errors of 100 in 300.
  assert indices(split.choose('y', published, TOTAL, seed=0)) == list(range(TOTAL))


@pytest.mark.parametrize('examples', [0, -1, TOTAL + 1])
def test_impossible_number_of_examples(published, examples):
  """With the numbers that are possible."""
  with pytest.raises(errors.DataError, match=rf"{examples} examples of 'x'.*1 to {TOTAL}\."):
    split.choose('x', published, examples, seed=0)


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_impossible_seed_of_a_choice(published, seed):
  """As for a validation split."""
  with pytest.raises(errors.DataError, match=f"'x'.*seed {seed}"):
    split.choose('x', published, 5, seed)


def _set(part):
  """Images as bytes; in digits no two are equal."""
  return {image.tobytes() for image in part.images}


@pytest.mark.parametrize('name', ['digits', 'add'])
def test_choosing_from_a_dataset_leaves_validation_and_test_alone(name):
  """Chosen from what was not held out, by whichever seed, that of the validation split included."""
  whole = data.load(name, validation=100)
  for seed in (0, 1):
    few = data.choose(whole, 60, seed)
    assert len(few.train.labels) == len(_set(few.train)) == 60
    assert _set(few.train) < _set(whole.train)
    assert not _set(few.train) & (_set(whole.validation) | _set(whole.test))
    assert (few.name, few.num_classes) == (name, whole.num_classes)
    assert few.values is whole.values
    for part, same in ((few.validation, whole.validation), (few.test, whole.test)):
      np.testing.assert_array_equal(part.images, same.images)
      np.testing.assert_array_equal(part.labels, same.labels)


def test_statistics_are_those_of_the_chosen_images():
  """Not of those that were there; sequences have none."""
  whole = data.load('digits', validation=100)
  few = data.choose(whole, 7, seed=2)
  pixels = few.train.images.astype(np.float64)
  assert few.mean.dtype == few.std.dtype == np.float32
  np.testing.assert_allclose(few.mean, [pixels.mean()], rtol=1e-6)
  np.testing.assert_allclose(few.std, [pixels.std()], rtol=1e-6)
  assert abs(few.mean - whole.mean) > 1e-3
  add = data.choose(data.load('add', validation=0), 7, seed=2)
  assert add.mean is None and add.std is None


@pytest.mark.parametrize('examples, seed, words', [
    (0, 0, '1 to 1337'), (1338, 0, '1 to 1337'), (5, -1, 'seed -1')])
def test_what_cannot_be_chosen_from_a_dataset(examples, seed, words):
  """Validation examples are not counted: of 1437, 100 are held out."""
  with pytest.raises(errors.DataError, match=f"'digits'.*{words}"):
    data.choose(data.load('digits', validation=100), examples, seed)
