"""Image classification at infinite width, beside trained networks, rule by rule.

A problem is a dataset, a number of training samples, and a loss; a case a rule. The kernel of
infinite width is what `theory.infinite` reads from the network that is trained, under its rule,
and what it predicts is `theory.predict_steps` of as many steps at the same learning rate. Under
fa(rho = 0) and dfa it is the last layer's kernel alone.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging

from bioprop import theory
from bioprop.bench.theory import dynamics
from bioprop.bench.theory import images as images_lib
from bioprop.bench.theory.claim import Claim, Series, listed
from bioprop.bench.theory.images import Images, Network
from bioprop.errors import ConfigError, TheoryError
from bioprop.limit.infinite import infinite as kernels_of

_KEYS = {'dataset', 'samples', 'loss', 'widths', 'seeds'}


class Outcome(NamedTuple):
  """What one case comes to in one problem.

  Attributes:
    label: the case's, such as 'fa rho=0.5'.
    error: test error at infinite width.
    errors: by width, of each network [seeds].
    apart: by width, of each network the distance of its test outputs from infinite width's, in
      units of their norm [seeds].
  """
  label: str
  error: float
  errors: Mapping[int, np.ndarray]
  apart: Mapping[int, np.ndarray]

  @property
  def widths(self) -> np.ndarray:
    """From the smallest."""
    return np.asarray(sorted(self.errors), float)

  def distances(self) -> np.ndarray:
    """Of each width, the root of the mean square over networks."""
    return np.asarray([np.sqrt(np.mean(one**2)) for _, one in sorted(self.apart.items())])


def infinite(config) -> list[Claim]:
  """Two claims of each problem: how networks approach infinite width, and their test errors.

  Raises:
    ConfigError: if a problem is not what `_KEYS` says, or what it asks for is not there.
    DataError: if a dataset is not there.
    TheoryError: if networks diverge.
  """
  problems = [_checked(config, dict(one)) for one in config.problems]
  claims = []
  for dataset in dict.fromkeys(one['dataset'] for one in problems):
    own = [one for one in problems if one['dataset'] == dataset]
    images = images_lib.load(dataset, config.data_dir, max(one['samples'] for one in own),
                             config.test, config.reduce, config.data_seed)
    outcomes: list[list[Outcome]] = [[] for _ in own]
    for case in config.cases:
      kernel = _kernel(config, dict(case), images)
      for problem, found in zip(own, outcomes):
        found.append(_outcome(config, problem, dict(case), images, kernel))
    for problem, found in zip(own, outcomes):
      claims += [approach(config, problem, found), same_errors(config, problem, found)]
      logging.info('%s', [(one.name, one.measured, one.predicted) for one in claims[-2:]])
  return claims


def _checked(config, problem: dict) -> dict:
  """With the configuration's own widths and seeds where it has none."""
  problem = {'loss': 'mse', 'widths': config.widths, 'seeds': config.seeds, **problem}
  if set(problem) != _KEYS or problem['loss'] not in images_lib.LOSSES:
    raise ConfigError(f'a problem of config.problems says dataset, samples, and perhaps loss '
                      f'({" or ".join(images_lib.LOSSES)}), widths and seeds, and this is '
                      f'{problem}. Type for instance {{\'dataset\': \'mnist\', \'samples\': 500}}.')
  if len(set(problem['widths'])) < 2:
    raise ConfigError(f'distances fall with width, and {problem["dataset"]} has the widths '
                      f'{problem["widths"]}: give two or more.')
  return problem


def _network(config, case, images: Images, width: int) -> Network:
  return Network(case['rule'], case.get('rho', 0.0), images.classes, width, tuple(config.strides),
                 config.gamma0, config.pooled)


def _kernel(config, case, images: Images) -> np.ndarray:
  """Of training samples and then of test samples, [n + m, n + m]."""
  logging.info('%s: kernel of %d samples', dynamics.label(case), len(images.x))
  network = _network(config, case, images, max(config.widths))
  both = np.concatenate([images.x, images.x_test])
  return np.asarray(kernels_of(network.plain, both, rule=network.by,
                               variances={'*/kernel': 1.0}).entk)


