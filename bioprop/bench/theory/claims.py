"""What is claimed of training at infinite width, as functions of outcomes; see `CLAIMS`.

Numbers of theory and of networks are of the same case, width the largest; a claim agrees if it
holds for both, and they are within its tolerance of each other.
"""
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bioprop.bench.theory.claim import Claim, Series, listed
from bioprop.bench.theory.dynamics import Course, Outcome

Outcomes = Mapping[str, Outcome]
Value = Callable[[Course], np.ndarray]
_TIME = 'time (learning rate x steps)'


def _over_time(outcomes: Outcomes, value: Value) -> list[Series]:
  """One line and its points for each case."""
  return [Series(name, one.times, *one.of(value)) for name, one in outcomes.items()]


def _at(outcomes: Outcomes, value: Value, number: Callable[[np.ndarray, np.ndarray], float]):
  """A number of each case's course: those of networks, those of theory."""
  found = [(one.times, *one.of(value)) for one in outcomes.values()]
  return ([number(times, measured) for times, _, measured, _ in found],
          [number(times, predicted) for times, predicted, _, _ in found])


def _close(measured, predicted, tolerance: float, relative: bool = False) -> bool:
  with np.errstate(invalid='ignore'):  # Of what was never reached; NaN is close to nothing.
    apart = np.abs(np.subtract(measured, predicted))
    return bool((apart <= tolerance * (np.abs(predicted) if relative else 1)).all())


def _last(times, values):
  return values[-1]


def _first(times, values):
  return values[0]


def _reached(level: float):
  """The time at which a falling course has come down to a level, between two steps."""
  def number(times, values):
    below = values <= level
    if not below.any():
      return np.inf
    at = int(below.argmax())
    if not at:
      return times[0]
    share = (values[at - 1] - level) / (values[at - 1] - values[at])
    return times[at - 1] + share * (times[at] - times[at - 1])
  return number


def _monotone(name, text, outcomes, value, number, sign, axis, tolerance, relative=False) -> Claim:
  """A number that rises (sign 1) or falls (-1) from case to case, in the order of the config."""
  measured, predicted = _at(outcomes, value, number)
  holds = all(sign * one < sign * other for values in (measured, predicted)
              for one, other in zip(values, values[1:]))
  agrees = holds and _close(measured, predicted, tolerance, relative)
  return Claim(name, text, listed(measured), listed(predicted), agrees,
               _over_time(outcomes, value), (_TIME, axis))


def outputs_agree(outcomes: Outcomes, y, config) -> Claim:
  """Outputs and kernels of the mean network are those of theory."""
  errors = []
  for value in (lambda course: course.f, lambda course: course.entk):
    pairs = [one.of(value)[:2] for one in outcomes.values()]
    errors.append([np.linalg.norm(measured - predicted) / np.linalg.norm(predicted)
                   for predicted, measured in pairs])
  f, entk = errors
  agrees = _close(f + entk, 0, config.close)
  return Claim(
      'outputs', 'Theory predicts the outputs and the eNTK of wide networks.',
      f'relative error of f {listed(f)}; of K {listed(entk)}', '0', agrees,
      _over_time(outcomes, lambda course: course.mse(y)), (_TIME, 'mean square error'),
      ('linear', 'log'))


def kernels_converge(outcomes: Outcomes, y, config) -> Claim:
  """The distance of a network's kernels from theory falls as the root of width."""
  del y
  series, slopes = [], []
  for name, one in outcomes.items():
    widths = np.asarray(sorted(one.networks), float)
    scale = np.linalg.norm(one.theory.entk)
    apart = lambda course, one=one: np.linalg.norm(course.entk - one.theory.entk)
    # Geometric means: a few networks that are far away would decide others.
    error = np.asarray([np.exp(np.mean([np.log(apart(course) / scale) for course in found]))
                        for _, found in sorted(one.networks.items())])
    slopes.append(np.polyfit(np.log(widths), np.log(error), 1)[0])
    reference = error[0] * (widths / widths[0])**-0.5
    series.append(Series(name, widths, reference, error))
  return Claim(
      'convergence', 'Kernels of networks approach those of theory as N^(-1/2).',
      f'slopes {listed(slopes, ".2f")}', '-0.50', _close(slopes, -0.5, config.slope), series,
      ('width N', 'relative error of the eNTK'), ('log', 'log'))


def feedback_starts_lowest(outcomes: Outcomes, y, config) -> Claim:
  """Before training, feedback alignment's eNTK is the least aligned with the targets."""
  measured, predicted = _at(outcomes, lambda course: course.alignment(y), _first)
  at = [name.startswith('fa') for name in outcomes].index(True)
  rivals = [i for i, name in enumerate(outcomes) if name.split()[0] in ('bp', 'gln')]
  holds = all(values[at] < min(values[i] for i in rivals) for values in (measured, predicted))
  return Claim(
      'alignment_start', 'Feedback alignment starts with a kernel less aligned than those of '
      'backprop and gated linear networks.', _named(outcomes, measured),
      _named(outcomes, predicted), holds and _close(measured, predicted, config.close),
      _over_time(outcomes, lambda course: course.alignment(y)), (_TIME, 'A(K, y y^T)'))


