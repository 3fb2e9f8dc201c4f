"""Outputs of models with a fixed kernel: against scipy, and against models that are trained."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from bioprop.errors import TheoryError
from bioprop.theory.prediction import predict, predict_steps

RNG = np.random.RandomState(0)
N, M, C, P = 5, 3, 3, 7
FEATURES, FEATURES_TEST = RNG.randn(N, P), RNG.randn(M, P)
KERNEL, CROSS = FEATURES @ FEATURES.T, FEATURES_TEST @ FEATURES.T
LAMBDA = np.linalg.eigvalsh(KERNEL)[-1]
TARGETS, LABELS = RNG.randn(N, C), np.array([0, 2, 1, 2, 0])
INITIAL, INITIAL_TEST = RNG.randn(N, C), RNG.randn(M, C)
STARTS = {'initial': INITIAL, 'initial_test': INITIAL_TEST}
TIMES = np.array([0.0, 0.03, 0.1, 0.7, 5.0])


def cubed(f, y):
  """A loss that is given as a function."""
  return jnp.sum(jnp.abs(f - y)**3) / 3 + jnp.sum(jnp.square(f - y)) / 2


def cubed_slope(f, y):
  return np.sign(f - y) * (f - y)**2 + f - y


def entropy_slope(f, y):
  e = np.exp(f - f.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True) - y


# Targets, the loss, and its gradient in numpy.
LOSSES = {
    'mse': (TARGETS, 'mse', lambda f: f - TARGETS),
    'labels': (LABELS, 'cross_entropy', lambda f: entropy_slope(f, np.eye(C)[LABELS])),
    'function': (TARGETS, cubed, lambda f: cubed_slope(f, TARGETS)),
}


def solved(slope, kernel=KERNEL, cross=CROSS):
  """f and f_* at TIMES, by scipy."""
  both = np.concatenate([kernel, cross])
  speed = lambda t, f: -(both @ slope(f.reshape(-1, C)[:N])).reshape(-1)
  start = np.concatenate([INITIAL, INITIAL_TEST]).reshape(-1)
  run = scipy.integrate.solve_ivp(speed, (0, TIMES[-1]), start, 'DOP853', TIMES, rtol=1e-11,
                                  atol=1e-11)
  return np.split(run.y.T.reshape(len(TIMES), N + M, C), [N], 1)


@pytest.mark.usefixtures('x64')
def test_flow_is_the_matrix_exponential():
  """With a square loss, from outputs that are not 0, also if a mode of the kernel is 0."""
  for rank in (P, 2):
    part = FEATURES[:, :rank]
    kernel, cross = part @ part.T, FEATURES_TEST[:, :rank] @ part.T
    got = predict(kernel, TARGETS, TIMES, cross=cross, **STARTS)
    for i, t in enumerate(TIMES):
      # The exponential of a block matrix has the integral of exp(-K s) from 0 to t above.
      block = np.block([[-kernel, np.eye(N)], [np.zeros((N, 2 * N))]]) * t
      summed = scipy.linalg.expm(block)[:N, N:]
      residual = TARGETS - INITIAL
      decayed = scipy.linalg.expm(-kernel * t) @ residual
      np.testing.assert_allclose(got.train[i], TARGETS - decayed, rtol=1e-9, atol=1e-9)
      np.testing.assert_allclose(got.test[i], INITIAL_TEST + cross @ summed @ residual, rtol=1e-9,
                                 atol=1e-9)


@pytest.mark.parametrize('name', ['labels', 'function'])
@pytest.mark.usefixtures('x64')
def test_flow_of_any_loss(name):
  """Against scipy's integrator, with a kernel that is not symmetric."""
  targets, loss, slope = LOSSES[name]
  kernel = KERNEL + 0.3 * np.random.RandomState(1).randn(N, N)
  got = predict(kernel, targets, TIMES, loss=loss, cross=CROSS, **STARTS)
  for one, want in zip(got, solved(slope, kernel)):
    np.testing.assert_allclose(one, want, rtol=1e-7, atol=1e-7)
  later = predict(kernel, targets, TIMES[2:], loss=loss, cross=CROSS, **STARTS)
  np.testing.assert_allclose(later.train, got.train[2:], rtol=1e-7, atol=1e-7)
  kwargs = {'loss': loss, 'cross': CROSS, **STARTS}
  loose = predict(kernel, targets, TIMES, tolerance=1e-3, **kwargs)
  assert 1e-6 < np.abs(loose.train - got.train).max() < 0.1


