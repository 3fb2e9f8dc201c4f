"""Linear recurrent networks under rules that assign credit in time, beside `theory.recurrent`.

Williams, Payeur & Lajoie 2026 (arXiv 2606.00243). Networks of Flax follow the library's rules by
plain SGD on the exact average over white noise, in float64: a full batch of impulses. Here are
whole matrices, of students that share no bases with the teacher; modes are in recurrent_modes.py.
"""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bioprop.bench.theory import recurrent_modes
from bioprop.bench.theory import recurrent_networks as networks
from bioprop.bench.theory.claim import Claim, Series, listed
from bioprop.errors import ConfigError, TheoryError
from bioprop.theory import recurrent
from bioprop.theory.recurrent import Mode, Network

RULES = recurrent_modes.RULES
_TIME = recurrent_modes.TIME
# Singular values that are no more than rounding, relative to the largest.
_ROUNDING = 1e-9


class Students(NamedTuple):
  """Small random students of a teacher that is diagonal in random bases of its own.

  Attributes:
    starts: [S, rows, columns] each.
    feedback: R [S, o, n], of standard deviation 1.
    teacher: its matrices.
    bases: U, P and V, as `recurrent.from_modes` takes them.
    modes: of the teacher.
  """
  starts: Network
  feedback: jax.Array
  teacher: Network
  bases: tuple[np.ndarray, np.ndarray, np.ndarray]
  modes: Mode


