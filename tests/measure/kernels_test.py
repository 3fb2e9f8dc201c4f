"""Measurements of kernels: against closed forms, NumPy, and training written out step by step."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.errors import MeasureError
from bioprop.measure import Jacobian, entk, kernels

RNG = np.random.RandomState(0)
N, M, C = 5, 3, 2


def kernel(*shape, shift=0.0):
  """Not symmetric."""
  return RNG.randn(*shape) + shift


def rotation(size):
  return np.linalg.qr(RNG.randn(size, size))[0]


def symmetric(values):
  """A kernel with these eigenvalues."""
  q = rotation(len(values))
  return (q * values) @ q.T


def unit(a):
  return a / np.linalg.norm(a)


def close(got, want, tolerance=1e-10):
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.mark.usefixtures('x64')
def test_a_full_kernel_acts_on_flat_outputs():
  """Test samples and their outputs are rows; what is a matrix stays as it is."""
  full, error = kernel(M, N, C, C + 1), kernel(N, C + 1)
  got = kernels.as_matrix(full)
  assert got[2 * C + 1, 4 * (C + 1) + 2] == full[2, 4, 1, 2]
  close((got @ error.reshape(-1)).reshape(M, C), np.einsum('mncd,nd->mc', full, error))
  assert kernels.as_matrix(full[..., 0, 0]).shape == (M, N)


@pytest.mark.usefixtures('x64')
def test_target_alignment():
  """By entries; 1 for the targets' own kernel, 1 / sqrt(n) for the identity."""
  y, targets = kernel(N), kernel(N, C)
  k, full = kernel(N, N), kernel(N, N, C, C)
  close(kernels.target_alignment(k, y), np.sum(unit(k) * unit(np.outer(y, y))))
  close(kernels.target_alignment(k, targets), np.sum(unit(k) * unit(targets @ targets.T)))
  both = np.einsum('nc,md->nmcd', targets, targets)
  close(kernels.target_alignment(full, targets), np.sum(unit(full) * unit(both)))
  close(kernels.target_alignment(k[..., None, None], y[:, None]), kernels.target_alignment(k, y))
  close(kernels.target_alignment(3 * np.outer(y, y), y), 1)
  close(kernels.target_alignment(-both, targets), -1)
  close(kernels.target_alignment(np.eye(N), y), N ** -0.5)
  assert np.isnan(kernels.target_alignment(0 * k, y))


@pytest.mark.usefixtures('x64')
def test_centred_alignment():
  """Of H K H; of features it is CKA as Kornblith et al. write it, whatever turns or shifts them."""
  k, other = kernel(N, N, shift=3), kernel(N, N, shift=-1)
  h = np.eye(N) - 1 / N
  close(kernels.centred_alignment(k, other), np.sum(unit(h @ k @ h) * unit(h @ other @ h)))
  x, z = RNG.randn(8, 4), RNG.randn(8, 3)
  gram = lambda a: a @ a.T
  xc, zc = x - x.mean(0), z - z.mean(0)
  want = np.sum((zc.T @ xc) ** 2) / np.linalg.norm(xc.T @ xc) / np.linalg.norm(zc.T @ zc)
  close(kernels.centred_alignment(gram(x), gram(z)), want)
  moved = 0.1 * x @ rotation(4) + RNG.randn(1, 4)
  close(kernels.centred_alignment(gram(moved), gram(z)), want)
  close(kernels.centred_alignment(gram(moved), gram(x)), 1)
  close(kernels.centred_alignment(gram(x), -gram(x)), -1)


@pytest.mark.usefixtures('x64')
def test_cka_of_each_with_each():
  """Independent features of p dimensions have p / (p + n): the known bias."""
  stack, others = kernel(4, N, N), kernel(2, N, N)
  want = [[kernels.centred_alignment(a, b) for b in others] for a in stack]
  close(kernels.cka(stack, others), np.array(want))
  own = np.asarray(kernels.cka(stack))
  close(np.diag(own), np.ones(4))
  close(own[1, 3], kernels.centred_alignment(stack[1], stack[3]))
  n, p = 200, 10
  x = RNG.randn(6, n, p)
  independent = np.asarray(kernels.cka(x @ x.transpose(0, 2, 1)))[np.triu_indices(6, 1)]
  np.testing.assert_allclose(independent.mean(), p / (p + n), rtol=0.1)