def _outcome(config, problem, case, images: Images, kernel: np.ndarray) -> Outcome:
  samples, loss = problem['samples'], problem['loss']
  x, targets = jnp.asarray(images.x[:samples]), jnp.asarray(images.targets(samples, loss))
  own, cross = kernel[:samples, :samples], kernel[len(images.x):, :samples]
  rate = config.rate * 2 / float(np.linalg.eigvalsh(own.astype(np.float64))[-1])
  predicted = np.asarray(theory.predict_steps(
      own, targets, rate, config.steps, loss=loss, cross=cross).test[-1])
  error = lambda f: float(np.mean(f.argmax(1) != images.labels_test))
  errors, apart = {}, {}
  for width in problem['widths']:
    network = _network(config, case, images, width)
    logging.info('%s: %d networks of width %d on %d samples of %s', dynamics.label(case),
                 problem['seeds'], width, samples, problem['dataset'])
    found = [images_lib.train(network, x, targets, jnp.asarray(images.x_test), learning_rate=rate,
                              steps=config.steps, loss=loss, seed=seed)
             for seed in range(problem['seeds'])]
    if not np.all(np.isfinite(found)):
      raise TheoryError(f'networks of width {width} diverge under {dynamics.label(case)}, although '
                        f'their limit does not: narrow ones may be less stable. Type '
                        f'--config.rate={config.rate / 2:g}, or give larger widths.')
    errors[width] = np.asarray([error(f) for f in found])
    apart[width] = np.asarray([np.linalg.norm(f - predicted) / np.linalg.norm(predicted)
                               for f in found])
  return Outcome(dynamics.label(case), error(predicted), errors, apart)


def _named(problem) -> tuple[str, str]:
  """For files, and for people."""
  numbers = problem['dataset'].replace('/', '_'), str(problem['samples']), problem['loss']
  return '_'.join(numbers), (f'{problem["samples"]} samples of {problem["dataset"]}, '
                             f'{problem["loss"]}')


def approach(config, problem, outcomes: Sequence[Outcome]) -> Claim:
  """Distances of networks, and the line of slope -1/2 that is closest to each case."""
  series, slopes = [], []
  for one in outcomes:
    widths, apart = one.widths, one.distances()
    slopes.append(np.polyfit(np.log(widths), np.log(apart), 1)[0])
    line = np.exp(np.mean(np.log(apart * np.sqrt(widths)))) / np.sqrt(widths)
    series.append(Series(one.label, widths, line, apart))
  name, text = _named(problem)
  return Claim(
      f'distance_{name}', f'{text}: test outputs of networks approach those of infinite width as '
      f'N^(-1/2).', f'slopes {listed(slopes, ".2f")}; distance at N={widths[-1]:g} '
      f'{listed([one.measured[-1] for one in series])}', '-0.50',
      bool(np.abs(np.add(slopes, 0.5)).max() <= config.slope), series,
      ('width N', '|f_N - f| / |f| on test samples'), ('log', 'log'))


def same_errors(config, problem, outcomes: Sequence[Outcome]) -> Claim:
  """Errors of networks, and a line across for infinite width."""
  series, measured = [], []
  for one in outcomes:
    found = [values for _, values in sorted(one.errors.items())]
    measured.append(found[-1].mean())
    spread = np.asarray([values.std(ddof=1) for values in found]) if len(found[0]) > 1 else None
    series.append(Series(one.label, one.widths, np.full(len(found), one.error),
                         np.asarray([values.mean() for values in found]), spread))
  predicted = [one.error for one in outcomes]
  name, text = _named(problem)
  return Claim(
      f'error_{name}', f'{text}: the test error of networks of width {one.widths[-1]:g} is within '
      f'{config.close:g} of infinite width\'s.', listed(measured), listed(predicted),
      bool(np.abs(np.subtract(measured, predicted)).max() <= config.close), series,
      ('width N', 'test error'), ('log', 'linear'))
