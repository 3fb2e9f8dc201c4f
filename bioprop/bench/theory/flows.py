"""What gradient flow under feedback alignment guarantees, beside networks trained in small steps.

Robertson & Koyejo 2023 (arXiv 2306.01870). The library's networks follow the library's rule by
plain SGD on all samples at once, on SUM (f - y)^2 / 2, in float64; inputs have norm 1.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bioprop import measure, theory
from bioprop.bench.theory import dynamics
from bioprop.bench.theory.claim import Claim, Series, listed
from bioprop.errors import ConfigError
from bioprop.fronts.plug import plug
from bioprop.models import MLP
from bioprop.probes.aligned import aligned_init as plug_aligned
from bioprop.rules import make

_TIME = 'time (learning rate x steps)'
_STARTS = ('zero', 'in the span', 'generic')


class Course(NamedTuple):
  """One training of a chain of L layers, over T steps; before each, and of layers l = 1, ..., L-1.

  Attributes:
    invariant: Q_l, [T, L-1].
    drift: what one step adds to it, [T, L-1].
    half: |W_l|^2 / 2, [T, L-1].
    inner: <W_{l+1}, B_{l+1}>, [T, L-1].
    cosine: of these two, [T, L-1].
  """
  invariant: np.ndarray
  drift: np.ndarray
  half: np.ndarray
  inner: np.ndarray
  cosine: np.ndarray

  def moved(self, which: str) -> np.ndarray:
    """By how much the layers' largest has moved, [T]."""
    values = getattr(self, which)
    return np.abs(values - values[0]).max(1)


class Fit(NamedTuple):
  """One training of a two-layer linear network.

  Attributes:
    residual: |f - y|, [T].
    inner: <B, W_2>, [T].
    distance: of what it has learned to the solution of minimum norm, relative, [T].
    outside: the norm of (W_1(0) W_2)'s part outside the span of the inputs, as relative, [T].
  """
  residual: np.ndarray
  inner: np.ndarray
  distance: np.ndarray
  outside: np.ndarray


def conservation(config) -> list[Claim]:
  """Claims of theorem 1. A case is an activation and a learning rate, all for the same time.

  Raises:
    ConfigError: if there are not relu and tanh, at several rates each.
  """
  cases = [dict(case) for case in config.cases]
  names = [case.get('activation') for case in cases]
  if set(names) != {'relu', 'tanh'} or min(map(names.count, ('relu', 'tanh'))) < 2:
    raise ConfigError('relu is compared with tanh here, at several learning rates each: set '
                      'config.cases to {\'activation\': \'relu\', \'learning_rate\': 0.01} and '
                      'others such.')
  with jax.enable_x64(True):
    courses = {(case['activation'], case['learning_rate']): _courses(config, case)
               for case in cases}
    smallest = min((case for case in cases if case['activation'] == 'relu'),
                   key=lambda case: case['learning_rate'])
    starts = {'aligned': _courses(config, smallest, aligned=True),
              'independent': courses['relu', smallest['learning_rate']]}
  courses = {at: found[0] for at, found in courses.items()}
  times = smallest['learning_rate'] * np.arange(_steps(config, smallest))
  return [_conserved(config, courses), _identity(courses), _not_conserved(config, courses),
          _bounded(config, times, starts['aligned']), _cosines(times, starts)]


def minimum_norm(config) -> list[Claim]:
  """Claims of theorem 2. A case is a start of W_1: 'zero', 'in the span' or 'generic'.

  Raises:
    ConfigError: if these are not the cases.
  """
  if sorted(case.get('start', '') for case in config.cases) != sorted(_STARTS):
    raise ConfigError(f'the cases of minimum_norm are starts of W_1, compared with each other: set '
                      f'config.cases to {{\'start\': ...}} of each of {", ".join(_STARTS)}.')
  with jax.enable_x64(True):
    x, _ = _data(config)
    fits = {case['start']: _fits(config, case['start']) for case in config.cases}
    times = config.learning_rate * np.arange(config.steps)
    return [_distance(times, fits), _rate(times, x, fits)]


def _data(config) -> tuple[jax.Array, jax.Array]:
  x, y = (jnp.asarray(a, jnp.float64) for a in dynamics.data(config))
  return x / np.sqrt(config.features), y[:, None]


