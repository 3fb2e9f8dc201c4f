"""`add`: the sequences are the task's definition, written out as loops."""
import numpy as np
import pytest

from bioprop import data


@pytest.fixture(scope='module')
def add():
  return data.load('add', validation=40)


def _wanted(bits):
  """y_t = 1/2 + x_{t-2} / 2 - x_{t-5} / 4, with x_t = 0 before the beginning."""
  y = []
  for t in range(len(bits)):
    two, five = (int(bits[t - delay]) if t >= delay else 0 for delay in (2, 5))
    y.append(0.5 + two / 2 - five / 4)
  return y


def _splits(dataset):
  return dataset.train, dataset.validation, dataset.test


def test_labels_stand_for_the_sums_that_the_task_defines(add):
  """At every step of every sequence, in all splits."""
  for part in _splits(add):
    np.testing.assert_array_equal(add.values[part.labels], [_wanted(x) for x in part.images])


def test_nothing_was_seen_before_the_beginning(add):
  """A sequence that ends in ones begins at 1/2 too, and no bit is subtracted till t = 5."""
  x, y = add.train.images, add.values[add.train.labels]
  assert x[:, -5:].all(axis=1).any()
  assert (y[:, :2] == 0.5).all()
  np.testing.assert_array_equal(y[:, 2:5], 0.5 + x[:, :3] / 2)


def test_shapes_and_dtypes(add):
  """300 sequences to train on, less those held out, and 100 to test on."""
  for part, n in zip(_splits(add), (260, 40, 100)):
    assert part.images.shape == part.labels.shape == (n, 100)
    assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
  assert add.name == 'add' and add.mean is None and add.std is None


def test_values_of_the_labels(add):
  """All sums that there are, and each label is one of them; classes of digits stand for nothing."""
  assert add.values.dtype == np.float32 and add.num_classes == 4
  assert add.values.tolist() == sorted(0.5 + two / 2 - five / 4 for two in (0, 1)
                                       for five in (0, 1))
  assert np.unique(add.train.labels).tolist() == [0, 1, 2, 3]
  assert data.load('digits', validation=100).values is None


def test_bits_are_fair_and_sequences_differ(add):
  """Within four standard errors of 1/2, at every step; no sequence is there twice."""
  x = np.concatenate([part.images for part in _splits(add)])
  assert set(np.unique(x)) == {0, 1} and len(np.unique(x, axis=0)) == 400
  assert abs(x.mean() - 0.5) < 4 * 0.5 / x.size**0.5
  np.testing.assert_allclose(x.mean(axis=0), 0.5, atol=4 * 0.5 / 20)


def test_the_best_constant_leaves_five_sixty_fourths(add):
  """(1/4 + 1/16) / 4, from the sixth step on, where both bits were drawn."""
  y = add.values[add.train.labels][:, 5:].astype(np.float64)
  assert y.mean() == pytest.approx(5 / 8, abs=0.01)
  assert y.var() == pytest.approx(5 / 64, rel=0.02)
  whole = add.values[add.test.labels].astype(np.float64)
  assert whole.var() == pytest.approx(5 / 64, rel=0.05)


def test_always_the_same_sequences():
  """Whatever numpy drew before, and none of it is used up; the seed only holds out."""
  np.random.seed(1)
  expected = np.random.rand()
  np.random.seed(1)
  first = data.load('add', validation=0)
  assert np.random.rand() == expected
  again = data.load('add', validation=0, seed=5)
  for one, other in zip(first.train + first.test, again.train + again.test):
    np.testing.assert_array_equal(one, other)
  # Pinned, so that no release moves them.
  assert ''.join(map(str, first.train.images[0, :20])) == '01101111111001000001'
  assert ''.join(map(str, first.test.images[0, :20])) == '11010101011111111100'


def test_every_sequence_is_in_exactly_one_split(add):
  """Held out at random, as images are."""
  whole = data.load('add', validation=0)
  assert len(whole.validation.labels) == 0
  held = {x.tobytes() for x in add.validation.images}
  order = [x.tobytes() for x in whole.train.images]
  assert [x.tobytes() for x in add.train.images] == [x for x in order if x not in held]
  assert held < set(order) and held != set(order[-40:]) and held != set(order[:40])
  np.testing.assert_array_equal(add.test.images, whole.test.images)
  other = data.load('add', validation=40, seed=1)
  assert held != {x.tobytes() for x in other.validation.images}