def feedback_overtakes(outcomes: Outcomes, y, config) -> Claim:
  """After training it is better aligned than backprop's."""
  measured, predicted = _at(outcomes, lambda course: course.alignment(y), _last)
  fa, bp = ([name.split()[0] for name in outcomes].index(rule) for rule in ('fa', 'bp'))
  holds = all(values[fa] > values[bp] for values in (measured, predicted))
  return Claim(
      'alignment_end', 'After training, feedback alignment\'s kernel is better aligned than '
      'backprop\'s.', _named(outcomes, measured), _named(outcomes, predicted),
      holds and _close(measured, predicted, config.close),
      _over_time(outcomes, lambda course: course.alignment(y)), (_TIME, 'A(K, y y^T)'))


def hebb_falls(outcomes: Outcomes, y, config) -> Claim:
  """Hebb's kernel does not align with the targets."""
  only = {name: one for name, one in outcomes.items() if name.startswith('hebb')}
  value = lambda course: course.alignment(y)
  ends = [_at(only, value, number) for number in (_first, _last)]
  (start, start_theory), (end, end_theory) = ends
  return Claim(
      'alignment_hebb', 'Hebb\'s kernel loses alignment with the targets.',
      f'{listed(start)} -> {listed(end)}', f'{listed(start_theory)} -> {listed(end_theory)}',
      end < start and end_theory < start_theory
      and _close(start + end, start_theory + end_theory, config.close),
      _over_time(only, value), (_TIME, 'A(K, y y^T)'))


def signals_align(outcomes: Outcomes, y, config) -> Claim:
  """Under feedback alignment the rule's signals come to resemble the true ones."""
  del y
  only = {name: one for name, one in outcomes.items() if name.startswith('fa')}
  value = lambda course: course.correlation
  ends = [_at(only, value, number) for number in (_first, _last)]
  (start, start_theory), (end, end_theory) = ends
  return Claim(
      'signals', 'Under feedback alignment g~ begins unrelated to g and aligns with it.',
      f'{listed(start)} -> {listed(end)}', f'{listed(start_theory)} -> {listed(end_theory)}',
      max(map(abs, start + start_theory)) < 0.1 and min(end + end_theory) > 0.3
      and _close(end, end_theory, config.close),
      _over_time(only, value), (_TIME, 'cosine of g and g~'))


def richer_is_faster(outcomes: Outcomes, y, config) -> Claim:
  """The richer, the sooner the loss is small."""
  return _monotone('faster', f'The larger gamma_0, the sooner the mean square error is '
                   f'{config.level:g}.', outcomes, lambda course: course.mse(y),
                   _reached(config.level), -1, 'mean square error', config.close, True)


def richer_is_aligned(outcomes: Outcomes, y, config) -> Claim:
  """The richer, the more the last layer's kernel is the targets'."""
  return _monotone('aligned', 'The larger gamma_0, the closer A(Phi^L, y y^T) comes to 1.',
                   outcomes, lambda course: course.alignment(y, 'phi'), _last, 1,
                   'A(Phi^L, y y^T)', config.close)


def richer_is_correlated(outcomes: Outcomes, y, config) -> Claim:
  """The richer, the more the rule's signals resemble the true ones."""
  del y
  return _monotone('correlated', 'The larger gamma_0, the larger the cosine of g and g~.',
                   outcomes, lambda course: course.correlation, _last, 1, 'cosine of g and g~',
                   config.close)


def correlated_is_faster(outcomes: Outcomes, y, config) -> Claim:
  """Feedback that knows of the weights learns faster."""
  return _monotone('faster', f'The larger rho, the sooner the mean square error is '
                   f'{config.level:g}.', outcomes, lambda course: course.mse(y),
                   _reached(config.level), -1, 'mean square error', config.close, True)


def correlated_signals(outcomes: Outcomes, y, config) -> Claim:
  """Its signals are more like the true ones."""
  del y
  return _monotone('signals', 'The larger rho, the larger G~.', outcomes,
                   lambda course: course.signals(), _last, 1, 'mean of G~', config.close, True)


def correlated_is_less_aligned(outcomes: Outcomes, y, config) -> Claim:
  """Its kernel moves less towards the targets."""
  return _monotone('aligned', 'The larger rho, the less the eNTK aligns with the targets.',
                   outcomes, lambda course: course.alignment(y), _last, -1, 'A(K, y y^T)',
                   config.close)


def _named(outcomes: Outcomes, values: Sequence[float]) -> str:
  return ', '.join(f'{name.split()[0]} {value:.3f}' for name, value in zip(outcomes, values))


# What claims need of a configuration: rules that are to be among its cases, or several cases.
NEEDS = {
    'feedback_starts_lowest': ('fa', 'bp'), 'feedback_overtakes': ('fa', 'bp'),
    'hebb_falls': ('hebb',), 'signals_align': ('fa',), 'richer_is_faster': 2,
    'richer_is_aligned': 2, 'richer_is_correlated': 2, 'correlated_is_faster': 2,
    'correlated_signals': 2, 'correlated_is_less_aligned': 2}

CLAIMS = {one.__name__: one for one in (
    outputs_agree, kernels_converge, feedback_starts_lowest, feedback_overtakes, hebb_falls,
    signals_align, richer_is_faster, richer_is_aligned, richer_is_correlated, correlated_is_faster,
    correlated_signals, correlated_is_less_aligned)}
