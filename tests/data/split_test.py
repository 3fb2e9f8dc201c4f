"""The validation split: disjoint, complete, reproducible, and dependent on nothing but its seed."""
import numpy as np
import pytest

from bioprop import errors
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
