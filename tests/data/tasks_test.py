"""The tasks of recurrent networks: each is its definition, written out as loops."""
import math

import numpy as np
import pytest

from bioprop import data
from bioprop.data.tasks import TASKS, linear_teacher
from bioprop.errors import DataError

# From the tasks' docstrings: steps, channels, classes or outputs, whether they are targets, train.
SHAPES = {
    'copy': (20, 9, 8, False, 5000),
    'cue_accumulation': (54, 4, 2, False, 2000),
    'delayed_match': (30, 4, 2, False, 2000),
    'flip_flop': (50, 3, 3, True, 2000),
    'linear_teacher': (20, 4, 2, True, 2000),
    'sine': (100, 1, 1, True, 1000),
}
EVERY = pytest.mark.parametrize('name', TASKS)


@pytest.fixture(scope='module')
def made():
  """All tasks, made once."""
  return {name: make() for name, make in TASKS.items()}


def _both(source):
  """Inputs and labels of train and test together."""
  return (np.concatenate(arrays) for arrays in zip(source.train, source.test))


def test_all_are_tried():
  assert set(SHAPES) == set(TASKS)


@EVERY
def test_shapes_and_dtypes(made, name):
  steps, channels, outputs, targets, train = SHAPES[name]
  source = made[name]
  assert source.num_classes == outputs
  for part, n in ((source.train, train), (source.test, 1 if name == 'sine' else 500)):
    assert part.images.shape == (n, steps, channels) and part.images.dtype == np.float32
    assert part.labels.shape == ((n, steps, outputs) if targets else (n, steps))
    assert part.labels.dtype == (np.float32 if targets else np.int32)
    assert np.isfinite(part.images).all()
    if not targets:
      assert set(np.unique(part.labels)) == {-1, *range(outputs)}


@EVERY
def test_always_the_same_and_another_seed_is_other(made, name):
  """Whatever numpy drew before, and none of it is used up."""
  np.random.seed(1)
  expected = np.random.rand()
  np.random.seed(1)
  again, other = TASKS[name](), TASKS[name](5)
  assert np.random.rand() == expected
  for one, same in zip(made[name].train + made[name].test, again.train + again.test):
    np.testing.assert_array_equal(one, same)
  assert np.array_equal(made[name].train.images, other.train.images) == (name == 'sine')


@EVERY
def test_no_sequence_is_there_twice(made, name):
  """But of sine, of which there is one."""
  x, _ = _both(made[name])
  different = len(np.unique(x.reshape(len(x), -1), axis=0))
  # Of 8^5 = 32768 words, 5500 draws give 32768 (1 - exp(-5500 / 32768)) = 5063 different ones.
  want = {'sine': (1, 0), 'copy': (5063, 80)}.get(name, (len(x), 0))
  assert abs(different - want[0]) <= want[1]


def test_sine(made):
  """The same sum of three sines in every trial; the mean square is 21/32."""
  x, y = _both(made['sine'])
  assert (x == 1).all()
  want = [math.sin(2 * math.pi * t / 100) + math.sin(4 * math.pi * t / 100) / 2
          + math.sin(8 * math.pi * t / 100) / 4 for t in range(100)]
  np.testing.assert_allclose(y[..., 0], np.broadcast_to(want, (1001, 100)), atol=1e-6)
  assert np.mean(y.astype(np.float64)**2) == pytest.approx(21 / 32, rel=1e-6)


