"""Makes an activation of a function, recognised by its values: closed forms where there are any."""
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory import hermite
from bioprop.theory import jumps as closed
from bioprop.theory.activations import (
    Activation,
    Cos,
    Erf,
    Function,
    Linear,
    Quadrature,
    ReLU,
    Sin,
)
from bioprop.theory.piecewise import Affine, Piecewise
from bioprop.theory.places import REACH, ROUNDED, Smooth, decimal, smooth

_NODES = (16, 40, 80, 160, 320, 640, 1280)
_TAKEN = (7, 6, 5, 4)  # Orders of jumps.
_ACCURACY, _LEAST = 5e-9, 1e-6  # What is aimed at, and what has to be reached at variance 1.
_VARIANCES = (0.04, 1.0, 4.0, 16.0)  # At which sums are tried, the largest that they aim at last.


def activation_of(function: Function) -> Activation:
  """Makes an activation of a function of each entry of an array.

  Functions that are linear, ReLUs with any slopes, erf, sin or cos, whatever constants they are
  scaled or shifted by, get closed forms; others that are smooth a `Quadrature`, and those that are
  smooth between some places a `Piecewise`, with so many terms that expectations are within 1e-8 of
  the largest at variances up to 16, or 1280.

  Args:
    function: a JAX function of each entry of an array, with two derivatives in forward mode.

  Returns:
    The activation; the same for the same function.

  Raises:
    TheoryError: if it is not finite, grows so fast that it has no expectations, is not smooth
      between at most 16 places, or bends too fast for 1280 terms at a variance of 1.
  """
  try:
    return _activation_of(function)
  except TypeError:  # Of functions that cannot be hashed.
    return _activation_of.__wrapped__(function)


def shape_of(function: Function) -> Smooth:
  """Where a function is smooth, and where it is not; errors as of `activation_of`."""
  name = name_of(function)
  shape = smooth(function, name)
  _check_growth(shape, name)
  return shape


def name_of(function: Function) -> str:
  """For messages."""
  return getattr(function, '__name__', repr(function))


@functools.lru_cache(maxsize=64)
def _activation_of(function):
  shape = shape_of(function)
  for candidate in (_linear, _relu, _wave, _erf):
    found = candidate(shape)
    if found is not None and _is(found, shape):
      return found
  rough = Piecewise(function, shape.jumps) if shape.jumps else Quadrature(function)
  return _with_nodes(rough, shape, name_of(function))


def _check_growth(shape: Smooth, name: str) -> None:
  """Refuses what has no variance where the argument's is 16."""
  outer, inner = REACH, 0.6 * REACH
  ends = np.abs(shape.values(np.array([-outer, outer, -inner, inner]))).max(0).reshape(2, 2)
  growth = np.log(np.maximum(ends[0], 1e-300) / np.maximum(ends[1], 1e-300)).max()
  if growth > (outer**2 - inner**2) / 64:
    raise TheoryError(
        f'phi={name} grows by e^{growth:.3g} from |h|={inner:g} to |h|={outer:g}, and functions '
        f'that grow as exp(h**2 / 64) or faster have no variance where pre-activations are large. '
        f'Take one that grows no faster than exp(h), for instance phi=lambda h: f(jnp.clip(h, -5, '
        f'5)).')


def _with(inner: Activation, rate: float, scale: float, shift: float) -> Activation:
  shift = 0.0 if abs(shift) <= ROUNDED * abs(scale) else shift
  rate, scale, shift = map(decimal, (rate, scale, shift))
  if (rate, scale, shift) == (1.0, 1.0, 0.0):
    return inner
  return Affine(inner, rate, scale, shift)


_GRID = np.linspace(-4.013, 4.027, 240)


def _linear(shape: Smooth) -> Activation | None:
  if shape.jumps:
    return None
  (value,), (slope,), _ = shape.values(np.zeros(1))
  return _with(Linear(), 1.0, slope, value)


def _relu(shape: Smooth) -> Activation | None:
  if len(shape.jumps) != 1 or shape.jumps[0][0] != 0 or shape.jumps[0][1][0]:
    return None
  value, (below, above), _ = shape.values(np.array([-1.0, 1.0]))
  if above == 0:
    return None
  shift = value[1] - above
  inner = ReLU(slope=decimal(below / above), scale=decimal(above))
  return _with(inner, 1.0, 1.0, shift)


def _wave(shape: Smooth) -> Activation | None:
  """phi'' = -rate^2 (phi - shift), for sines and cosines."""
  if shape.jumps:
    return None
  value, _, second = shape.values(_GRID)
  fit = np.linalg.lstsq(np.stack([value, np.ones_like(value)], 1), second)[0]
  if not fit[0] < 0:
    return None
  rate = math.sqrt(-fit[0])
  shift = -fit[1] / fit[0]
  (value,), (slope,), _ = shape.values(np.zeros(1))
  sine, cosine = slope / rate, value - shift
  if abs(cosine) < 1e-9 * abs(sine):
    return _with(Sin(decimal(rate)), 1.0, sine, shift)
  return _with(Cos(decimal(rate)), 1.0, cosine, shift)


def _erf(shape: Smooth) -> Activation | None:
  """phi'' = -2 rate^2 h phi'."""
  if shape.jumps:
    return None
  _, slope, second = shape.values(_GRID)
  size = np.sum(np.square(_GRID * slope))
  ratio = -np.sum(second * _GRID * slope) / size if size else 0.0
  if not ratio > 0:
    return None
  rate = math.sqrt(ratio / 2)
  (value,), (slope,), _ = shape.values(np.zeros(1))
  return _with(Erf(), rate, slope * math.sqrt(math.pi) / 2 / rate, value)