def _plugged(config, activation, depth) -> tuple[Any, list[Mapping]]:
  """A network under feedback alignment, and its variables, as they are drawn in float32."""
  model = plug(MLP(classes=1, hidden=(max(config.widths),) * depth, activation=activation,
                           use_bias=False), make('fa', scale=1.0))
  blank = jnp.zeros((1, config.features), jnp.float32)
  return model, [model.init(jax.random.key(seed), blank) for seed in range(config.seeds)]


def _double(variables: Mapping) -> Mapping:
  return jax.tree.map(lambda a: a.astype(jnp.float64), variables)


def _layers(tree: Mapping) -> list:
  """The weights, or the feedback, from the first layer up; None where there is none."""
  return [tree[f'Dense_{at}'].get('kernel') for at in range(len(tree))]


def _trainer(model, data, rate, steps, measured) -> Callable[[Mapping], Any]:
  """Maps variables to what `measured` makes of them, and of what a step adds, before each step."""
  x, y = data

  def loss(params, feedback):
    return jnp.sum(jnp.square(model.apply({'params': params, 'feedback': feedback}, x) - y)) / 2

  @jax.jit
  def train(variables):
    feedback = variables['feedback']

    def step(params, _):
      updates = jax.tree.map(lambda g: -rate * g, jax.grad(loss)(params, feedback))
      return jax.tree.map(jnp.add, params, updates), measured(params, feedback, updates)

    return jax.lax.scan(step, variables['params'], length=steps)[1]

  return lambda variables: jax.tree.map(np.asarray, train(variables))


def _steps(config, case) -> int:
  """As many as take the time that config.steps at config.learning_rate do."""
  return round(config.steps * config.learning_rate / case['learning_rate'])


def _courses(config, case, aligned=False) -> list[Course]:
  """Trains chains from the library's own starts, or from those that stay aligned."""
  activation, rate = case['activation'], case['learning_rate']
  logging.info('%s, rate %g: %d networks', activation, rate, config.seeds)
  data = _data(config)
  model, starts = _plugged(config, activation, config.depth)
  if aligned:
    starts = [plug_aligned(model, variables, data[0].astype(jnp.float32))
              for variables in starts]
  train = _trainer(model, data, rate, _steps(config, case), _measured)
  return [train(_double(variables)) for variables in starts]


def _measured(params, feedback, updates) -> Course:
  weights, back, squares = _layers(params), _layers(feedback), lambda a: jnp.sum(jnp.square(a))
  pairs = list(zip(weights[1:], back[1:]))
  inner = [jnp.sum(w * b) for w, b in pairs]
  cosine = [of / jnp.sqrt(squares(w) * squares(b)) for of, (w, b) in zip(inner, pairs)]
  return Course(*map(jnp.stack, (
      measure.fa_invariant(weights, back), measure.discrete_drift(_layers(updates)),
      [squares(w) / 2 for w in weights[:-1]], inner, cosine)))


def _of(courses: Mapping, activation: str) -> tuple[np.ndarray, list[Course]]:
  """Rates, from the smallest, and their courses."""
  rates = sorted(rate for name, rate in courses if name == activation)
  return np.asarray(rates), [courses[activation, rate] for rate in rates]


def _conserved(config, courses) -> Claim:
  rates, found = _of(courses, 'relu')
  moved = np.asarray([one.moved('invariant').max() for one in found])
  half = np.asarray([one.moved('half').max() for one in found])
  # Half of eta^2 SUM |G|^2 is the rate times an integral, which the smallest steps give best.
  line = rates * found[0].drift.sum(0).max() / rates[0]
  slope = np.polyfit(np.log(rates), np.log(moved), 1)[0]
  return Claim(
      'conserved', 'In ReLU networks Q_l, half the squared norm of W_l less <W_(l+1), B_(l+1)>, '
      'changes as the learning rate, and by far less than that norm.',
      f'slope {slope:.2f}; largest change {listed(moved, ".1e")}, of the norm {listed(half)}',
      f'slope 1.00; {listed(line, ".1e")}',
      bool(abs(slope - 1) <= config.slope and half[0] > 20 * moved[0]),
      [Series('Q, ReLU', rates, line, moved), Series('|W|^2/2, ReLU', rates, None, half)],
      ('learning rate', 'largest change'), ('log', 'log'))