def test_delayed_match(made):
  """What was shown, read from the inputs: noise of a tenth does not reach a half."""
  x, labels = _both(made['delayed_match'])
  delays = []
  for trial, label in zip(x, labels):
    shown = [tuple(np.flatnonzero(step > 0.5)) for step in trial]
    at = [step for step, channels in enumerate(shown) if channels]
    assert at[:5] == [0, 1, 2, 3, 4] and at[5:] == list(range(at[5], at[5] + 5))
    (sample,), (test,) = set(shown[:5]), set(shown[at[5]:at[5] + 5])
    assert len(sample) == len(test) == 1
    response = range(at[5] + 5, at[5] + 10)
    assert label.tolist() == [int(sample == test) if t in response else -1 for t in range(30)]
    delays.append(at[5] - 5)
  assert set(delays) == set(range(5, 16))
  n = len(labels)
  assert abs((labels == 1).sum() / (5 * n) - 0.5) < 4 * 0.5 / n**0.5
  noise = np.where(x > 0.5, x - 1, x).astype(np.float64)
  assert noise.std() == pytest.approx(0.1, rel=0.02) and abs(noise.mean()) < 1e-3


def test_copy(made):
  """The symbols, nothing, the cue, and the symbols as labels."""
  x, labels = _both(made['copy'])
  for sequence, label in zip(x[::50], labels[::50]):
    want = np.zeros((20, 9))
    for t, symbol in enumerate(label[15:]):
      want[t, symbol] = 1
    want[14, 8] = 1
    np.testing.assert_array_equal(sequence, want)
    assert (label[:15] == -1).all()
  share = np.bincount(labels[:, 15:].ravel(), minlength=8) / labels[:, 15:].size
  assert np.abs(share - 1 / 8).max() < 4 * (7 / 64 / (5 * len(labels)))**0.5


def test_cue_accumulation(made):
  """Labels are majorities of the cues that the inputs show, and asked for at the recall alone."""
  x, labels = _both(made['cue_accumulation'])
  spikes = x * 20
  np.testing.assert_allclose(spikes, np.round(spikes), atol=1e-4)  # Counts.
  rights, delays = [], []
  for trial, label in zip(spikes, labels):
    right = 0
    for cue in range(7):
      silent, *on = trial[3 * cue:3 * cue + 3, :2]
      assert not silent.any()
      left_spikes, right_spikes = np.sum(on, axis=0)
      assert (left_spikes == 0) != (right_spikes == 0)
      right += right_spikes > 0
    asked = np.flatnonzero(label >= 0)
    assert asked.tolist() == list(range(asked[0], asked[0] + 3))
    assert (label[asked] == (right >= 4)).all()
    assert set(np.flatnonzero(trial[:, 2])) == set(asked)
    assert not trial[21:, :2].any()
    rights.append(right)
    delays.append(asked[0] - 21)
  assert set(delays) == set(range(10, 31))
  # Half of the trials favour each side, with 0.7 for each cue.
  binomial = lambda p: np.array([math.comb(7, k) * p**k * (1 - p)**(7 - k) for k in range(8)])
  want = (binomial(0.7) + binomial(0.3)) / 2
  found = np.bincount(rights, minlength=8) / len(rights)
  assert (np.abs(found - want) < 4 * np.sqrt(want * (1 - want) / len(rights))).all()
  # Ten neurons in 50 ms: 20 spikes at 40 Hz, 5 at 10 Hz; the variance of a Poisson is its mean.
  for counts, mean in ((spikes[..., 2][labels >= 0], 20), (spikes[..., 3].ravel(), 5)):
    assert abs(counts.mean() - mean) < 4 * (mean / counts.size)**0.5
    assert counts.var() == pytest.approx(mean, rel=0.1)


def test_flip_flop(made):
  """Each output is the sign of its channel's last pulse."""
  x, y = _both(made['flip_flop'])
  assert set(np.unique(x)) == {-1, 0, 1}
  for pulses, held in zip(x[::20], y[::20]):
    for bit in range(3):
      last = 0
      for t in range(50):
        last = pulses[t, bit] or last
        assert held[t, bit] == last
  error = 4 * (0.05 * 0.95 / x.size)**0.5
  assert abs((x == 1).mean() - 0.05) < error and abs((x == -1).mean() - 0.05) < error


