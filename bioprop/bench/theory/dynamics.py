"""Training at infinite width and of networks, case by case.

A case is a rule with its options; all cases of a configuration see the same data. The mean-field
theory is solved once a case, and networks of several widths are trained with several seeds.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bioprop import measure, theory
from bioprop.bench import wide
from bioprop.errors import ConfigError, TheoryError


class Course(NamedTuple):
  """One training, over T steps of P samples; of theory, or of a network.

  Attributes:
    f: [T, P].
    entk: [T, P, P].
    phi: [L, T, P, P].
    g_pseudo: [L, T, P, P].
    correlation: of g and g~, mean over layers and samples [T]; NaN where it is unknown.
  """
  f: np.ndarray
  entk: np.ndarray
  phi: np.ndarray
  g_pseudo: np.ndarray
  correlation: np.ndarray

  def mse(self, y: np.ndarray) -> np.ndarray:
    """Mean square error over samples [T]."""
    return np.square(self.f - y).mean(1)

  def alignment(self, y: np.ndarray, which: str = 'entk') -> np.ndarray:
    """A(K, y y^T), or of the last layer's Phi, [T]."""
    kernels = self.entk if which == 'entk' else self.phi[-1]
    return np.asarray(jax.vmap(measure.target_alignment, (0, None))(
        jnp.asarray(kernels, jnp.float32), jnp.asarray(y, jnp.float32)))

  def signals(self) -> np.ndarray:
    """G~ of samples with themselves, mean over layers and samples [T]."""
    return np.einsum('ltpp->t', self.g_pseudo) / (len(self.g_pseudo) * self.f.shape[1])


class Outcome(NamedTuple):
  """What theory and networks say of one case.

  Attributes:
    times: [T].
    theory: the solution's course.
    networks: by width, a course for each seed.
  """
  times: np.ndarray
  theory: Course
  networks: Mapping[int, Sequence[Course]]

  @property
  def widest(self) -> Sequence[Course]:
    """The networks of the largest width."""
    return self.networks[max(self.networks)]

  def of(self, value: Callable[[Course], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A value of theory, its mean over the widest networks, and their standard deviation."""
    found = np.stack([value(course) for course in self.widest])
    spread = found.std(0, ddof=1) if len(found) > 1 else np.zeros_like(found[0])
    return value(self.theory), found.mean(0), spread


def data(config) -> tuple[np.ndarray, np.ndarray]:
  """Inputs [P, D] of norm sqrt(D) and targets [P], +1 and -1, at random; or whitened ones."""
  drawn = np.random.RandomState(config.data_seed)
  size, features = config.samples, config.features
  x = np.eye(size, features) if config.whitened else drawn.standard_normal((size, features))
  scale = np.sqrt(features) / np.linalg.norm(x, axis=1, keepdims=True)
  y = drawn.permutation(np.arange(size) % 2) * 2.0 - 1
  return np.asarray(x * scale, np.float32), np.asarray(y, np.float32)


def outcomes(config) -> dict[str, Outcome]:
  """Solves and trains all cases, by their labels."""
  x, y = data(config)
  names = [label(case) for case in config.cases]
  if len(set(names)) < len(names):
    raise ConfigError(f'config.cases has a case twice: {", ".join(names)}. Leave one out.')
  return {name: _outcome(config, dict(case), x, y) for name, case in zip(names, config.cases)}


def label(case: Mapping[str, Any]) -> str:
  """'fa rho=0.5 gamma0=2'."""
  options = [name for name in ('rho', 'gamma0', 'learning_rate') if name in case]
  return ' '.join([case['rule'], *(f'{name}={case[name]:g}' for name in options)])


def _outcome(config, case, x, y) -> Outcome:
  shared = {'depth': config.depth, 'gamma0': case.get('gamma0', config.gamma0),
            'learning_rate': case.get('learning_rate', config.learning_rate),
            'steps': config.steps, 'rule': case['rule'], 'rho': case.get('rho', 0.0)}
  logging.info('%s: theory', label(case))
  phi = ACTIVATIONS.get(config.activation, (config.activation,) * 2)
  solution = theory.solve_dmft(
      x, y, phi=phi[0], samples=config.copies or None, replicas=config.replicas,
      tolerance=config.tolerance, key=jax.random.key(config.data_seed), **shared)
  networks = {}
  for width in config.widths:
    logging.info('%s: %d networks of width %d', label(case), config.seeds, width)
    found = [wide.train(x=x, y=y, width=width, phi=phi[1], seed=seed, **shared)
             for seed in range(config.seeds)]
    networks[width] = [Course(*one) for one in found]
    if not all(np.isfinite(one.f).all() for one in found):
      raise TheoryError(f'networks of width {width} diverge under {label(case)}, although their '
                        f'limit does not: narrow ones may be less stable. Give this case a smaller '
                        f'gamma0 or learning_rate in config.cases, or larger config.widths.')
  return Outcome(solution.times, course(solution), networks)


def course(solution: theory.Solution) -> Course:
  """The part of a solution at equal times."""
  equal = lambda kernel: np.einsum('ltptq->ltpq', kernel)
  phi, signals = equal(solution.phi), equal(solution.g_pseudo)
  if solution.g is None or solution.pseudo is None:
    return Course(solution.f, solution.entk, phi, signals, np.full(len(solution.f), np.nan))
  squares = [np.einsum('ltptp->ltp', kernel) for kernel in (solution.g, solution.pseudo)]
  cosines = np.einsum('ltpp->ltp', signals) / np.sqrt(squares[0] * squares[1])
  return Course(solution.f, solution.entk, phi, signals, cosines.mean((0, 2)))


def _scaled_relu(h):
  """sqrt(2) ReLU, which keeps the scale of activities."""
  return 2**0.5 * jax.nn.relu(h)  # A number, so that hebb reads it as a part of phi.


# By name, for theory and for networks.
ACTIVATIONS = {'scaled_relu': (theory.ReLU(scale=2**0.5), _scaled_relu),
               'linear': ('linear', lambda h: h)}
