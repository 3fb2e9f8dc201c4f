"""Angles between forward and feedback weights: closed forms, and products in NumPy."""
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop.errors import MeasureError
from bioprop.measure import direct_alignment, weight_alignment

RNG = np.random.RandomState(0)


@pytest.mark.usefixtures('x64')
def test_weights():
  """1 of equals, whatever their scale; 0 of orthogonals; NaN of zeros; weights without feedback."""
  w, b = RNG.randn(2, 2, 3, 4), RNG.randn(2, 2, 3, 4)
  turned = b - w * np.sum(w * b) / np.sum(w * w)
  feedback = {'same': 3 * w, 'opposite': -w, 'orthogonal': turned, 'other': b, 'zero': 0 * w}
  got = weight_alignment({**dict.fromkeys(feedback, w), 'first': w[0]}, feedback)
  want = {'same': 1, 'opposite': -1, 'orthogonal': 0, 'zero': np.nan,
          'other': np.sum(w * b) / np.linalg.norm(w) / np.linalg.norm(b)}
  assert got.keys() == want.keys()
  for path, value in want.items():
    assert got[path].shape == ()
    np.testing.assert_allclose(got[path], value, rtol=1e-12, atol=1e-12)
  assert weight_alignment({'w': w}, {}) == {}


@pytest.mark.usefixtures('x64')
def test_signs_of_normal_weights():
  """E|w| / rms(w) = sqrt(2 / pi); 2 / pi with magnitudes of another normal draw; rho-FA: rho."""
  w, m = RNG.randn(2, 400, 500)
  uniform = bioprop.make('usf').sent_through({'kernel': jnp.asarray(w)}, None)
  fixed = bioprop.make('frsf').sent_through({'kernel': jnp.asarray(w)}, {'kernel': np.abs(m)})
  got = weight_alignment(
      dict.fromkeys('abc', w),
      {'a': uniform['kernel'], 'b': fixed['kernel'], 'c': 0.6 * w + 0.8 * m})
  for path, want in (('a', (2 / np.pi)**0.5), ('b', 2 / np.pi), ('c', 0.6)):
    np.testing.assert_allclose(got[path], want, atol=0.005)


@pytest.mark.usefixtures('x64')
def test_direct_feedback():
  """With the product of the weights above; 1 if it is that product, transposed."""
  above, b = [RNG.randn(4, 5), RNG.randn(5, 6), RNG.randn(6, 3)], RNG.randn(3, 4)
  product = above[0] @ above[1] @ above[2]
  want = np.trace(product @ b) / np.linalg.norm(product) / np.linalg.norm(b)
  np.testing.assert_allclose(direct_alignment(above, b), want, rtol=1e-12)
  np.testing.assert_allclose(direct_alignment(above, 2 * product.T), 1, rtol=1e-12)
  np.testing.assert_allclose(direct_alignment(above[2:], -above[2].T), -1, rtol=1e-12)


def test_what_is_not_shaped_like_the_weights():
  """Feedback of another shape, and of no weight."""
  with pytest.raises(MeasureError, match=r"of 'w' has shape \(3, 4\), .* are \(4, 3\).*direct_a"):
    weight_alignment({'w': np.ones((4, 3))}, {'w': np.ones((3, 4))})
  with pytest.raises(MeasureError, match="of 'v' has shape .* the weights are not there"):
    weight_alignment({'w': np.ones((4, 3))}, {'v': np.ones((4, 3))})


@pytest.mark.parametrize('above, feedback', [
    ([(4, 5), (6, 3)], (3, 4)), ([(4, 5), (5, 3)], (4, 3)), ([(4, 5), (5, 3)], (3, 5)),
    ([(2, 2, 1, 4), (4, 3)], (3, 2)), ([(4,)], (3, 4)), ([], (3, 4))], ids=str)
def test_weights_that_do_not_lead_to_the_output(above, feedback):
  """Shapes that do not follow each other, feedback the other way round, a convolution, none."""
  with pytest.raises(MeasureError, match='do not lead from .* Give the dense layers'):
    direct_alignment([np.ones(shape) for shape in above], np.ones(feedback))
