"""The picture of README: what is drawn is what was found, and networks are where theory is."""
import re

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.datasets import load_digits

from bioprop.bench import overview


def test_data():
  """Six threes and then six eights, centred before they are scaled."""
  x, y = overview.data()
  images, labels = load_digits(return_X_y=True)
  chosen = np.concatenate([np.flatnonzero(labels == one)[:6] for one in (3, 8)])
  centred = images[chosen] - images[chosen].mean(0)
  np.testing.assert_allclose(x, 8 * centred / np.linalg.norm(centred, axis=1)[:, None], rtol=1e-5)
  np.testing.assert_array_equal(y, np.where(labels[chosen] == 8, 1, -1))


def test_what_is_drawn():
  """Lines of theory, marks of networks, and both kernels on one scale of colours."""
  y, steps = overview.data()[1], 5
  draws = np.random.RandomState(0)
  found = {rule: {who: (draws.randn(steps, 12), draws.randn(steps, 12, 12))
                  for who in ('network', 'theory')} for rule in ('bp', 'fa')}
  left, right = overview.draw(found).subfigs
  losses, alignments = left.axes
  at = 0
  for course in found.values():
    for who, (f, kernel) in course.items():
      line = losses.lines[at]
      np.testing.assert_allclose(line.get_ydata(), np.mean((f - y)**2, 1))
      assert (line.get_linestyle() == 'None') == (who == 'network')
      cosine = [np.sum(k * np.outer(y, y)) / np.linalg.norm(k) / 12 for k in kernel]
      np.testing.assert_allclose(alignments.lines[at].get_ydata(), cosine, rtol=1e-5, atol=1e-6)
      at += 1
  drawn = [axes.images[0] for axes in right.axes]
  for column, course in enumerate(found.values()):
    for row, (_, kernel) in enumerate(course.values()):
      image = drawn[2 * row + column]
      np.testing.assert_array_equal(image.get_array(), kernel[-1])
      top = max(np.abs(one[1][-1]).max() for one in course.values())
      assert image.get_clim() == (-top, top)


@pytest.mark.slow
def test_the_command(python, tmp_path):
  """Also of fewer rules and steps; at width 500 networks are near their limit."""
  done = python('--rules=fa', '--width=500', '--seeds=2', '--steps=12', '--out=it.png',
                module='bioprop.bench.overview', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  apart = [float(one) for one in re.findall(r'\d\.\d{3}', done.stdout)]
  assert len(apart) == 2 and max(apart) < 0.1, done.stdout
  assert imread(tmp_path / 'it.png').std() > 0.05
