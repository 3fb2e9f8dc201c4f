r"""What gradient flow guarantees under feedback alignment.

After Robertson & Koyejo 2023 (arXiv 2306.01870). A chain of layers with things of degree k between
them, as in bioprop/measure/invariants.py, keeps

  Q_l = (|W_l|^2 + |b_l|^2) / (2 k) - <W_{l+1}, B_{l+1}>                     (theorem 1)

constant whatever the loss. Squares are no less than zero, so that <W_{l+1}(t), B_{l+1}> >= -Q_l(0)
at all times: feedback that starts with Q_l < 0 stays aligned with the weights. `aligned` gives such
a start, `alignment_bound` says what any start guarantees. SGD with a small rate adds to Q_l what
`bioprop.measure.discrete_drift` says, and lowers the bound by as much.

Alignment decides what a two-layer linear network f = X W_1 W_2 with one output learns from the loss
|X W_1 W_2 - y|^2 / 2 (theorem 2). With res = X W_1 W_2 - y,

  dW_1/dt = - X^T res B^T ,   dW_2/dt = - W_1^T X^T res ,
  d(|res|^2 / 2)/dt = - (B^T W_2) |X^T res|^2 - |W_1^T X^T res|^2 ,

and |X^T res|^2 >= lambda_min(X X^T) |res|^2, so that res falls at least as fast as exp(-r t), with
r = min_t <B, W_2> lambda_min(X X^T): see `rate_bound`. Rows of X must be independent. All updates
of the columns of W_1 lie in the span of the rows of X. If its columns start there (W_1 = 0 does),
W_1 W_2 ends in that span with X W_1 W_2 = y: it is `minimum_norm`. It does not suffice that
W_1(0) W_2(0) lies there: W_2 changes, and what columns of W_1 have outside the span then shows.
"""
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bioprop.errors import TheoryError
from bioprop.theory import checks
from bioprop.typing import Array

Biases = Sequence[Array | None] | None


class Guarantee(NamedTuple):
  """What a start guarantees of layers 2, ..., L; see `alignment_bound`.

  Attributes:
    bound: [L-1], no more than <W_l(t), B_l> at any time.
    holds: [L-1], whether it is above zero.
  """
  bound: Array
  holds: Array


class Start(NamedTuple):
  """Weights that stay aligned with their feedback; see `aligned`.

  Attributes:
    weights: W_1, ..., W_L.
    feedback: None, B_2, ..., B_L.
    biases: of each layer, or None.
  """
  weights: list[Array]
  feedback: list[Array | None]
  biases: list[Array | None]


class LinearFlow(NamedTuple):
  """What a two-layer linear network did; see `two_layer_linear`.

  Attributes:
    residual: [steps + 1], |X W_1 W_2 - y| from the start on.
    inner: [steps + 1], <B, W_2>.
    w1, w2: [d, m] and [m, 1], the weights at the end.
    w: [d, 1], their product.
  """
  residual: Array
  inner: Array
  w1: Array
  w2: Array
  w: Array


def alignment_bound(weights: Sequence[Array], feedback: Sequence[Array | None],
                    biases: Biases = None, degree: float | Sequence[float] = 1) -> Guarantee:
  """Computes below what <W, B> never falls: <W_{l+1}, B_{l+1}> - (|W_l|^2 + |b_l|^2) / (2 k).

  Args:
    weights: W_1, ..., W_L at the start, from the first layer up, L >= 2.
    feedback: B_1, ..., B_L, each shaped like its W; B_1 is not used and may be None.
    biases: of each layer, or None.
    degree: k, or that of what follows each layer but the last: [L-1].

  Returns:
    The bounds under gradient flow, and whether they are positive.

  Raises:
    TheoryError: if feedback, biases or degrees are not those of the weights.
  """
  weights, biases, degrees = _checked(weights, biases, degree)
  shapes, there = ([None if a is None else jnp.shape(a) for a in arrays]
                   for arrays in (weights, feedback))
  if shapes[1:] != there[1:]:
    raise TheoryError(
        f'the feedback has shapes {there}, and the weights {shapes}: <W, B> is bounded where B is '
        f'shaped like W, as under feedback alignment. Give [None, B_2, ..., B_L].')
  bound = jnp.stack([
      jnp.sum(jnp.multiply(after, back)) - _squares(w, b) / (2 * k)
      for w, b, k, after, back in zip(weights, biases, degrees, weights[1:], feedback[1:])])
  return Guarantee(bound, bound > 0)


