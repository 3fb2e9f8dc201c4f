"""Images at infinite width: data, claims that hold and that do not, and networks that follow."""
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import data, theory
from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory import images, infinite
from bioprop.bench.theory.experiments import run
from bioprop.bench.theory.infinite import Outcome
from bioprop.errors import ConfigError, DataError, TheoryError
from bioprop.models import MLP

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBLEM = {'dataset': 'digits', 'samples': 24, 'loss': 'mse', 'widths': (8, 16), 'seeds': 2}


def small(**changed):
  """Digits in 4 x 4 pixels, one rule."""
  config = config_lib.base('infinite')
  config.problems, config.cases = ({'dataset': 'digits', 'samples': 24},), ({'rule': 'bp'},)
  config.test, config.reduce, config.widths, config.seeds, config.steps = 12, 2, (8, 16), 2, 3
  config.update(changed)
  return config


def made(power, error=0.2, off=0.0):
  """Networks whose distance is a power of width, and whose error is off by a number."""
  widths = (10, 100, 1000)
  return Outcome('bp', error, {width: np.array([error + off, error + off]) for width in widths},
                 {width: width**power * np.array([0.6, 0.8]) for width in widths})


@pytest.mark.parametrize('power, agrees', [(-0.5, True), (-0.3, False), (-0.7, False)])
def test_slopes_of_distances(power, agrees):
  """Every case's is to be -1/2."""
  claim = infinite.approach(small(), PROBLEM, [made(-0.5), made(power)])
  assert claim.agrees == agrees and claim.measured.startswith(f'slopes -0.50, {power:.2f};')
  np.testing.assert_allclose(claim.series[0].predicted, np.sqrt(0.5 / np.array([10, 100, 1000])))
  assert not infinite.approach(small(), PROBLEM, [made(np.nan)]).agrees


@pytest.mark.parametrize('off, agrees', [(0.04, True), (-0.04, True), (0.06, False)])
def test_errors_of_the_widest(off, agrees):
  """Of every case, on either side."""
  claim = infinite.same_errors(small(), PROBLEM, [made(-0.5), made(-0.5, 0.3, off)])
  assert claim.agrees == agrees
  assert (claim.measured, claim.predicted) == (f'0.200, {0.3 + off:.3f}', '0.200, 0.300')
  np.testing.assert_allclose(claim.series[1].spread, 0, atol=1e-12)