def run(config) -> list[Claim]:
  """All claims.

  Raises:
    ConfigError: if there are other cases than one of each rule, or nothing to compare.
    TheoryError: if networks diverge whose ranks are to be counted.
  """
  rules = [case.get('rule') for case in config.cases]
  if sorted(rules, key=str) != sorted(RULES):
    raise ConfigError(f'recurrent networks are compared under one case of each rule, '
                      f'{", ".join(RULES)}, and config.cases has {rules}. Give for instance '
                      f'{{\'rule\': \'tbptt\', \'steps\': 1}} and others such.')
  if len(set(config.widths)) < 2 or min(config.widths) < len(config.modes) or len(
      config.modes) < 2 or len(set(config.starts)) < 2:
    raise ConfigError(
        f'config.widths={config.widths} are to be two, of networks whose matrices are learned and '
        f'of wider ones whose ranks are counted, config.modes and config.starts two or more, and '
        f'no width less than the modes, {len(config.modes)}. Say for instance '
        f'config.widths = (4, 8).')
  cases = {case['rule']: dict(case) for case in config.cases}
  with jax.enable_x64(True):
    modes = recurrent_modes.claims(config, cases)
    students = {size: _students(config, size, min(config.widths), len(config.modes), config.seeds)
                for size in sorted(config.starts)}
    courses = {size: {rate: {rule: _both(config, case, those, rate)
                             for rule, case in cases.items()} for rate in sorted(config.rates)}
               for size, those in students.items()}
    size = min(config.starts)
    wide = _students(config, size, max(config.widths), len(config.modes) // 2,
                     max(2, config.seeds // 4))
    learned = {rule: _both(config, case, wide, min(config.rates)) for rule, case in cases.items()}
    _refuse_lost(config, learned)
    smallest = courses[size][min(config.rates)]
    return [*modes, _exact(config, smallest), _unaligned(config, cases, students[size], smallest),
            _ranks(wide, learned), _spectra(wide, learned), _share(config, courses),
            _small_starts(config, courses)]


def _students(config, size: float, width: int, modes: int, count: int) -> Students:
  """Of the teacher's first modes, and weights of this size; as many inputs as it has modes in all.
  """
  rng = np.random.RandomState(config.data_seed)
  basis = lambda rows: np.linalg.qr(rng.randn(rows, modes))[0]
  inputs = len(config.modes)
  teacher = Mode(*np.asarray(config.modes, float)[:modes].T)
  bases = basis(modes), basis(width), basis(inputs)
  shapes = (modes, width), (width, inputs), (width, width)
  starts = Network(*(jnp.asarray(size * rng.randn(count, *shape)) for shape in shapes))
  return Students(starts, jnp.asarray(rng.randn(count, modes, width)),
                  recurrent.from_modes(teacher, *bases), bases, teacher)


def _updates(config, rate: float) -> int:
  """As many as take the time that config.steps at config.learning_rate do."""
  return round(config.steps * config.learning_rate / rate)


def _both(config, case: Mapping, students: Students,
          rate: float) -> tuple[networks.Course, networks.Course]:
  """What theory and what networks do."""
  logging.info('%s, rate %g: %d networks of %d units', networks.label(case), rate,
               *students.feedback.shape[::2])
  horizon, updates = min(config.horizons), _updates(config, rate)
  rules = networks.predicted(case, horizon), networks.plugged(case, students.starts)
  return tuple(networks.train(
      rule, students.starts, students.feedback, students.teacher, horizon=horizon,
      learning_rate=rate, updates=updates, every=updates) for rule in rules)


def _refuse_lost(config, learned: Mapping) -> None:
  """Raises TheoryError where networks diverged that singular values are to be of."""
  for rule, both in learned.items():
    lost = max(int((~np.isfinite(one.network.w).all((1, 2))).sum()) for one in both)
    if lost:
      raise TheoryError(f'{lost} of {len(both[0].loss)} networks of {max(config.widths)} units '
                        f'diverge under {rule} at the learning rate {min(config.rates):g}, and '
                        f'have no singular values. Add a smaller one to config.rates, '
                        f'{min(config.rates) / 2:g}.')


def _exact(config, courses: Mapping) -> Claim:
  """Over all networks that do not diverge, to which rounding is no more than that."""
  series, apart = [], []
  for rule, (theory, nets) in courses.items():
    finite = np.isfinite(theory.loss).all(1)
    apart.append(np.abs(nets.loss - theory.loss)[finite].max() / theory.loss[0, 0]
                 if finite.any() else np.nan)
    times = min(config.rates) * np.arange(theory.loss.shape[1])
    series.append(Series(rule, times, theory.loss[0], nets.loss[0]))
  return Claim(
      'exact', 'Plugged rules make the updates of theory, of networks of any kind: losses over all '
      'of training, and all starts.',
      f'largest difference, relative to the first loss: {_named(courses, apart, ".0e")}',
      '0 (to rounding)', bool(np.max(apart) < 1e-6), series, (_TIME, 'loss of the first start'),
      ('linear', 'log'))


def _unaligned(config, cases: Mapping, students: Students, courses: Mapping) -> Claim:
  """The modes of the diagonals, in the teacher's bases, beside the networks."""
  start = recurrent.to_modes(Network(*(one[0] for one in students.starts)), *students.bases)
  seen = students.feedback[0], students.starts.b[0], students.starts.w[0]
  back = recurrent.to_modes(Network(*seen), *students.bases).a
  series, apart = [], []
  for rule, (_, nets) in courses.items():
    times = min(config.rates) * np.arange(nets.loss.shape[1])
    told = networks.options(cases[rule], np.asarray(back))
    found = recurrent.trajectory(rule, Mode(*map(np.asarray, start)), students.modes, times, **told)
    modes = found.loss.sum(1)
    real = np.isfinite(modes)
    apart.append(np.abs(modes - nets.loss[0])[real].max() / nets.loss[0, 0])
    series.append(Series(rule, times, np.where(real, modes, np.nan), nets.loss[0]))
  return Claim(
      'unaligned', 'A student that is not aligned with the teacher learns as the modes on its '
      'diagonals do.', f'largest difference of the losses, relative to the first: '
      f'{_named(courses, apart)}', '0', bool(np.max(apart) <= config.close), series,
      (_TIME, 'loss'), ('linear', 'log'))


def _values(students: Students, learned: Mapping) -> dict:
  """Singular values of W_K - W_0, [S, n], of theory and of networks."""
  of = lambda course: np.linalg.svd(course.network.w - np.asarray(students.starts.w),
                                    compute_uv=False)
  return {rule: tuple(map(of, both)) for rule, both in learned.items()}


def _ranks(students: Students, learned: Mapping) -> Claim:
  values = _values(students, learned)
  outputs, width = students.feedback.shape[1:]
  ranks = {rule: sorted({int(one) for of in both for one in (of > _ROUNDING * of[:, :1]).sum(1)})
           for rule, both in values.items()}
  bounds = {rule: recurrent.rank_bound(rule, (width, width), outputs) for rule in ranks}
  feedback = np.asarray(students.feedback)
  change = learned['rflo'][1].network.w - np.asarray(students.starts.w)
  inside = np.linalg.pinv(feedback) @ (feedback @ change)
  outside = np.linalg.norm(change - inside) / np.linalg.norm(change)
  return Claim(
      'rank', f'rflo changes W by a matrix of no more rank than there are outputs, {outputs} here, '
      f'within the rows of R; other rules by one of full rank.',
      f'ranks {_named(ranks, [max(one) for one in ranks.values()], "d")} of {width}; of rflo '
      f'{outside:.0e} outside the rows of R', f'{_named(bounds, bounds.values(), "d")}; 0',
      bool(all(one == [bounds[rule]] for rule, one in ranks.items()) and outside < _ROUNDING),
      _spectrum(values), ('index', 'singular value of the change of W'), ('linear', 'log'))


def _spectra(students: Students, learned: Mapping) -> Claim:
  """What is beyond the first o singular values, as a share of all, over networks."""
  values, outputs = _values(students, learned), students.feedback.shape[1]
  beyond = {rule: [of[:, outputs:].sum(1) / of.sum(1) for of in both]
            for rule, both in values.items()}
  order = [[beyond[rule][which].mean() for rule in ('bptt', 'eprop', 'tbptt', 'rflo')]
           for which in range(2)]
  told = lambda which: ', '.join(f'{rule} {of[which].mean():.3f} +- {of[which].std(ddof=1):.3f}'
                                 for rule, of in beyond.items())
  return Claim(
      'spectrum', f'Beyond the first {outputs} singular values the change of W has most under '
      f'bptt, less under eprop, then tbptt and rflo.', told(1), told(0),
      all(first > second for of in order for first, second in zip(of, of[1:])), _spectrum(values),
      ('index', 'singular value of the change of W'), ('linear', 'log'))


def _spectrum(values: Mapping) -> list[Series]:
  """Of the first network, without what is rounding."""
  shown = lambda of: np.where(of > _ROUNDING * of[0], of, np.nan)
  return [Series(rule, 1 + np.arange(theory.shape[1]), shown(theory[0]), shown(nets[0]))
          for rule, (theory, nets) in values.items()]


def _solved(config, courses: Mapping, size: float) -> tuple[np.ndarray, list[str], list[Series]]:
  """How many starts end at a small share of their first loss, of theory and networks [2, rates, 4].

  Returns:
    These, both in words, and what a figure shows.
  """
  rates = sorted(courses[size])
  solved = np.array([[[(one.loss[:, -1] < config.level * one.loss[:, 0]).sum()
                       for one in courses[size][rate][rule]] for rule in RULES] for rate in rates])
  solved = np.moveaxis(solved, -1, 0)  # NaN has solved nothing.
  words = ['; '.join(f'rate {rate:g}: {_named(RULES, of[at], "d")}'
                     for at, rate in enumerate(rates)) for of in solved]
  return solved, words, [Series(f'{rule}, {size:g}', np.asarray(rates),
                                *solved[:, :, at].astype(float)) for at, rule in enumerate(RULES)]


_SHARE_AXES = ('learning rate, for the same time', 'starts that are solved')
_LOCAL = np.array([rule in ('rflo', 'eprop') for rule in RULES])


def _share(config, courses: Mapping) -> Claim:
  size, count = max(config.starts), config.seeds
  solved, words, series = _solved(config, courses, size)
  return Claim(
      'share', f'Of {count} random starts, weights of standard deviation {size:g}, bptt and tbptt '
      f'solve all, rflo and eprop do not, at any learning rate.', words[1], words[0],
      bool((solved[..., ~_LOCAL] == count).all() and (solved[..., _LOCAL] < count).all()), series,
      _SHARE_AXES)


def _small_starts(config, courses: Mapping) -> Claim:
  size, count = min(config.starts), config.seeds
  solved, words, series = _solved(config, courses, size)
  return Claim(
      'small_starts', f'From weights of standard deviation {size:g} all rules solve nine of ten or '
      f'more in small steps; rflo and eprop lose starts to large ones.', words[1], words[0],
      bool((solved[:, 0] >= 0.9 * count).all()
           and (solved[:, -1][:, _LOCAL] < solved[:, 0][:, _LOCAL]).all()), series, _SHARE_AXES)


def _named(rules: Sequence[str] | Mapping, values, form: str = '.3f') -> str:
  return ', '.join(f'{rule} {listed([value], form) if form != "d" else value}'
                   for rule, value in zip(rules, values))