def aligned(weights: Sequence[Array], biases: Biases = None,
            degree: float | Sequence[float] = 1) -> Start:
  """Makes a start from which <W_{l+1}(t), B_{l+1}> >= |B_{l+1}|^2 / 2 at all times.

  B_{l+1} = W_{l+1}(0) and |W_l(0)| <= |W_{l+1}(0)| suffice (Robertson & Koyejo 2023), with biases
  and a degree |W_l|^2 + |b_l|^2 <= k |W_{l+1}|^2. The last layer stays as it is. From there down,
  each weight with its bias is multiplied by min(1, sqrt(k) |W_{l+1}| / sqrt(|W_l|^2 + |b_l|^2)): it
  is never made larger. Where the readout is narrow that is a great deal: of LeCun's weights, |W_l|
  about the square root of the width, 800 units below 10 are divided by 9.

  Args:
    weights: W_1, ..., W_L from the first layer up, L >= 2.
    biases: of each layer, or None.
    degree: k, or that of what follows each layer but the last: [L-1].

  Returns:
    The scaled weights and biases, and feedback that equals them.

  Raises:
    TheoryError: if a layer above the first is zero, or biases or degrees are not the weights'.
  """
  ws, bs, degrees = _checked(weights, biases, degree)
  for at in range(len(ws) - 2, -1, -1):
    above = float(_squares(ws[at + 1], None))
    if not above > 0:
      raise TheoryError(
          f'the weights of layer {at + 2} of {len(ws)} have |W|^2 = {above:g}: feedback that is '
          f'equal to them sends nothing, and no scale of the layer below makes them align. Start '
          f'it otherwise, for instance kernel_init=nn.initializers.lecun_normal().')
    own = float(_squares(ws[at], bs[at]))
    factor = min(1.0, math.sqrt(degrees[at] * above / own)) if own else 1.0
    ws[at], bs[at] = (None if a is None else a * jnp.asarray(factor, a.dtype)
                      for a in (ws[at], bs[at]))
  return Start(ws, [None, *(jnp.array(w) for w in ws[1:])], bs)