@pytest.mark.usefixtures('x64')
def test_spectra():
  """Gains are singular values, rates eigenvalues: the same of a kernel that is symmetric."""
  values = np.array([5.0, 2.0, 1.0, 0.1])
  k = symmetric(values)
  close(kernels.spectrum(k), values)
  close(kernels.rates(k), values)
  full = kernel(N, N, C, C)
  matrix = np.array([[full[i, j, c, d] for j in range(N) for d in range(C)]
                     for i in range(N) for c in range(C)])
  close(kernels.spectrum(full), np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[::-1]))
  close(np.prod(kernels.rates(full)), np.linalg.det(matrix))
  close(np.sum(kernels.rates(full)), np.trace(matrix))
  triangular = np.array([[-2.0, 7.0, 1.0], [0.0, 3.0, 4.0], [0.0, 0.0, 1.0]])
  close(kernels.rates(triangular), [3, 1, -2])
  turning = np.array([[1.0, -2.0], [2.0, 1.0]])
  close(kernels.spectrum(turning), [5 ** 0.5] * 2)
  close(np.sort_complex(kernels.rates(turning)), [1 - 2j, 1 + 2j])


@pytest.mark.usefixtures('x64')
def test_effective_rank():
  """Of equal modes their number; of weights 1/2, 1/4, 1/4 two to the power of 3/2."""
  close(kernels.effective_rank(np.eye(N)), N)
  y, z = kernel(N), kernel(N)
  close(kernels.effective_rank(np.outer(y, z)), 1)
  projection = np.linalg.qr(RNG.randn(N * C, 3))[0]
  full = (projection @ projection.T).reshape(N, C, N, C).transpose(0, 2, 1, 3)
  close(kernels.effective_rank(full), 3)
  close(kernels.effective_rank(symmetric([4.0, 2.0, 2.0, 0.0, 0.0])), 2 ** 1.5)
  assert np.isnan(kernels.effective_rank(np.zeros((N, N))))


def trained(jacobian, pseudo, targets, test, start, time, ridge):
  """A linear model under a rule, in NumPy by RK4: its outputs at start and at the end."""
  flow = lambda p: -pseudo.T @ (jacobian @ p - targets) - ridge * (p - start)
  p, steps = start, 1000
  h = time / steps
  for _ in range(steps):
    a = flow(p)
    b = flow(p + h / 2 * a)
    c = flow(p + h / 2 * b)
    p = p + h / 6 * (a + 2 * b + 2 * c + flow(p + h * c))
  return jacobian @ start, test @ start, test @ p


@pytest.mark.parametrize('time, ridge', [(0.7, 0.0), (3.0, 0.0), (2.0, 0.3), (40.0, 0.3)])
@pytest.mark.parametrize('wide', [True, False])
@pytest.mark.usefixtures('x64')
def test_predictions_are_those_of_training(time, ridge, wide):
  """Under a rule that is not backprop; with fewer parameters than outputs K is singular."""
  size = 20 if wide else 4
  feedback = np.eye(size) + 0.5 / size ** 0.5 * RNG.randn(size, size)
  x, x_test = 0.3 * RNG.randn(N, C, size), 0.3 * RNG.randn(M, C, size)
  true = lambda x: Jacobian({}, {'w': x})
  pseudo = lambda x: Jacobian({}, {'w': x @ feedback})
  k, cross = entk(true, pseudo, x), entk(true, pseudo, x_test, x)
  flat = lambda a: a.reshape(-1, size)
  matrix = kernels.as_matrix(np.asarray(k))
  assert np.linalg.matrix_rank(matrix) == min(size, N * C)
  assert np.abs(matrix - matrix.T).max() > 0.1
  targets, start = RNG.randn(N, C), RNG.randn(size)
  initial, initial_test, want = trained(
      flat(x), flat(x @ feedback), targets.reshape(-1), flat(x_test), start, time, ridge)
  outputs = {'initial': initial.reshape(N, C), 'initial_test': initial_test.reshape(M, C)}
  got = kernels.kernel_regression(k, cross, targets, **outputs, time=time, ridge=ridge)
  close(got, want.reshape(M, C), 1e-8)
  if time == 40.0:
    end = kernels.kernel_regression(k, cross, targets, **outputs, ridge=ridge)
    close(got, end, 1e-4)


@pytest.mark.usefixtures('x64')
def test_predictions_in_closed_form():
  """Ridge regression; training samples themselves; mode by mode; outputs that do not interact."""
  values = np.array([4.0, 2.0, 1.0, 0.5, 0.2])
  modes = rotation(N)
  k, cross, targets = modes * values @ modes.T, kernel(N, N), kernel(N, C)
  predict = kernels.kernel_regression
  close(predict(k, cross, targets, ridge=0.1),
        cross @ np.linalg.inv(k + 0.1 * np.eye(N)) @ targets)
  close(predict(k, k, targets), targets)
  close(predict(k, k, targets[:, 0]), targets[:, 0])
  close(predict(k, cross, targets, time=1e3), predict(k, cross, targets))
  time = 1.7
  learned = modes * (1 - np.exp(-values * time)) @ modes.T @ targets  # (I - exp(-K t)) y
  for scale in (1, 1e30, 0):
    close(predict(k, k, scale * targets, time=time), scale * learned)
  apart = lambda kernel: np.eye(C) * kernel[..., None, None]
  close(predict(apart(k), apart(cross), targets), predict(k, cross, targets))
  close(predict(k, cross, targets, time=0.0), np.zeros((N, C)))
  one = np.ones((N, N))  # Of one mode: it learns the mean.
  close(predict(one, one, targets, time=1e3), np.broadcast_to(targets.mean(0), (N, C)))


