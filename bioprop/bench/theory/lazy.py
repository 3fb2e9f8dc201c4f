"""Kernels before training: of infinite width, and of networks that no step has changed.

Figure 2 of Bordelon & Pehlevan 2023 (arXiv 2210.02157). Inputs lie on a circle of radius sqrt(D),
at angles from 0 to pi with the first. A case is a rule, perhaps with several rho, and with a
depth and widths of its own; all rho are measured on the same weights, and so compared in pairs.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bioprop import measure, theory
from bioprop.bench import wide
from bioprop.bench.theory import dynamics
from bioprop.bench.theory.claim import Claim, Series, listed
from bioprop.fronts.plug import plug
from bioprop.models import MLP
from bioprop.probes.jacobian import jacobians as make_jacobians


class Kernels(NamedTuple):
  """The eNTKs of one rule, depth and rho.

  Attributes:
    label: 'fa rho=0.5, L=3'.
    depth: L.
    rho: None of rules that have none.
    predicted: [n, n].
    measured: by width, [seeds, n, n].
  """
  label: str
  depth: int
  rho: float | None
  predicted: np.ndarray
  measured: Mapping[int, np.ndarray]

  @property
  def widths(self) -> np.ndarray:
    """From the smallest."""
    return np.asarray(sorted(self.measured), float)

  def errors(self) -> np.ndarray:
    """Of each width, the root of the mean over networks of |K_N - K|^2 / |K|^2."""
    apart = [np.square(found - self.predicted).sum((1, 2)).mean()
             for _, found in sorted(self.measured.items())]
    return np.sqrt(apart / np.square(self.predicted).sum())


def lazy(config) -> list[Claim]:
  """Claims of figure 2: kernels over the angle, and how far those of networks are from them."""
  kernels = [one for case in config.cases for one in _kernels(config, dict(case))]
  several = [one for one in kernels if len(one.measured) > 1]
  return [_over_angle(config, [one for one in kernels if one.depth == config.depth]),
          _over_width(config, several), _over_rho(several)]


def angles(config) -> np.ndarray:
  """From 0 to pi, [samples]."""
  return np.linspace(0, np.pi, config.samples)


def circle(config) -> jax.Array:
  """Inputs at these angles with the first, of norm sqrt(features)."""
  x = np.zeros((config.samples, config.features))
  x[:, 0], x[:, 1] = np.cos(angles(config)), np.sin(angles(config))
  return jnp.asarray(x * np.sqrt(config.features), jnp.float32)


def _kernels(config, case) -> list[Kernels]:
  """One for each rho of the case."""
  x, rule, depth = circle(config), case['rule'], case.get('depth', config.depth)
  options = [{'rho': rho} for rho in case['rho']] if 'rho' in case else [{}]
  phi = dynamics.ACTIVATIONS.get(config.activation, (config.activation,) * 2)
  predicted = [theory.lazy_kernels(x, depth, phi[0], rule, **one).entk for one in options]
  measured = {}
  for width in case.get('widths', config.widths):
    logging.info('%s: %d networks with L=%d and N=%d', rule, config.seeds, depth, width)
    measured[width] = _measured(config, x, rule, depth, width, phi[1], options)
  return [Kernels(f'{dynamics.label({"rule": rule, **one})}, L={depth}', depth, one.get('rho'),
                  np.asarray(kernel), {width: found[at] for width, found in measured.items()})
          for at, (one, kernel) in enumerate(zip(options, predicted))]


def _measured(config, x, rule, depth, width, phi, options) -> np.ndarray:
  """The eNTKs of networks as the library initialises them, [options, seeds, n, n]."""
  plain = MLP(classes=1, hidden=(width,) * depth, activation=phi, parametrization='mup',
              gamma0=config.gamma0, use_bias=False)
  models = [plug(plain, wide.rule_of(rule, config.gamma0, width, **one))
            for one in options]
  # What rho decides is in the feedback, so that the first model's derivatives are those of all.
  jacobians = make_jacobians(models[0], x)
  jacobians.true(models[0].init(jax.random.key(0), x))  # Checks them, which needs real numbers.

  @jax.jit
  def kernel(variables):
    found = measure.entk(jacobians.true(variables), jacobians.pseudo(variables), x, trace=True)
    return found * plain.learning_rate_factor

  return np.asarray([[kernel(model.init(jax.random.key(seed), x)) for seed in range(config.seeds)]
                     for model in models])


def _over_angle(config, kernels: Sequence[Kernels]) -> Claim:
  """The first input's row of the kernel; all of it decides whether theory and networks agree."""
  series, apart = [], []
  for one in kernels:
    found = one.measured[max(one.measured)]
    apart.append(np.linalg.norm(found.mean(0) - one.predicted) / np.linalg.norm(one.predicted))
    series.append(Series(one.label, angles(config), one.predicted[0], found.mean(0)[0],
                         found.std(0, ddof=1)[0]))
  return Claim(
      'angle', 'In the lazy limit the eNTK is SUM_l rho^(L-l) G^(l+1) Phi^l; of gated linear '
      'networks it is (L+1) [E phi\'(m) phi\'(m\')]^L K^x.',
      f'rel. error of the mean kernel {listed(apart)}', '0', max(apart) <= config.close, series,
      ('angle between two inputs', 'eNTK'))


def _over_width(config, kernels: Sequence[Kernels]) -> Claim:
  """The errors of networks, and the line of slope -1 that is closest to each case."""
  series, slopes = [], []
  for one in kernels:
    widths, errors = one.widths, one.errors()**2
    slopes.append(np.polyfit(np.log(widths), np.log(errors), 1)[0])
    line = np.exp(np.log(errors * widths).mean()) / widths
    series.append(Series(one.label, widths, line, errors))
  return Claim(
      'width', 'The square of the eNTK\'s relative error falls as 1/N.',
      f'slopes {listed(slopes, ".2f")}', '-1.00',
      bool(np.abs(np.add(slopes, 1)).max() <= 2 * config.slope), series,
      ('width N', '|K_N - K|^2 / |K|^2'), ('log', 'log'))


def _over_rho(kernels: Sequence[Kernels]) -> Claim:
  """Errors in units of N^(-1/2), all widths together."""
  constants = {}
  for one in kernels:
    constants.setdefault(one.depth, {})[one.rho] = np.sqrt(np.mean(one.errors()**2 * one.widths))
  series = [Series(f'L={depth}', np.asarray(sorted(of)), None,
                   np.asarray([of[rho] for rho in sorted(of)]))
            for depth, of in sorted(constants.items())]
  falls = all((np.diff(one.measured) < 0).all() for one in series)
  rhos = set.intersection(*(set(of) for of in constants.values()))
  rises = all(np.all(np.diff([of[rho] for _, of in sorted(constants.items())]) > 0)
              for rho in rhos)
  text = '; '.join(f'{one.label}: {listed(one.measured, ".2f")}' for one in series)
  return Claim(
      'rho', 'At the same width the eNTK is farther from theory for small rho and for many layers.',
      text, 'falls with rho, rises with L', falls and rises, series,
      ('rho', 'sqrt(N) |K_N - K| / |K|'))
