"""Means, deviations and intervals, beside what the standard library and enumeration say."""
import itertools
import statistics as standard

import numpy as np
import pytest

from bioprop.bench import statistics


def test_mean_and_deviation():
  values = [0.91, 0.87, 0.955, 0.9]
  found = statistics.summary(values)
  np.testing.assert_allclose(found.mean, standard.mean(values))
  np.testing.assert_allclose(found.sd, standard.stdev(values))
  assert found.n == 4 and statistics.summary([3.0]) == (3.0, None, 1)


@pytest.mark.parametrize('mean, sd, text', [
    (97.941, 0.0812, '97.94 ± 0.08'), (64.712, 9.41, '64.7 ± 9.4'),
    (0.28512, 0.0362, '0.285 ± 0.036'), (1.0, 3e-8, '1.000 ± 0.000'), (100.0, 0.0, '100.0 ± 0.0'),
    (-0.5, 0.21, '−0.50 ± 0.21'), (123456.0, 2345.0, '123456 ± 2345'), (0.0, 0.0, '0.00 ± 0.00'),
    (97.941, None, '97.94'), (float('inf'), float('nan'), 'inf ± nan')])
def test_as_many_places_as_matter(mean, sd, text):
  assert str(statistics.Summary(mean, sd, 3)) == text


def test_the_interval_is_that_of_all_resamples():
  """Of four values there are 256, each as likely: percentiles of their means."""
  values = [0.3, -0.1, 0.45, 0.2]
  means = [np.mean(one) for one in itertools.product(values, repeat=4)]
  want = np.percentile(means, [2.5, 97.5])
  found = statistics.interval(values)
  np.testing.assert_allclose(found, want, atol=0.03)
  assert found == statistics.interval(values)
  assert statistics.interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
  assert statistics.interval([2.0, 1.0, np.inf]) == (None, None)


def test_the_interval_holds_the_mean_as_often_as_it_says():
  """Of many seeds; of few it is optimistic, as the report says."""
  random = np.random.RandomState(0)
  held = [low <= 0 <= high for low, high in (
      statistics.interval(random.randn(30)) for _ in range(100))]
  assert 0.88 <= np.mean(held) <= 1.0


def test_pairs_are_those_of_both():
  """By seed; too few have no interval, which is said."""
  ours, theirs = {0: 1.0, 1: 2.0, 2: 4.0, 9: 0.0}, {2: 1.0, 1: 1.5, 0: 1.0, 7: 5.0}
  found = statistics.paired(ours, theirs)
  np.testing.assert_allclose(found.mean, np.mean([0.0, 0.5, 3.0]))
  assert found.n == 3 and 0 <= found.low < found.mean < found.high <= 3
  few = statistics.paired({0: 1.0, 1: 2.5}, theirs)
  assert few == (0.5, 2, None, None) and str(few) == '+0.5 (no interval: n = 2)'
  assert statistics.paired({3: 1.0}, theirs) is None