def _identity(courses) -> Claim:
  """At the largest rate, where there is the most to account for."""
  rates, found = _of(courses, 'relu')
  course = found[-1]
  changed = course.invariant[1:] - course.invariant[0]
  summed = np.cumsum(course.drift, 0)[:-1]
  residual = np.abs(changed - summed).max()
  times = rates[-1] * np.arange(1, len(course.invariant))
  return Claim(
      'identity', 'Q(n) - Q(0) is the sum over the steps of what discrete_drift says, at any rate.',
      f'residual {residual:.0e} of {np.abs(changed).max():.1e}', '0 (to rounding)',
      bool(residual < 1e-12 * np.abs(course.invariant).max()),
      [Series(f'layer {at + 1}', times, summed[:, at], changed[:, at])
       for at in range(changed.shape[1])],
      (f'{_TIME}, rate {rates[-1]:g}', 'Q(t) - Q(0)'))


def _not_conserved(config, courses) -> Claim:
  """What the size of the steps adds is taken off."""
  series, moved = [], {}
  for activation in ('tanh', 'relu'):
    rates, found = _of(courses, activation)
    of_flow = [one.invariant[1:] - one.invariant[0] - np.cumsum(one.drift, 0)[:-1]
               for one in found]
    moved[activation] = np.asarray([np.abs(changed).max() for changed in of_flow])
    times = rates[0] * np.arange(1, len(found[0].invariant))
    series.append(Series(activation, times, None if activation == 'tanh' else 0 * times,
                         np.abs(of_flow[0]).max(1)))
  tanh, relu = moved['tanh'], moved['relu']
  return Claim(
      'tanh', 'Networks of tanh units do not conserve it, and smaller steps do not help: taken off '
      'is what discrete_drift says.',
      f'largest change {listed(tanh)}; of ReLU {listed(relu, ".0e")}',
      'the same at all rates; 0 of ReLU',
      bool(np.ptp(tanh) <= config.close * tanh.min() and relu.max() < 1e-6 * tanh.min()),
      series, (_TIME, 'largest change of Q, less the drift'))


def _bounded(config, times, aligned: Sequence[Course]) -> Claim:
  """All in units of |B|^2, which <W, B> is at the start."""
  ratios = np.stack([one.inner / one.inner[0] for one in aligned])
  expected = np.stack([1 + (one.half - one.half[0]) / one.inner[0] for one in aligned])
  bounds = np.stack([-one.invariant[0] / one.inner[0] for one in aligned])
  apart = np.abs(ratios - expected).max()
  series = [Series(f'layer {at + 2}', times, expected[:, :, at].mean(0), ratios[:, :, at].mean(0),
                   ratios[:, :, at].std(0, ddof=1)) for at in range(ratios.shape[2])]
  series.append(Series('bound', times, np.full(len(times), bounds.min()), None))
  return Claim(
      'bound', 'From theory.aligned_init <W_(l+1), B_(l+1)> follows half the squared norm of W_l, '
      'and is at least half of what it was.',
      f'at least {ratios.min():.3f}; {apart:.0e} from theory',
      f'at least {bounds.min():.3f}',
      bool((ratios >= bounds[:, None]).all() and bounds.min() >= 0.5 - 1e-6
           and apart <= config.close), series, (_TIME, '<W, B> / |B|^2'))


def _cosines(times, starts: Mapping[str, Sequence[Course]]) -> Claim:
  found = {name: np.stack([one.cosine for one in of]) for name, of in starts.items()}
  series = [Series(name, times, None, cosine.mean((0, 2)), cosine.std((0, 2)))
            for name, cosine in found.items()]
  # <W, B> over |W| |B|, the first at its bound.
  least = np.stack([-one.invariant[0] * one.cosine / one.inner for one in starts['aligned']])
  series.insert(0, Series('bound of aligned', times, least.mean((0, 2)), None))
  aligned, other = found['aligned'], found['independent'].mean((0, 2))
  first = found['independent'][:, 0]
  return Claim(
      'cosine', 'From theory.aligned_init the cosine of W and B stays high; from independent '
      'feedback it begins at 0.',
      f'aligned: at least {aligned.min():.3f}; independent: {other[0]:.3f} -> {other[-1]:.3f}',
      f'aligned: at least {least.min():.3f}; independent: 0 at the start',
      bool((aligned >= least).all() and aligned.min() > max(0.5, other.max())
           and abs(first.mean()) < 3 * first.std() / np.sqrt(first.size)),
      series, (_TIME, 'cosine of W and B'))