def test_single_precision():
  """Under jit, with a time and a ridge that are traced, all stays float32 and close to float64."""
  k = symmetric(np.geomspace(10, 0.01, 6)) + 0.01 * RNG.randn(6, 6)
  cross, targets = RNG.randn(2, 6), RNG.randn(6, 2)
  singles = [jnp.asarray(a, jnp.float32) for a in (k, cross, targets)]
  run = jax.jit(lambda k, cross, targets, time: [
      kernels.kernel_regression(k, cross, targets, time=time),
      kernels.kernel_regression(k, cross, targets, ridge=time),
      kernels.target_alignment(k, targets),
      kernels.centred_alignment(k, targets @ targets.T),
      kernels.spectrum(k),
      kernels.effective_rank(k),
      kernels.classification_error(targets, jnp.zeros(6, jnp.int32))])
  got = run(*singles, np.int32(20))
  assert all(value.dtype == jnp.float32 for value in got)
  assert kernels.rates(singles[0]).dtype == np.complex64
  with jax.enable_x64(True):
    want = run(*(jnp.asarray(a) for a in (k, cross, targets)), np.int32(20))
    assert all(value.dtype == jnp.float64 for value in want)
    assert kernels.rates(jnp.asarray(k)).dtype == np.complex128
  for a, b in zip(got, want):
    close(a, np.asarray(b), 1e-4)
  assert np.isnan(run(*singles, np.int32(10 ** 9))[0]).all()  # Not one digit would be left.


def test_classification_error():
  """Labels of any whole type."""
  outputs = np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [-3.0, -2.0, -1.0], [0.0, 1.0, 0.5]])
  for dtype in (np.uint8, np.int32, np.int64):
    assert kernels.classification_error(outputs, np.array([1, 0, 0, 1], dtype)) == 0.25
  assert kernels.classification_error(outputs, np.array([1, 0, 2, 1])) == 0
  assert kernels.classification_error(outputs, np.array([0, 1, 0, 0])) == 1


def test_what_is_not_a_kernel():
  """Full where it cannot be, not square, of no samples, of others than the targets."""
  k, y = np.eye(4), np.ones(4)
  full = np.ones((4, 4, 2, 2))
  for shape in ((4,), (2, 4, 4), (0, 0)):
    with pytest.raises(MeasureError, match='neither .* one at a time'):
      kernels.spectrum(np.zeros(shape))
  for shape in ((4, 3), (4, 3, 2, 2), (4, 4, 2, 3), (2, 3, 3, 2)):
    with pytest.raises(MeasureError, match=r'with themselves.*entk\(true, pseudo, x\)'):
      kernels.rates(np.zeros(shape))
  for given, targets in ((k, y[:3]), (k, y[:, None, None]), (full, y), (full, np.ones((4, 3))),
                         (k, y[0])):
    with pytest.raises(MeasureError, match='one for each sample and output.*one_hot'):
      kernels.target_alignment(given, targets)
  with pytest.raises(MeasureError, match=r'kernel has.*undefined over outputs.*trace=True'):
    kernels.centred_alignment(full, k)
  with pytest.raises(MeasureError, match=r'other has the shape \(4, 3\)'):
    kernels.centred_alignment(k, k[:, :3])
  with pytest.raises(MeasureError, match=r'\[m, n, n\].*jnp.stack'):
    kernels.cka(k)
  with pytest.raises(MeasureError, match='others has.*with n > 0'):
    kernels.cka(k[None], np.zeros((0, 4, 4)))
  with pytest.raises(MeasureError, match='different samples.*on the same x'):
    kernels.centred_alignment(k, k[:3, :3])
  for labels in (np.zeros((4, 2), int), np.zeros(3, int)):
    with pytest.raises(MeasureError, match=r'are not \[m, C\] and \[m\].*argmax'):
      kernels.classification_error(np.ones((4, 2)), labels)


def test_what_cannot_be_predicted():
  """Kernels that do not match, outputs at the start of one kind only."""
  k, y = np.eye(4), np.ones((4, 2))
  full = np.ones((4, 4, 2, 2))
  for given, cross in ((k, k[:, :3]), (full, k), (full, full[:, :, :, :1]), (k, np.ones(4))):
    with pytest.raises(MeasureError, match=r'with test samples first.*x_test, x\)'):
      kernels.kernel_regression(given, cross, y)
  for initial, initial_test in ((y, None), (None, y), (y[:, :1], y), (y, y[:2])):
    with pytest.raises(MeasureError, match=r'one network gives both.*initial=f\(x\)'):
      kernels.kernel_regression(k, k, y, initial=initial, initial_test=initial_test)
