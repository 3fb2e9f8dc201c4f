"""Single modes of linear recurrent networks beside the library's rules; see recurrent.py.

A network of one unit is one mode. Its matrices are numbers, and many are trained side by side.
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bioprop.bench.theory import recurrent_networks as networks
from bioprop.bench.theory.claim import Claim, Field, Series, listed
from bioprop.theory import recurrent
from bioprop.theory.recurrent import Mode, Network

RULES = ('bptt', 'tbptt', 'rflo', 'eprop')
TIME = 'time (learning rate x updates)'
# Feedback of single modes, and readouts at which they are looked at.
_FEEDBACK = 1.0
_READOUTS = np.geomspace(0.35, 3.0, 9)
_OFF = 1e-3  # How far from the manifold decays begin.
_STEP = 1e-5  # Of central differences.
_WIDTH = 2.4  # Of the plane of a and b that is drawn.


def claims(config, cases: Mapping) -> list[Claim]:
  """All claims of modes."""
  logging.info('single modes')
  return [_learning(config, cases), _manifolds(config, cases), _stability(config, cases),
          _rates(config, cases), _detour(config, cases)]


def _scalars(mode: Mode) -> Network:
  """Modes [...] as networks of one unit, matrices [..., 1, 1]."""
  return Network(*(jnp.asarray(one, jnp.float64)[..., None, None] for one in mode))


def _first(config) -> Mode:
  """The mode that single ones learn."""
  return Mode(*map(float, config.modes[0]))


def _train(config, case: Mapping, start: Mode, feedback, teacher: Mode, rate: float, updates: int,
           every: int = 1, sampled: int = 0) -> tuple[np.ndarray, Mode]:
  """Losses [S, updates + 1] and modes [S, ..] of plugged networks of one unit."""
  start = _scalars(Mode(*np.broadcast_arrays(*start)))
  back = jnp.broadcast_to(jnp.asarray(feedback, jnp.float64)[..., None, None], start.a.shape)
  found = networks.train(networks.plugged(case, start), start, back, _scalars(teacher),
                         horizon=max(config.horizons), learning_rate=rate, updates=updates,
                         every=every, sampled=sampled)
  return found.loss, Mode(*(one[..., 0, 0] for one in found.course))


def _flow(config, case: Mapping, states: Mode, feedback, teachers: Mode) -> np.ndarray:
  """What the plugged rule does to modes, [3, ...]: minus its gradients."""
  rule = networks.plugged(case, _scalars(Mode(0.0, 0.0, 0.0)))
  x = jnp.asarray(networks.impulses(max(config.horizons), 1))
  arrays = np.broadcast_arrays(*states, feedback, *teachers)
  shape, flat = arrays[0].shape, [jnp.asarray(one, jnp.float64).reshape(-1, 1, 1) for one in arrays]
  one = lambda a, b, w, r, a_, b_, w_: rule(Network(a, b, w), r, Network(a_, b_, w_), x)[1]
  return -np.stack(jax.jit(jax.vmap(one))(*flat)).reshape(3, *shape)


def _jacobian(config, case: Mapping, states: Mode, feedback, teachers: Mode) -> np.ndarray:
  """Of that flow, [..., 3, 3], by central differences."""
  states = np.stack(np.broadcast_arrays(*states))
  # All of them at once, [2, 3, ...]: each call would be compiled by itself.
  moves = np.multiply.outer(_STEP * np.array([1, -1]), np.eye(3))
  moved = moves.reshape(2, 3, 3, *[1] * (states.ndim - 1)) + states
  ahead, behind = np.moveaxis(
      _flow(config, case, Mode(*np.moveaxis(moved, 2, 0)), feedback, teachers), 1, 0)
  return np.moveaxis((ahead - behind) / (2 * _STEP), (0, 1), (-2, -1))


def _trace_determinant(jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The determinant: of what is across the zero eigenvalue, the sum of principal minors."""
  trace = np.trace(jacobian, axis1=-2, axis2=-1)
  squared = np.trace(jacobian @ jacobian, axis1=-2, axis2=-1)
  return trace, (trace**2 - squared) / 2