def _fits(config, start) -> list[Fit]:
  """Trains two linear layers from W_2 = B and a W_1 no larger than it."""
  logging.info('W_1 %s: %d networks', start, config.seeds)
  x, y = data = _data(config)
  model, starts = _plugged(config, dynamics.ACTIVATIONS['linear'][1], 1)
  span = np.linalg.svd(np.asarray(x), full_matrices=False)[2]
  inside = lambda w: span.T @ (span @ w)
  smallest = theory.flows.minimum_norm(x, y)
  relative = lambda w: jnp.linalg.norm(w) / np.linalg.norm(smallest)

  def measured(params, feedback, _):
    (w1, w2), b = _layers(params), _layers(feedback)[1]
    # No update of W_1 leaves the span.
    outside = (w1 - inside(w1)) @ w2
    return Fit(jnp.linalg.norm(x @ (w1 @ w2) - y), jnp.sum(b * w2),
               relative(w1 @ w2 - smallest), relative(outside))

  def started(variables):
    w1, w2 = _layers(variables['params'])
    w1 = {'zero': jnp.zeros_like, 'in the span': inside, 'generic': lambda w: w}[start](w1)
    w1 = 0.9 * w1 * jnp.linalg.norm(w2) / max(jnp.linalg.norm(w1), 1e-9)
    kernels = {'Dense_0': {'kernel': w1}, 'Dense_1': {'kernel': w2}}
    return {'params': kernels, 'feedback': {**variables['feedback'], 'Dense_1': {'kernel': w2}}}

  train = _trainer(model, data, config.learning_rate, config.steps, measured)
  return [train(started(_double(variables))) for variables in starts]


def _distance(times, fits: Mapping[str, Sequence[Fit]]) -> Claim:
  ends = {name: [one.distance[-1] for one in of] for name, of in fits.items()}
  expected = [one.outside[-1] for one in fits['generic']]
  series = [Series(f'W_1(0) {name}', times,
                   np.full(len(times), of[0].outside[-1]) if name == 'generic' else None,
                   of[0].distance) for name, of in fits.items()]
  return Claim(
      'distance', 'Feedback alignment finds the solution of minimum norm if the columns of W_1(0) '
      'lie in the span of the inputs; if not, it keeps their part outside, times W_2.',
      '; '.join(f'{name} {max(of):.0e}' if name != 'generic' else f'{name} {listed(of)}'
                for name, of in ends.items()),
      f'0; 0; {listed(expected)}',
      bool(max(max(ends[name]) for name in ends if name != 'generic') < 1e-8
           and min(ends['generic']) > 0.05 and np.allclose(ends['generic'], expected, rtol=1e-6)),
      series, (_TIME, 'relative distance to minimum norm'), ('linear', 'log'))


def _rate(times, x, fits: Mapping[str, Sequence[Fit]]) -> Claim:
  """Residuals are fitted as long as they are more than rounding."""
  series, found, bounds = [], [], []
  holds = True
  for name, of in fits.items():
    rates = []
    for one in of:
      bound = theory.flows.rate_bound(x, one.inner)
      line, real = one.residual[0] * np.exp(-bound * times), one.residual > 1e-9 * one.residual[0]
      holds &= bool((one.residual <= line * (1 + 1e-9))[real].all())
      last = int(np.flatnonzero(real)[-1])
      rates.append((np.log(one.residual[0] / one.residual[last]) / times[last], bound))
      if one is of[0]:
        series.append(Series(f'W_1(0) {name}', times, line, one.residual))
    found.append(min(rate for rate, _ in rates))
    bounds.append(max(rate for _, rate in rates))
    holds &= all(rate >= bound for rate, bound in rates)
  return Claim(
      'rate', 'The residual falls at least as fast as exp(-r t), r = min <B, W_2> '
      'lambda_min(X X^T).', f'rates {listed(found)}', f'at least {listed(bounds)}', holds, series,
      (_TIME, '|f - y|'), ('linear', 'log'))