def test_images_are_means_of_pixels():
  """Standardised as the training samples are; the same test samples of more training samples."""
  few, more = (images.load('digits', None, samples, 7, 2, 3) for samples in (5, 9))
  np.testing.assert_array_equal(few.labels, more.labels[:5])
  np.testing.assert_array_equal(few.labels_test, more.labels_test)
  assert more.x.shape == (9, 4, 4, 1) and more.x.dtype == np.float32
  whole = data.load('digits', None, validation=0).train
  at = np.random.RandomState(3).permutation(len(whole.labels))[:9]
  raw = whole.images[at].astype(float)
  want = (raw[:, ::2, ::2] + raw[:, 1::2, ::2] + raw[:, ::2, 1::2] + raw[:, 1::2, 1::2]) / 4
  np.testing.assert_allclose(more.x, (want - want.mean()) / want.std(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(more.targets(4, 'mse').sum(1), 0, atol=1e-6)
  np.testing.assert_array_equal(more.targets(4, 'cross_entropy').argmax(1), more.labels[:4])


@pytest.mark.slow
def test_a_small_experiment(monkeypatch):
  """Two claims; the kernel is that of the network which is trained, and its steps are too."""
  seen, plain = [], theory.predict_steps
  monkeypatch.setattr(theory, 'predict_steps', lambda *args, **kwargs: seen.append(
      (args, kwargs)) or plain(*args, **kwargs))
  distance, error = run(small())
  assert (distance.name, error.name) == ('distance_digits_24_mse', 'error_digits_24_mse')
  ((kernel, targets, rate, steps), options), = seen
  assert options['cross'].shape == (12, 24) and targets.shape == (24, 10) and steps == 3
  np.testing.assert_allclose(rate, 1 / np.linalg.eigvalsh(np.asarray(kernel, float))[-1], rtol=1e-4)
  np.testing.assert_array_equal(error.series[0].x, [8, 16])
  assert (distance.series[0].measured < 1.5).all()


@pytest.mark.parametrize('changed, words', [
    ({'problems': ({'dataset': 'digits'},)}, "'samples': 500"),
    ({'problems': ({'dataset': 'digits', 'samples': 9, 'loss': 'hinge'},)}, 'mse or cross_entropy'),
    ({'problems': ({'dataset': 'digits', 'samples': 9, 'size': 1},)}, 'perhaps loss'),
    ({'problems': ({'dataset': 'digits', 'samples': 9999},)}, '9999 train samples of digits'),
    ({'problems': ({'dataset': 'copy', 'samples': 9},)}, "'copy' has none"),
    ({'widths': (8,)}, 'give two or more'), ({'reduce': 3}, '--config.reduce=4')])
def test_refused(changed, words):
  """Before a kernel is computed."""
  with pytest.raises(ConfigError, match=words):
    run(small(**changed))


def test_no_data(tmp_path):
  """Is said as everywhere."""
  with pytest.raises(DataError, match='mnist'):
    run(small(problems=({'dataset': 'mnist', 'samples': 9},), data_dir=str(tmp_path)))


@pytest.mark.slow
def test_networks_that_diverge_are_told_of(monkeypatch):
  """By what to type."""
  monkeypatch.setattr(images, 'train', lambda *_, **__: np.full((12, 10), np.nan))
  with pytest.raises(TheoryError, match='width 8 diverge under bp.*--config.rate=0.25'):
    run(small())


def test_the_configuration():
  """As the command reads it."""
  config = runpy.run_path(str(ROOT / 'configs' / 'theory_cnn.py'))['get_config']()
  config_lib.check(config)
  assert {one['samples'] for one in config.problems} == {500, 2000}


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['mse', 'cross_entropy'])
@pytest.mark.parametrize('rule', ['bp', 'fa'])
@pytest.mark.usefixtures('optimised')
def test_wide_networks_follow(rule, loss):
  """A multi-layer perceptron of 1000 units, by its own gradient steps; of 60, from farther."""
  found = images.load('digits', None, 40, 20, 1, 0)
  x, x_test = (one.reshape(len(one), -1) for one in (found.x, found.x_test))
  by = bioprop.make('fa', rho=0.5, scale=1.0) if rule == 'fa' else rule
  network = lambda width: MLP(hidden=(width, width), parametrization='ntk', activation='relu',
                              use_bias=False)
  kernel = np.asarray(bioprop.theory.infinite(network(8), np.concatenate([x, x_test]), rule=by,
                                       variances={'*/kernel': 1.0}).entk)
  targets = jnp.asarray(found.targets(40, loss))
  rate = 1 / float(np.linalg.eigvalsh(kernel[:40, :40])[-1])
  want = theory.predict_steps(kernel[:40, :40], targets, rate, 60, loss=loss,
                              cross=kernel[40:, :40])
  slope = (lambda f: f - targets) if loss == 'mse' else (lambda f: jax.nn.softmax(f) - targets)

  def outputs(width, seeds):
    """Of each network, on training and test samples, less those before [seeds, 60, 10]."""
    model = bioprop.plug(network(width), by)
    both = jnp.concatenate([x, x_test])

    @jax.jit
    def trained(key):
      variables = model.init(key, x)
      params, held = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
      run = lambda params, x: model.apply({'params': params, **held}, x)
      start = run(params, x)

      def step(params, _):
        f, pull = jax.vjp(lambda params: run(params, x), params)
        return jax.tree.map(lambda w, g: w - rate * g, params, pull(slope(f - start))[0]), None

      last, _ = jax.lax.scan(step, params, None, 60)
      return run(last, both) - run(params, both)

    return np.stack([trained(jax.random.key(seed)) for seed in range(seeds)])

  predicted = np.concatenate([want.train[-1], want.test[-1]])
  distance = lambda f, part: np.linalg.norm((f - predicted)[..., part, :]) / np.linalg.norm(
      predicted[part]) / np.sqrt(f.size / predicted.size)
  wide, narrow = outputs(1000, 6), outputs(60, 6)
  for part in (slice(40), slice(40, None)):
    # Independent networks: their mean is closer by the root of six, and width by that of 1000 / 60.
    assert distance(wide, part) < 0.5 * distance(narrow, part)
    assert distance(wide.mean(0), part) < min(0.12, 0.7 * distance(wide, part))
