r"""What jumps in a function, and expectations of it in closed form.

A function that is smooth but at places k, where its derivatives of order j jump by J_kj, is a
smooth one and SUM_kj J_kj p_j(h - k), with the ramps p_j(h) = h^j / j! for h > 0, else 0. Their
moments follow from Stein's identity E u F(u, v) = aa E dF/du + ab E dF/dv, as p_j' = p_{j-1}:
with A_ij = E p_i(u - k) p_j(v - q),

  (i + 1) A_{i+1,j} = -k A_ij + aa A_{i-1,j} + ab A_{i,j-1} ,

p_{-1} being a delta function, so that A_{-1,j} is a density times moments of one Gaussian. A_00 is
the probability of a quadrant, by Owen's T (1956, Ann. Math. Stat. 27):

  P(u > k, v > q) = [Q(x) + Q(y)] / 2 - T(x, a) - T(y, b) - (1/2 if x and y differ in sign) ,
  T(x, a) = INT_0^a exp(-x^2 (1 + t^2) / 2) / (1 + t^2) dt / 2 pi ,

x = k / sqrt(aa), y = q / sqrt(bb), a = (y / x - c) / sqrt(1 - c^2), b likewise. T is that of an
|a| < 1 or follows from it, and there its integrand has no singularity near: Gauss and Legendre's
rule is as exact at c = 1 and -1 as elsewhere.
"""
import math

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.theory.hermite import correlation
from bioprop.typing import Array

# Of each place k the jumps J_k0, J_k1, ...: of the function, of its first derivative, and so on.
Jumps = tuple[tuple[float, tuple[float, ...]], ...]

# Orders that are taken out of a function for a series' sake, by bytes of a number. Each order more
# makes coefficients fall faster by 1 / sqrt(k), and ramps larger, of which rounding is left.
_ORDERS = {4: 4, 8: 7}
_AT_ONCE = 2**20  # Covariances, of each of which some 25 numbers are kept.
_FAR = 1e2  # In standard deviations: beyond, probabilities are 0 and 1.


def orders(jumps: Jumps, dtype: jnp.dtype) -> Jumps:
  """The jumps that are taken out in a dtype: of as few orders as are there, all of one length."""
  most = max((j + 1 for _, sizes in jumps for j, size in enumerate(sizes) if size), default=0)
  most = min(most, _ORDERS[jnp.dtype(dtype).itemsize])
  return tuple((place, (sizes + (0.0,) * most)[:most]) for place, sizes in jumps) if most else ()


def values(jumps: Jumps, h: Array) -> Array:
  """SUM_kj J_kj p_j(h - k), at each entry of h."""
  total = jnp.zeros_like(h)
  for place, sizes in jumps:
    above = jnp.maximum(h - place, 0)
    ramp = (h > place).astype(h.dtype)
    for j, size in enumerate(sizes):
      total = total + size * ramp
      ramp = ramp * above / (j + 1)
  return total


def coefficients(jumps: Jumps, variance: Array, nodes: int) -> Array:
  """Hermite coefficients of the sum, [nodes, ...] for variances [...]."""
  places, sizes = _arrays(jumps, variance.dtype)
  places = places.reshape((-1,) + (1,) * variance.ndim)
  sizes = sizes.reshape(sizes.shape + (1,) * variance.ndim)
  deviation = _deviation(variance)
  x = jnp.clip(places / deviation[None], -_FAR, _FAR)
  root = jnp.exp(-x * x / 4) / (2 * math.pi)**0.25  # Of the density.
  density = root * root
  moments = [_tail(x)]
  below = density * deviation[None]  # The variance times that of p_{-1}.
  for j in range(sizes.shape[1] - 1):
    moments.append((below - places * moments[-1]) / (j + 1))
    below = variance[None] * moments[-2]
  total = lambda ramps: sum(jnp.sum(sizes[:, j] * ramp, 0) for j, ramp in enumerate(ramps))

  def next_term(carry, k):
    # Of p_j it is sqrt(variance / k) times the one before of p_j'; of p_0 a Hermite function.
    ramps, before, newest = carry
    scale = deviation[None] / jnp.sqrt(k)
    first = newest * root / jnp.sqrt(k)
    ramps = [first, *(scale * ramp for ramp in ramps[:-1])]
    after = (x * newest - jnp.sqrt(k - 1) * before) / jnp.sqrt(k)
    return (ramps, newest, after), total(ramps)

  start = (moments, jnp.zeros_like(x), root)
  terms = jax.lax.scan(next_term, start, jnp.arange(1, nodes, dtype=variance.dtype))[1]
  return jnp.concatenate([total(moments)[None], terms])