def test_linear_teacher(made):
  """The outputs of the network, one product at a time; W is symmetric with the modes it says."""
  x, y = _both(made['linear_teacher'])
  b, w, a = linear_teacher.teacher()
  np.testing.assert_allclose(w, w.T, atol=1e-12)
  np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(w)), [0.3, 0.5, 0.7, 0.9], atol=1e-12)
  assert b.shape == (4, 4) and a.shape == (2, 4)
  for inputs, outputs in zip(x[::100], y[::100]):
    for t in range(20):
      want = sum(a @ np.linalg.matrix_power(w, t - s) @ b @ inputs[s] for s in range(t + 1))
      np.testing.assert_allclose(outputs[t], want, rtol=1e-4, atol=1e-5)
  assert abs(x.mean()) < 4 / x.size**0.5 and x.var() == pytest.approx(1, rel=0.02)
  # Not the teacher's own draws once more.
  assert not np.isclose(x[0, 0, 0], np.random.RandomState(0).randn())


@EVERY
def test_loaded_they_are_split_and_not_normalised(name):
  """Held out at random; what they are is said."""
  steps, _, outputs, targets, train = SHAPES[name]
  dataset = data.load(name, validation=40)
  assert (len(dataset.train.labels), len(dataset.validation.labels)) == (train - 40, 40)
  assert dataset.mean is None and dataset.std is None and dataset.values is None
  assert dataset.num_classes == outputs and dataset.train.images.shape[1] == steps
  assert dataset.is_sequence and not dataset.is_text and dataset.has_targets == targets
  fewer = data.choose(dataset, 30, 0)
  assert len(fewer.train.labels) == 30 and fewer.mean is None


def test_what_others_are():
  """Images are no sequences; a text and sums are no targets."""
  for name, sequence, text in (('digits', False, False), ('add', True, False),
                               ('characters', True, True)):
    dataset = data.load(name, validation=10)
    assert (dataset.is_sequence, dataset.is_text, dataset.has_targets) == (sequence, text, False)


def test_rows_of_images():
  """Row after row, the class asked for after the last; the statistics are those of all pixels."""
  images, rows = data.load('digits', validation=50), data.load('digits_rows', validation=50)
  for whole, part in zip((images.train, images.validation, images.test),
                         (rows.train, rows.validation, rows.test)):
    assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
    np.testing.assert_array_equal(part.images, whole.images[..., 0])
    np.testing.assert_array_equal(part.labels[:, -1], whole.labels)
    assert (part.labels[:, :-1] == -1).all() and part.labels.shape[1] == 8
  assert rows.is_sequence and not rows.is_text and not rows.has_targets and rows.num_classes == 10
  pixels = rows.train.images.astype(np.float64)
  np.testing.assert_allclose(rows.mean, [pixels.mean()], rtol=1e-6)
  np.testing.assert_allclose(rows.std, [pixels.std()], rtol=1e-6)
  fewer = data.choose(rows, 100, 0)
  np.testing.assert_allclose(fewer.mean, [fewer.train.images.mean()], rtol=1e-6)


def test_rows_of_prepared_images(toy):
  """Channels lie beside each other; what is not prepared is said to be missing."""
  folder = toy(shape=(2, 3, 1))
  rows = data.load('toy_rows', folder, validation=0)
  assert rows.train.images.shape == (5, 2, 3)
  assert rows.train.labels[:, -1].tolist() == [0, 1, 2, 0, 1]
  with pytest.raises(DataError, match='other'):
    data.load('other_rows', folder)


@pytest.mark.parametrize('name, words', [
    ('copy_rows', "'copy_rows' cannot be made.*'copy' has none.*digits_rows"),
    ('digits_rows_rows', "'digits_rows' has none"),
    ('flip_flob', "no dataset 'flip_flob'.*Did you mean 'flip_flop'"),
    ('characters_rows', "'characters' has none")])
def test_what_there_is_not(name, words):
  with pytest.raises(DataError, match=words):
    data.load(name)


def test_not_more_than_all_are_held_out():
  """The configuration's own 5000 are more than most tasks have."""
  with pytest.raises(DataError, match="5000 validation.*2000 train.*'flip_flop'"):
    data.load('flip_flop')