def minimum_norm(x: Array, y: Array) -> np.ndarray:
  """Solves X w = y by the smallest w, in least squares where there is no solution.

  Args:
    x: [n, d].
    y: [n] or [n, C].

  Returns:
    w [d] or [d, C] in float64, by singular values in NumPy whatever JAX's precision is.

  Raises:
    TheoryError: if the shapes do not match.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y):
    raise TheoryError(f'X of shape {x.shape} and y of shape {y.shape} are no system of '
                      f'equations: give X [n, d] and y [n] or [n, C], one row for each sample.')
  if not np.isfinite(x).all() or not np.isfinite(y).all():
    raise TheoryError('X or y has entries that are infinite or NaN, and such equations have no '
                      'solution. Give finite ones, or leave these samples out.')
  return np.linalg.lstsq(x, y, rcond=None)[0]


def rate_bound(x: Array, inner: Array) -> float:
  """Computes r = min_t <B, W_2> lambda_min(X X^T): |res(t)| <= exp(-r t) |res(0)| (theorem 2).

  Args:
    x: X [n, d].
    inner: <B, W_2> over time, as `two_layer_linear` gives it; or its bound of `alignment_bound`.

  Returns:
    r, in units of one over the time of gradient flow (steps times learning rate).

  Raises:
    TheoryError: if the theorem does not hold: rows of X depend on each other, or <B, W_2> is not
      positive at all times.
  """
  x, inner = checks.inputs(x, 'x'), np.asarray(inner)
  if len(x) > x.shape[1]:
    raise TheoryError(
        f'X has shape {x.shape}, and the theorem is about samples [n, d] whose rows are '
        f'linearly independent, n <= d: with more samples than inputs residuals need not vanish. '
        f'Give fewer samples, X[:X.shape[1]], or more inputs.')
  singular = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
  if not singular[-1] > x.shape[1] * np.finfo(x.dtype).eps * singular[0]:
    raise TheoryError(
        f'the rows of X depend on each other: its singular values go from {singular[0]:.3g} down '
        f'to {singular[-1]:.3g}, so that lambda_min(X X^T) is zero and the theorem gives no rate. '
        f'Leave out samples that are combinations of others: np.linalg.matrix_rank(X) remain.')
  lowest = float(np.min(inner)) if inner.size else math.nan
  if not lowest > 0:
    raise TheoryError(
        f'<B, W_2> falls to {lowest:.3g}, and the theorem needs it to be positive at all times. '
        f'Start from W_2 = B and |W_1| <= |W_2|: flows.aligned([w1, w2]).')
  return lowest * float(singular[-1])**2


def two_layer_linear(x: Array, y: Array, w1: Array, w2: Array, b: Array, learning_rate: float,
                     steps: int) -> LinearFlow:
  """Trains f = X W_1 W_2 by feedback alignment: full batches, loss |f - y|^2 / 2.

  Gradient flow in steps of Euler: W_1 -= rate X^T res B^T, W_2 -= rate W_1^T X^T res.

  Args:
    x: X [n, d].
    y: [n, 1].
    w1: W_1 [d, m] at the start. Theorem 2 needs its columns in the span of the rows of X, such as
      zeros or X^T A; see above.
    w2: W_2 [m, 1] at the start.
    b: B [m, 1].
    learning_rate: of a step; steps times it is the time of gradient flow.
    steps: how many.

  Returns:
    Residuals and <B, W_2> over time, and the weights at the end.

  Raises:
    TheoryError: if shapes do not match, or the steps are too large to follow the flow.
  """
  shapes = [jnp.shape(a) for a in (x, y, w1, w2, b)]
  if len(shapes[0]) != 2 or len(shapes[2]) != 2 or shapes != [
      shapes[0], (shapes[0][0], 1), (shapes[0][1], shapes[2][1]), *[(shapes[2][1], 1)] * 2]:
    raise TheoryError(
        f'x, y, w1, w2 and b have shapes {", ".join(map(str, shapes))}, and are to be [n, d], '
        f'[n, 1], [d, m], [m, 1] and [m, 1]: one output, weights [in, out]. For vectors y and b '
        f'give y[:, None] and b[:, None].')
  learning_rate = checks.positive('learning_rate', learning_rate)
  steps = checks.whole('steps', steps, 1)
  x = jnp.asarray(checks.inputs(x, 'x'))
  others = (jnp.asarray(np.asarray(a), x.dtype) for a in (y, w1, w2, b))
  flow = _two_layer_linear(x, *others, learning_rate, steps)
  first, last = float(flow.residual[0]), float(flow.residual[-1])
  if not last <= checks.GROWTH * first:
    raise TheoryError(f'with steps of {learning_rate:g} the residual went from {first:.3g} to '
                      f'{last:.3g}: they do not follow the flow. Give '
                      f'learning_rate={learning_rate / 10:g}.')
  return flow


@functools.partial(jax.jit, static_argnames='steps')
@jax.default_matmul_precision('highest')  # Accelerators would multiply float32 with 10 bits.
def _two_layer_linear(x, y, w1, w2, b, learning_rate, steps) -> LinearFlow:
  def measured(w1, w2):
    res = x @ (w1 @ w2) - y
    return res, (jnp.linalg.norm(res), jnp.sum(b * w2))

  def step(weights, _):
    w1, w2 = weights
    res, seen = measured(w1, w2)
    back = x.T @ res
    return (w1 - learning_rate * back @ b.T, w2 - learning_rate * w1.T @ back), seen

  (w1, w2), seen = jax.lax.scan(step, (w1, w2), length=steps)
  residual, inner = (jnp.append(of, last) for of, last in zip(seen, measured(w1, w2)[1]))
  return LinearFlow(residual, inner, w1, w2, w1 @ w2)


def _squares(w: Array, b: Array | None) -> Array:
  """|W|^2 + |b|^2, in no less than float32."""
  full = lambda a: jnp.sum(jnp.square(a.astype(np.promote_types(a.dtype, np.float32))))
  return full(w) if b is None else full(w) + full(b)


def _checked(weights, biases, degree) -> tuple[list, list, list[float]]:
  """The weights and biases as lists of arrays, and the degrees, one for each layer but the last."""
  if len(weights) < 2:
    raise TheoryError(f'{len(weights)} weights were given, and what stays aligned is a layer above '
                      f'another. Give two or more, from the first layer up: [W_1, W_2].')
  biases = [None] * len(weights) if biases is None else list(biases)
  degrees = [degree] * (len(weights) - 1) if np.ndim(degree) == 0 else degree
  degrees = [float(k) for k in degrees]
  if len(biases) != len(weights) or len(degrees) != len(weights) - 1:
    raise TheoryError(
        f'{len(biases)} biases and {len(degrees)} degrees were given for {len(weights)} layers: '
        f'give a bias for each, None where there is none, and a degree for each but the last.')
  if not all(k > 0 for k in degrees):
    raise TheoryError(f'the degrees are {degrees}, and things of degree k <= 0, such as '
                      f'normalisation, let no layer stay aligned. Give degree=1 for ReLU.')
  arrays = lambda given: [None if a is None else jnp.asarray(a) for a in given]
  return arrays(weights), arrays(biases), degrees