def _is(found: Activation, shape: Smooth) -> bool:
  """Whether values and slopes are the function's, near 0 and far from it."""
  points = np.concatenate([_GRID, np.linspace(-61.03, 59.07, 97)])
  want = shape.values(points)[:2]
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    got = np.stack([np.asarray(f(jnp.asarray(points))) for f in (found, found.derivative)])
  near = np.abs(want).max(1, keepdims=True)
  return bool(np.all(np.abs(got - want) <= ROUNDED * np.maximum(near, 1e-300)))


def _with_nodes(rough: Quadrature | Piecewise, shape: Smooth, name: str) -> Activation:
  """With the fewest terms whose sums are the integrals, at v = u and v = -u.

  Of the orders in which derivatives jump, so many are taken out as leave the least error: of more
  of them ramps are larger, and so is what rounding leaves.
  """
  best, least = rough, np.full(len(_VARIANCES), np.inf)
  for orders in _TAKEN if shape.jumps else (0,):
    taken = tuple((place, sizes[:orders + 1]) for place, sizes in shape.jumps)
    found = dataclasses.replace(rough, jumps=taken) if taken else rough
    nodes, worst = _nodes(found, shape)
    if worst[:-1].max() < least[:-1].max() or worst.max() <= _ACCURACY:  # The largest comes last.
      best, least = dataclasses.replace(found, nodes=nodes), worst
    if least.max() <= max(_ACCURACY, 10 * shape.noise):
      break
  if least[1] > max(_LEAST, 10 * shape.noise):
    raise TheoryError(
        f'the expectations of phi={name} are sums whose error, at {_NODES[-1]} terms and a '
        f'variance of 1, is {least[1]:.2g} of their value: phi bends too fast. Take a function '
        f'that changes over distances of 0.05 or more, or one whose kinks are sharp.')
  return best


def _nodes(found: Quadrature | Piecewise, shape: Smooth) -> tuple[int, np.ndarray]:
  """How many terms are enough, or the most; and the errors at each variance."""
  kinds = [closed.orders(part.jumps, np.float64) for part in (found.parts, found.slopes)]
  want, size, rounded = _integrals(shape, kinds)  # Of phi and phi', at both ends.
  size = np.maximum(size, 1e-3 * size[:, [1]])[:, None]
  size = np.where(size > 0, size, 1)
  ramps = [_ramps(jumps) for jumps in kinds]
  for nodes in _NODES:
    errors = (np.abs(_sums(shape, kinds, ramps, nodes) - want) + rounded[:, None]) / size
    worst = np.where(np.isfinite(errors), errors, np.inf).max((0, 1))
    if worst.max() <= max(_ACCURACY, 10 * shape.noise):
      break
  return nodes, worst


def _ramps(jumps: closed.Jumps) -> np.ndarray:
  """Their coefficients [variances, most nodes]."""
  if not jumps:
    return np.zeros((len(_VARIANCES), _NODES[-1]))
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    return np.asarray(closed.coefficients(jumps, jnp.asarray(_VARIANCES), _NODES[-1])).T


def _jumping(kinds: list[closed.Jumps], h: np.ndarray) -> np.ndarray:
  """What jumps in phi and phi', [2, ...]."""
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    return np.stack([closed.values(jumps, jnp.asarray(h)) for jumps in kinds])


def _sums(shape: Smooth, kinds: list[closed.Jumps], ramps: list[np.ndarray],
          nodes: int) -> np.ndarray:
  """The series of bioprop/theory/parts.py, at c = 1 and -1."""
  points, table = hermite.rule(nodes)
  h = np.clip(np.sqrt(_VARIANCES)[:, None] * points, -REACH, REACH)  # Beyond, weights are nothing.
  rest = (shape.values(h)[:2] - _jumping(kinds, h)) @ table
  taken = np.stack(ramps)[..., :nodes]
  terms = rest * (rest + 2 * taken)
  signs = np.stack([np.ones(nodes), (-1.0)**np.arange(nodes)])
  return np.einsum('fvk,ek->fev', terms, signs)


def _integrals(shape: Smooth, kinds: list[closed.Jumps]) -> tuple[np.ndarray, ...]:
  """The same by Gauss and Legendre's rule on short intervals; E phi^2, E phi'^2; rounding."""
  nodes, weights = np.polynomial.legendre.leggauss(24)
  grid = np.concatenate([shape.edges, -shape.edges, np.arange(-REACH, REACH, 0.25)])
  edges = np.unique(np.clip(grid, -REACH, REACH))
  low, high = edges[:-1, None], edges[1:, None]
  h = ((low + high) / 2 + (high - low) / 2 * nodes).ravel()
  measure = ((high - low) / 2 * weights).ravel()
  density = np.stack([np.exp(-h**2 / 2 / s) / math.sqrt(2 * math.pi * s) for s in _VARIANCES])
  whole = lambda products: products @ (density * measure).T
  values, turned = shape.values(h)[:2], shape.values(-h)[:2]
  ramps, mirrored = _jumping(kinds, h), _jumping(kinds, -h)
  squares = np.stack([values**2 - ramps**2, values * turned - ramps * mirrored], 1)
  sizes = [tuple((place, tuple(map(abs, one))) for place, one in jumps) for jumps in kinds]
  rounding = 4 * np.finfo(np.float64).eps * _jumping(sizes, h)**2
  return whole(squares), whole(values**2), whole(rounding)