@pytest.mark.usefixtures('x64')
def test_the_integrator_on_a_square_loss():
  """Against the closed form."""
  loss = lambda f, y: jnp.sum(jnp.square(f - y)) / 2
  closed = predict(KERNEL, TARGETS, TIMES, cross=CROSS, **STARTS)
  for one, want in zip(predict(KERNEL, TARGETS, TIMES, loss=loss, cross=CROSS, **STARTS), closed):
    np.testing.assert_allclose(one, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.usefixtures('x64')
def test_steps_are_those_of_a_linear_model(name):
  """Trained by JAX's gradients: f = f(0) + features theta."""
  targets, loss, _ = LOSSES[name]
  rate, steps = 0.2 / LAMBDA, 30
  own = {'mse': lambda f, y: jnp.sum(jnp.square(f - y)) / 2,
         'cross_entropy': lambda f, y: jax.nn.logsumexp(f) - f[y]}.get(loss, loss)
  run = lambda theta: INITIAL + FEATURES @ theta
  slope = jax.jit(jax.grad(
      lambda theta: sum(own(f, y) for f, y in zip(run(theta), jnp.asarray(targets)))))
  theta, train, test = jnp.zeros((P, C)), [], []
  for _ in range(steps + 1):
    train.append(run(theta))
    test.append(INITIAL_TEST + FEATURES_TEST @ theta)
    theta = theta - rate * slope(theta)
  got = predict_steps(KERNEL, targets, rate, steps, loss=loss, cross=CROSS, **STARTS)
  np.testing.assert_allclose(got.train, np.stack(train), rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(got.test, np.stack(test), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.usefixtures('x64')
def test_steps_become_flow(name):
  """The error of a short time falls as the learning rate."""
  targets, loss, slope = LOSSES[name]
  end, errors, counts = TIMES[1], [], (64, 256)
  want = solved(slope)[0][1]
  for steps in counts:
    got = predict_steps(KERNEL, targets, end / steps, steps, loss=loss, initial=INITIAL).train[-1]
    errors.append(np.abs(got - want).max())
  assert abs(math.log(errors[0] / errors[1]) / math.log(4) - 1) < 0.05


@pytest.mark.parametrize('loss', ['mse', 'cross_entropy', cubed])
@pytest.mark.some(2)
def test_shapes_in_float32(loss):
  """One output without an axis, what is left out, and labels that tell the number of classes."""
  kernel = jnp.asarray(KERNEL, jnp.float32)
  targets = LABELS if loss == 'cross_entropy' else TARGETS[:, 0]
  outputs = (C,) if loss == 'cross_entropy' else ()
  for got, count in ((predict(kernel, targets, TIMES, loss=loss, cross=CROSS), len(TIMES)),
                     (predict_steps(kernel, targets, 0.01, 4, loss=loss, cross=CROSS), 5)):
    assert got.train.shape == (count, N, *outputs) and got.test.shape == (count, M, *outputs)
    assert got.train.dtype == got.test.dtype == jnp.float32
    np.testing.assert_array_equal(got.train[0], 0)
  alone = predict(kernel, targets, TIMES[1:], loss=loss)
  assert alone.test is None
  with jax.enable_x64(True):
    double = predict(KERNEL, targets, TIMES[1:], loss=loss)
  np.testing.assert_allclose(alone.train, double.train, rtol=1e-3, atol=1e-3)


def test_labels_and_probabilities():
  """Are one loss."""
  labels, hot = (predict_steps(KERNEL, targets, 0.01, 3, loss='cross_entropy')
                 for targets in (LABELS, np.eye(C)[LABELS]))
  np.testing.assert_allclose(labels.train, hot.train, rtol=1e-6)


@pytest.mark.usefixtures('x64')
def test_the_largest_learning_rate():
  """Below it errors shrink, above it there is an error; also of what is not symmetric."""
  rotating = np.array([[1.0, -3.0], [3.0, 1.0]])  # lambda = 1 +- 3i, 2 Re / |lambda|^2 = 0.2.
  growing = np.diag([-1.0, 1.0])  # Grows under flow as well, and is no matter of the rate.
  for kernel, largest in ((KERNEL, 2 / LAMBDA), (rotating, 0.2), (growing, 2.0)):
    targets = np.ones(len(kernel)) * (kernel.sum(1) > -1)
    run = lambda factor: predict_steps(kernel, targets, factor * largest, 2000).train  # noqa: B023
    if kernel is not growing:
      assert np.abs(run(0.98)[-1] - targets).max() < 1e-3
    run(0.999)
    with pytest.raises(TheoryError, match=f'none does is {largest:.6g}'):
      run(1.001)
  predict_steps(KERNEL, LABELS, 3 / LAMBDA, 2, loss='cross_entropy')


GOOD = {'kernel': np.eye(2), 'targets': np.ones(2)}


@pytest.mark.parametrize('options, words', [
    ({'kernel': np.ones((2, 3))}, r'\[n, n\] of n > 0'),
    ({'kernel': np.ones((2, 2, 1, 1))}, 'kernel_regression'),
    ({'kernel': np.eye(2, dtype=np.int32)}, 'kernel is int32'),
    ({'kernel': np.array([[1.0, 0.5], [0.0, 1.0]])}, 'measure.kernel_regression'),
    ({'kernel': np.full((2, 2), np.nan)}, 'finite'),
    ({'targets': np.ones(3)}, r'to be \[2\] or'),
    ({'targets': np.ones((2, 1, 1))}, 'reshape'),
    ({'cross': np.ones((2, 3))}, r'to be \[m, 2\]'),
    ({'cross': np.ones((1, 2)), 'initial': np.ones(2)}, r'initial_test=f\(x_test\)'),
    ({'initial': np.ones((2, 1))}, r'initial=f\(x\)'),
    ({'initial_test': np.ones(1)}, r'initial=f\(x\)'),
    ({'loss': 'hinge'}, 'none of mse, cross_entropy'),
    ({'loss': 3}, 'none of mse, cross_entropy'),
    ({'loss': 'cross_entropy'}, 'jax.nn.one_hot'),
    ({'loss': 'cross_entropy', 'targets': np.zeros(2, np.int32)}, 'at least two classes'),
    ({'loss': 'cross_entropy', 'targets': np.array([0, 2]), 'initial': np.ones((2, 2))},
     'labels are from 0 to 2'),
    ({'loss': 'cross_entropy', 'targets': np.array([-1, 2])}, 'labels are from -1 to 2'),
    ({'times': [1.0, 1.0]}, 'linspace'),
    ({'times': [-1.0, 1.0]}, 'linspace'),
    ({'times': [1.0, math.inf]}, 'linspace'),
    ({'times': 1.0}, 'linspace'),
    ({'times': []}, 'linspace'),
    ({'loss': cubed, 'tolerance': 1e-8}, 'in float32'),
])
def test_errors_of_flow(options, words):
  """What does not match is named, with what to type."""
  with pytest.raises(TheoryError, match=words):
    predict(**{**GOOD, 'times': [1.0], **options})


@pytest.mark.usefixtures('x64')
def test_a_learning_rate_for_each_step():
  """Steps at several rates follow each other; the largest is what may diverge."""
  rates = np.array([0.3, 0.0, 0.1]) / LAMBDA
  got = predict_steps(KERNEL, TARGETS, rates, 3, cross=CROSS, **STARTS)
  train, test = INITIAL, INITIAL_TEST
  for at, rate in enumerate(rates):
    np.testing.assert_allclose(got.train[at], train, rtol=1e-12, atol=1e-12)
    error = train - TARGETS
    train, test = train - rate * KERNEL @ error, test - rate * CROSS @ error
  np.testing.assert_allclose(got.train[-1], train, rtol=1e-12)
  np.testing.assert_allclose(got.test[-1], test, rtol=1e-12)
  with pytest.raises(TheoryError, match=f'none does is {2 / LAMBDA:.6g}'):
    predict_steps(KERNEL, TARGETS, np.array([0.1, 2.1, 0.1]) / LAMBDA, 3)


@pytest.mark.parametrize('of', [predict, predict_steps])
def test_a_singular_kernel_in_float32(of):
  """What rounding leaves of modes that are not there learns nothing, however long one waits."""
  drawn = np.random.RandomState(2)
  low, others = drawn.randn(300, 20), drawn.randn(40, 20)
  kernel, cross, targets = low @ low.T, others @ low.T, drawn.randn(300, 2)
  values, vectors = np.linalg.eigh(kernel)
  learned = vectors[:, -20:].T @ targets
  if of is predict:
    when, rate = (np.array([1e9]) / values[-1],), 1e9
    share = -np.expm1(-rate * values[-20:] / values[-1])
  else:
    when = (1 / values[-1], 400)
    share = 1 - (1 - values[-20:] / values[-1])**400
  got = of(jnp.asarray(kernel, jnp.float32), targets, *when, cross=cross)
  want = vectors[:, -20:] @ (share[:, None] * learned)
  np.testing.assert_allclose(got.train[-1], want, atol=1e-3)
  want = cross @ vectors[:, -20:] @ ((share / values[-20:])[:, None] * learned)
  np.testing.assert_allclose(got.test[-1], want, atol=1e-3)


@pytest.mark.parametrize('options', [{'steps': 0}, {'steps': 1.5}, {'learning_rate': 0.0},
                                     {'learning_rate': math.nan}, {'learning_rate': 'a'},
                                     {'learning_rate': np.ones(2)},
                                     {'learning_rate': ['a', 'b', 'c']},
                                     {'learning_rate': np.array([0.1, -0.1, 0.1])}])
def test_errors_of_steps(options):
  """Of their number and size."""
  with pytest.raises(TheoryError, match='(steps|learning_rate)=.* must be'):
    predict_steps(**{**GOOD, 'learning_rate': 0.1, 'steps': 3, **options})