def product(one: Jumps, other: Jumps, aa: Array, ab: Array, bb: Array) -> Array:
  """E of the one sum at u times the other at v; covariances as of `Activation.dual`."""
  shape = jnp.broadcast_shapes(aa.shape, ab.shape, bb.shape)
  if math.prod(shape) <= _AT_ONCE:
    return _product(one, other, aa, ab, bb)
  moments = (aa, ab, bb)
  long = [a.shape[0] > 1 for a in moments]

  def row(some):
    some = iter(some)
    return _product(one, other, *(next(some)[None] if varies else a
                                  for a, varies in zip(moments, long)))[0]

  rows = max(1, _AT_ONCE * shape[0] // math.prod(shape))
  return jax.lax.map(row, [a for a, varies in zip(moments, long) if varies], batch_size=rows)


def _product(one: Jumps, other: Jumps, aa: Array, ab: Array, bb: Array) -> Array:
  c = correlation(aa, ab, bb)
  places, sizes = zip(*(_arrays(jumps, c.dtype) for jumps in (one, other)))
  pairs = (jnp.repeat(places[0], len(other)), jnp.tile(places[1], len(one)),
           jnp.repeat(sizes[0], len(other), 0), jnp.tile(sizes[1], (len(one), 1)))
  add = lambda total, pair: (total + _pair(*pair, aa, ab, bb, c), None)
  return jax.lax.scan(add, jnp.zeros_like(c), pairs)[0]


def _pair(k: Array, q: Array, first: Array, second: Array, aa: Array, ab: Array, bb: Array,
          c: Array) -> Array:
  """SUM_ij first_i second_j A_ij, for one pair of places."""
  k, q = (one.reshape((1,) * c.ndim) for one in (k, q))
  rest = (1 - c) * (1 + c)
  rows = {-1: _given(k, q, aa, bb, c, rest, len(second))}
  columns = _given(q, k, bb, aa, c, rest, len(first))
  rows[0] = [_quadrant(k, q, aa, bb, c)]
  for j in range(len(second) - 1):
    before = columns[0] if j == 0 else rows[0][j - 1]
    rows[0].append((bb * before + ab * rows[-1][j] - q * rows[0][j]) / (j + 1))
  for i in range(len(first) - 1):
    before = [columns[i], *rows[i]]
    rows[i + 1] = [(aa * rows[i - 1][j] + ab * before[j] - k * rows[i][j]) / (i + 1)
                   for j in range(len(second))]
  return sum((first[i] * second[j]).reshape(k.shape) * rows[i][j]
             for i in range(len(first)) for j in range(len(second)))


def _given(k: Array, q: Array, aa: Array, bb: Array, c: Array, rest: Array,
           count: int) -> list[Array]:
  """A_{-1,j} for j < count: the density of u at k, times E p_j(v - q) given u = k."""
  deviation = _deviation(aa)
  x = jnp.clip(k / deviation, -_FAR, _FAR)
  density = jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi) / deviation
  spread = jnp.sqrt(rest) * _deviation(bb)
  away = x * c * _deviation(bb) - q
  y = jnp.clip(-away / jnp.maximum(spread, _tiny(c)), -_FAR, _FAR)
  # Of one place and u = v, half: what rounding left of the difference would decide for all or none.
  close = (spread == 0) & (jnp.abs(away) <= 8 * float(jnp.finfo(c.dtype).eps) * jnp.abs(q))
  found = [density * jnp.where(close, 0.5, _tail(y))]
  below = density * spread * jnp.exp(-y * y / 2) / math.sqrt(2 * math.pi)
  for j in range(count - 1):
    found.append((below + away * found[-1]) / (j + 1))
    below = spread**2 * found[-2]
  return found


def _quadrant(k: Array, q: Array, aa: Array, bb: Array, c: Array) -> Array:
  """P(u > k, v > q)."""
  x, y = (jnp.clip(place / _deviation(s), -_FAR, _FAR) for place, s in ((k, aa), (q, bb)))
  both = (k == 0) & (q == 0)  # Where y / x is what it is on any ray to 0.
  total = (_tail(x) + _tail(y)) / 2 - _owen(x, y, c, both) - _owen(y, x, c, both)
  return total - ((x <= 0) != (y <= 0)).astype(c.dtype) / 2


def _owen(x: Array, y: Array, c: Array, both: Array) -> Array:
  """T(x, (y / x - c) / sqrt(1 - c^2)), 0 counting as below 0, and 0 / 0 as 1."""
  root = jnp.sqrt((1 - c) * (1 + c))
  # y - c x, exact where it is 0.
  across = jnp.where(c > 0, (y - x) + (1 - c) * x, (y + x) - (1 + c) * x)
  across, along = jnp.where(both, 1 - c, across), jnp.where(both, root, x * root)
  steep = jnp.abs(across) > jnp.abs(along)
  bottom = jnp.where(steep, across, along)
  slope = jnp.abs(jnp.where(steep, along, across) / jnp.where(bottom == 0, 1, bottom))
  sign = jnp.where((x > 0) | both, 1, -1) * jnp.sign(across)
  far = jnp.clip(jnp.abs(across) / jnp.maximum(root, _tiny(c)), 0, _FAR)
  far = jnp.where(both, 0, far)
  size = jnp.abs(x)
  inner = _gauss(jnp.where(steep, far, size), slope)
  near, beyond = _tail(size), _tail(far)
  return sign * jnp.where(steep, (near + beyond) / 2 - near * beyond - inner, inner)


def _gauss(x: Array, a: Array) -> Array:
  """T(x, a) for a in [0, 1]."""
  nodes, weights = np.polynomial.legendre.leggauss(_LEGENDRE[a.dtype.itemsize])
  half, square = x * x / 2, a * a

  def add(total, node):
    one = 1 + square * node[0]
    return total + node[1] * jnp.exp(-half * one) / one, None

  rule = np.stack([((nodes + 1) / 2)**2, weights / 2 / (2 * math.pi)], 1)
  return a * jax.lax.scan(add, jnp.zeros_like(half + square), jnp.asarray(rule, a.dtype))[0]


_LEGENDRE = {4: 10, 8: 22}  # Points, by bytes of a number.


def _arrays(jumps: Jumps, dtype: jnp.dtype) -> tuple[Array, Array]:
  """Places [P], and jumps [P, orders]."""
  places, sizes = zip(*jumps)
  return jnp.asarray(np.asarray(places), dtype), jnp.asarray(np.asarray(sizes), dtype)


def _deviation(variance: Array) -> Array:
  """Of which may be divided."""
  return jnp.sqrt(jnp.maximum(variance, jnp.finfo(variance.dtype).tiny))


def _tiny(a: Array) -> float:
  return float(jnp.finfo(a.dtype).tiny)


def _tail(x: Array) -> Array:
  """P(z > x)."""
  return jax.lax.erfc(x / math.sqrt(2)) / 2