def _learning(config, cases: Mapping) -> Claim:
  """All modes of an aligned student, each by itself, in expectation and by samples."""
  rng = np.random.RandomState(config.data_seed)
  count, rate, updates = len(config.modes), config.learning_rate, config.steps // 4
  teacher = Mode(*np.asarray(config.modes, float).T)
  start = Mode(*rng.uniform(0.1, 0.6, (2, count)), rng.uniform(-0.1, 0.3, count))
  feedback = rng.uniform(0.5, 1.5, count)
  diagonal = lambda mode: Network(*(jnp.diag(jnp.asarray(one)) for one in mode))
  expected = jax.jit(jax.vmap(jax.vmap(
      lambda one: recurrent.network_loss(one, diagonal(teacher), max(config.horizons)))))
  every = max(1, updates // 60)
  updates -= updates % every
  series, apart = [], []
  for name, sampled in [*((rule, 0) for rule in cases), ('rflo', 64)]:
    case = cases[name]
    seeds = 3 if sampled else 1
    stacked = Network(*(jnp.stack([one] * seeds) for one in diagonal(start)))
    back = jnp.stack([jnp.diag(jnp.asarray(feedback))] * seeds)
    nets = networks.train(
        networks.plugged(case, stacked), stacked, back, diagonal(teacher),
        horizon=max(config.horizons), learning_rate=rate, updates=updates, every=every,
        sampled=sampled)
    times = rate * np.arange(0, updates + 1, every)
    found = recurrent.trajectory(name, start, teacher, times, **networks.options(case, feedback))
    # Of samples, too, the expected loss: of what they have led to.
    loss = np.asarray(expected(nets.course))
    predicted = found.loss.sum(1)
    apart.append(np.abs(loss.mean(0) - predicted).max() / predicted[0])
    series.append(Series(f'{name}, {sampled} samples' if sampled else name, times, predicted,
                         loss.mean(0), loss.std(0, ddof=1) if sampled else None))
  return Claim(
      'modes', 'Ordinary differential equations of modes predict the loss of networks aligned with '
      'their teacher.', 'largest difference, relative to the first loss: '
      + ', '.join(f'{one.label} {off:.3f}' for one, off in zip(series, apart)), '0',
      bool(np.max(apart) <= config.close), series, (TIME, 'loss'), ('linear', 'log'))


def _manifolds(config, cases: Mapping) -> Claim:
  """Rest on the manifold, and at a = b = 0, and the flow in the plane w = w*."""
  teacher = _first(config)
  c = teacher.a * teacher.b
  s = np.concatenate([-_READOUTS[::-1], _READOUTS])
  at, origin = recurrent.manifold(teacher, s), Mode(0.0, 0.0, np.linspace(-0.5, 0.5, 5))
  rest = {rule: np.abs(_flow(config, case, at, _FEEDBACK, teacher)).max()
          for rule, case in cases.items()}
  moved = {rule: np.abs(_flow(config, case, origin, _FEEDBACK, teacher)).max(0)
           for rule, case in cases.items()}
  saddles, wanted = [], []
  for rule in ('bptt', 'tbptt'):
    values = np.linalg.eigvals(_jacobian(config, cases[rule], origin, _FEEDBACK, teacher))
    saddles.append(np.sort(values.real, -1))
    told = networks.options(cases[rule], _FEEDBACK)
    wanted.append(recurrent.saddle(rule, teacher, origin.w, **told))
  leak = cases['rflo'].get('leak', 0.0)
  push = {'rflo': np.abs(_FEEDBACK * c / (1 - leak * teacher.w) + 0 * origin.w),
          'eprop': np.abs(_FEEDBACK * c / (1 - origin.w * teacher.w))}
  agrees = (max(rest.values()) < 1e-5 and max(moved[rule].max() for rule in ('bptt', 'tbptt')) == 0
            and np.allclose(saddles, wanted, atol=1e-5)
            and all(np.allclose(moved[rule], push[rule], rtol=1e-5) for rule in push))
  told = lambda values: f'{-values[0][-1][0]:.3f}, {-values[1][-1][0]:.3f}'
  return Claim(
      'manifolds', 'All rules are at rest where the student is the teacher. bptt and tbptt are at '
      'a = b = 0 as well, which is a saddle; rflo and eprop with fixed feedback are not.',
      f'largest update on the manifold {max(rest.values()):.0e}; at a = b = 0, '
      f'w = {origin.w[-1]:g} of bptt and tbptt {max(moved["bptt"][-1], moved["tbptt"][-1]):.0f}, '
      f'with eigenvalues +- {told(saddles)}; rflo {moved["rflo"][-1]:.3f}, '
      f'eprop {moved["eprop"][-1]:.3f}',
      f'0; 0, +- {told(wanted)}; {push["rflo"][-1]:.3f}, {push["eprop"][-1]:.3f}',
      bool(agrees), (), ('a', 'b'), fields=[_field(config, rule, case, teacher)
                                             for rule, case in cases.items()])


def _field(config, rule: str, case: Mapping, teacher: Mode) -> Field:
  """A slice of the flow at w = w*, and trajectories from w = w* / 2, as they look from above."""
  axis = np.linspace(-_WIDTH, _WIDTH, 25)
  a, b = np.meshgrid(axis, axis)
  told = networks.options(case, _FEEDBACK)
  flow = recurrent.mode_flow(rule, Mode(a, b, teacher.w), teacher, **told)
  s = np.concatenate([np.linspace(-_WIDTH, -0.2, 50), [np.nan], np.linspace(0.2, _WIDTH, 50)])
  series = [Series('a b = a* b*', s, teacher.a * teacher.b / s, None)]
  starts = Mode(np.array([0.3, -1.5, -0.5, 1.5]), np.array([-0.2, 0.5, -1.5, -0.8]),
                np.full(4, teacher.w / 2))
  rate, every = config.learning_rate, 20
  updates = min(config.steps, round(12 / rate)) // every * every
  times = rate * np.arange(0, updates + 1, every)
  _, nets = _train(config, case, starts, _FEEDBACK, teacher, rate, updates, every)
  paths = recurrent.trajectory(rule, starts, teacher, times, **told).modes
  series += [Series(f'from {starts.a[at]:g}, {starts.b[at]:g}', paths.a[:, at], paths.b[:, at],
                    nets.b[at], measured_x=nets.a[at]) for at in range(4)]
  return Field(networks.label(case), axis, axis, np.stack(flow[:2]), series)


def _stability(config, cases: Mapping) -> Claim:
  """At random points on the manifolds of random teachers; T steps suffice for their w*."""
  rng = np.random.RandomState(config.data_seed)
  count = config.points
  teachers = Mode(*rng.randn(2, count), rng.uniform(-0.7, 0.7, count))
  s, feedback, case = rng.randn(count), rng.randn(count), cases['rflo']
  found = recurrent.linearised('rflo', teachers, s, **networks.options(case, feedback))
  at = recurrent.manifold(teachers, s)
  trace, determinant = _trace_determinant(_jacobian(config, case, at, feedback, teachers))
  stable, same = (trace < 0) & (determinant > 0), feedback * s > 0
  product = np.linspace(-2, 2, 41)
  one = _first(config)
  told = lambda values: recurrent.linearised('rflo', one, 1.0, **networks.options(case, values))
  points = product[::4][product[::4] != 0]
  seen = _jacobian(config, case, recurrent.manifold(one, np.ones_like(points)), points, one)
  across = np.sort(np.linalg.eigvals(seen).real, -1)
  # Of three the one nearest to zero is along the manifold.
  rate = np.array([-np.delete(of, np.abs(of).argmin()).max() for of in across])
  numbers = lambda of: (f'{(of & same).sum()} of {same.sum()} with a positive product, '
                        f'{(of & ~same).sum()} of {(~same).sum()} with a negative one')
  return Claim(
      'stability', 'The solution is stable under rflo where feedback and readout have the same '
      'sign, and but for rare exceptions nowhere else.', f'stable: {numbers(stable)}',
      numbers(found.stable),
      bool((stable == found.stable).mean() > 0.999 and stable[same].mean() > 0.999
           and stable[~same].mean() < 0.02
           and np.allclose(rate, told(points).rate, rtol=config.close)),
      [Series('rflo at a = 1', product, told(product).rate, rate, measured_x=points)],
      ('feedback x readout', 'rate at which the solution attracts'))


def _rates(config, cases: Mapping) -> Claim:
  """Decays of the loss from close to the manifold, over the readout s."""
  teacher, rate = _first(config), config.learning_rate / 4
  updates = round(15 / rate)
  at = recurrent.manifold(teacher, _READOUTS)
  start = Mode(at.a + _OFF, at.b, at.w - _OFF)
  fine = np.geomspace(_READOUTS[0], _READOUTS[-1], 100)
  series, apart, lines, seen = [], [], {}, {}
  for rule, case in cases.items():
    loss, _ = _train(config, case, start, _FEEDBACK, teacher, rate, updates, updates)
    told = networks.options(case, _FEEDBACK)
    lines[rule] = recurrent.linearised(rule, teacher, fine, **told).rate
    seen[rule] = np.array([_decay(one, rate) for one in loss])
    wanted = recurrent.linearised(rule, teacher, _READOUTS, **told).rate
    apart.append(np.abs(seen[rule] / wanted - 1))
    series.append(Series(rule, fine, lines[rule], seen[rule], measured_x=_READOUTS))
  slowest = [fine[lines['bptt'].argmin()], _READOUTS[seen['bptt'].argmin()]]
  middle = np.sqrt(abs(teacher.a * teacher.b))
  holds = all(of['rflo'][0] > of['bptt'][0] and of['rflo'][-1] < of['bptt'][-1]
              for of in (lines, seen))
  return Claim(
      'rates', 'bptt is slowest in the middle of the manifold, where s^2 is c*; rflo is faster '
      'than it at small s and slower at large s.',
      f'bptt slowest at {slowest[1]:.2f}; rates at s = {_READOUTS[0]:g} and {_READOUTS[-1]:g}: '
      + '; '.join(f'{rule} {listed(of[[0, -1]], ".2f")}' for rule, of in seen.items()),
      f'{middle:.2f}; ' + '; '.join(f'{rule} {listed(of[[0, -1]], ".2f")}'
                                    for rule, of in lines.items()),
      bool(holds and np.abs(np.log(np.array(slowest) / middle)).max() < 0.2
           and np.max(apart) <= config.close), series,
      ('readout s', 'rate of the slowest decay'), ('log', 'log'))


def _decay(loss: np.ndarray, rate: float) -> float:
  """The eigenvalue of the flow that steps of Euler with this loss have, from its late decay."""
  if not np.isfinite(loss).all():
    return np.nan
  late = np.flatnonzero((loss < 1e-6 * loss[0]) & (loss > 1e-20 * loss[0]))
  late = late if len(late) > 10 else np.arange(len(loss) // 2, len(loss))
  slope = np.polyfit(late, np.log(loss[late]) / 2, 1)[0]
  return (1 - np.exp(slope)) / rate


def _detour(config, cases: Mapping) -> Claim:
  """From beside the teacher's own values, with feedback of the other sign."""
  teacher, case, rate = _first(config), cases['rflo'], config.learning_rate
  start = Mode(teacher.a, teacher.b, teacher.w - _OFF)
  feedback, every = -_FEEDBACK * np.sign(teacher.a), 25
  updates = config.steps // 4 // every * every
  times = rate * np.arange(0, updates + 1, every)
  path = recurrent.trajectory('rflo', start, teacher, times,
                              **networks.options(case, feedback)).modes
  loss, nets = _train(config, case, Mode(*(np.array([one]) for one in start)), feedback, teacher,
                      rate, updates, every)
  ends = [[one[0, -1] for one in nets], [one[-1] for one in path]]
  apart = np.abs(np.array([one[0] for one in nets]) - np.array(path))
  turned = all(np.sign(end[0]) == -np.sign(teacher.a) for end in ends)
  return Claim(
      'detour', 'From the teacher\'s own values, with feedback of the other sign, rflo leaves for '
      'the other branch of the manifold.', f'ends at {listed(ends[0], ".2f")}, loss '
      f'{loss[0, -1]:.0e}', f'{listed(ends[1], ".2f")}',
      bool(turned and loss[0, -1] < 1e-8 and apart[:, -1].max() <= config.close),
      [Series(name, times, line, points[0])
       for name, line, points in zip(Mode._fields, path, nets)], (TIME, 'a, b, w'))
