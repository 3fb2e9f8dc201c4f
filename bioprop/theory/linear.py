r"""Mean-field theory of deep linear networks: closed equations, no sampling.

With phi(h) = h all fields are Gaussian, and the averages of bioprop/theory/march.py can be taken by
hand (Bordelon & Pehlevan 2023, arXiv 2210.02157, section 4 and appendix E). In steps of size eta:

fa (dfa: rho = 0; both have the same kernels), explicit and causal, with vectors over samples,

  a^0 = 0 ,  H^0 = K^x ,  a^{l+1}(t) = rho a^l(t) + eta SUM_{s<t} H^l(t, s) Delta(s) ,  f = a^{L+1}
  H^l(t, s) = H^{l-1}(t, s) + gamma_0^2 a^l(t) a^l(s)^T
  G~^{L+1} = 1 ,  G~^l(t) = rho G~^{l+1}(t) + gamma_0^2 [SUM_{k>l} G~^k(t)] q^l(t) ,
  q^l(t) = eta SUM_{s<t} Delta(s) . a^l(s) ,

so that H^l(t, s) = K^x + gamma_0^2 SUM_{k<=l} a^k(t) a^k(s)^T needs no past but that of q and of
eta SUM Delta: the cost is O(T (P^2 + L P)).

bp, of each layer h = u + C z and z = r + D h with matrices over (mu, t),

  C = a^{l-1} + gamma_0 eta 1[s<t] H^{l-1} Delta ,  D = b^l + gamma_0 eta 1[s<t] G^{l+1} Delta
  a^l = dh / dr = (1 - C D)^-1 C ,  b^{l-1} = dz / du = (1 - D C)^-1 D
  H^l = (1 - C D)^-1 H^{l-1} (1 - C D)^-T + a^l G^{l+1} a^lT ,  G^l the same with C and D exchanged
  f = eta SUM_{s<t} H^L Delta + a^L 1 / gamma_0 ,

which is iterated until nothing changes.

hebb, h = R u with R^l = (1 - gamma_0 eta 1[s<t] H^{l-1} Delta^2)^-1, which is marched in t as Delta
depends on what came before (an iteration over whole trajectories diverges); then downwards

  Q^l = b^l + gamma_0 eta 1[s<t] G~^{l+1} Delta ,  G~^l = Q^l H^l Delta ,  b^{l-1} = Q^l R^l .

NumPy in float64 computes all this, whatever JAX's precision is.
"""
import numpy as np

from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory import checks
from bioprop.theory.solution import Solution
from bioprop.typing import Array

RULES = ('bp', 'fa', 'dfa', 'hebb')


def solve_linear(
    x: Array,
    targets: Array,
    *,
    depth: int,
    gamma0: float,
    learning_rate: float,
    steps: int,
    rule: str = 'bp',
    rho: float = 0.0,
    tolerance: float = 1e-9,
    iterations: int = 500,
    max_gib: float = 4.0,
) -> Solution:
  """Solves the mean-field equations of a deep linear network with one output, on SUM (f - y)^2 / 2.

  Args:
    x: inputs [P, D].
    targets: y [P].
    depth: hidden layers, L.
    gamma0: richness, positive.
    learning_rate: eta; the network's is eta gamma_0^2 N.
    steps: T, the number of times, the first before training.
    rule: 'bp', 'fa', 'dfa', 'hebb', or 'align_prop' (fa with rho = 1). Of gln see `solve_dmft`.
    rho: correlation of fa's feedback with the initial weights, in [0, 1].
    tolerance: of bp: the largest change of an iteration, relative to the kernels, at the end.
    iterations: of bp: how many may be needed.
    max_gib: largest memory that may be used, in GiB: O(L (T P)^2).

  Returns:
    The solution. It has `g` and all responses under bp alone: the equations of fa and dfa leave out
    the true signals and their response b, and those of hebb leave out g.

  Raises:
    TheoryError: if an argument is out of range, the memory does not suffice, or training diverges.
    ConvergenceError: if bp's iterations do not arrive.
  """
  x = checks.inputs(x, 'x').astype(np.float64)
  y = checks.targets(targets, len(x))
  rule, rho, depth, steps, gamma0, learning_rate = checks.training(
      RULES, rule, rho, depth, steps, gamma0, learning_rate)
  iterations = checks.whole('iterations', iterations, 1)
  tolerance, max_gib = (checks.positive('tolerance', tolerance),
                        checks.positive('max_gib', max_gib))
  arrays = {'bp': 12 * depth + 20, 'hebb': 6 * depth + 8}.get(rule, 3 * depth)
  count = 8 * (steps * len(x))**2 * arrays
  if count > max_gib * 2**30:
    raise TheoryError(f'{steps} times of {len(x)} samples in {depth} layers need '
                      f'{count / 2**30:.3g} GiB, and max_gib allows {max_gib:g}. Take fewer steps, '
                      f'steps={steps // 2}, or say max_gib={int(count / 2**30) + 1}.')
  kx, scale = x @ x.T / x.shape[1], gamma0 * learning_rate
  if rule == 'bp':
    found = _backprop(kx, y, depth, gamma0, scale, steps, tolerance, iterations)
  elif rule == 'hebb':
    found = _hebb(kx, y, depth, gamma0, scale, steps)
  else:
    found = _feedback(rule, kx, y, depth, gamma0, learning_rate, steps, rho)
  f, phi, g, g_pseudo, pseudo, responses, error = found
  equal = lambda kernel: np.einsum('ltmtn->ltmn', kernel)
  below = np.concatenate([np.broadcast_to(kx, (1, steps, *kx.shape)), equal(phi)])
  above = np.concatenate([equal(g_pseudo), np.ones((1, steps, *kx.shape))])
  return Solution(
      rule=rule, gamma0=gamma0, rho=rho, learning_rate=learning_rate, trained=len(y), f=f,
      delta=y - f, entk=(below * above).sum(0), kernel_times=np.arange(steps),
      between=None, phi=phi, g=g, g_pseudo=g_pseudo, pseudo=pseudo,
      responses=responses, error={'f': error, 'entk': error}, converged=True)


def _feedback(rule, kx, y, depth, gamma0, eta, steps, rho):
  """The explicit equations of feedback alignment."""
  size = len(y)
  a = np.zeros((depth + 2, steps, size))
  signals = np.ones((depth + 2, steps))  # G~^l at [layer].
  summed, q = np.zeros(size), np.zeros(depth + 1)
  for t in range(steps):
    moved, below = kx @ summed, np.zeros(size)
    for layer in range(depth + 1):  # `below` is gamma_0^2 SUM_{k<=layer} a^k(t) q^k(t).
      below = below + gamma0**2 * a[layer, t] * q[layer]
      a[layer + 1, t] = rho * a[layer, t] + moved + below
    for layer in range(depth, 0, -1):
      later = signals[layer + 1:, t].sum()
      signals[layer, t] = rho * signals[layer + 1, t] + gamma0**2 * later * q[layer]
    delta = y - a[-1, t]
    checks.growth(rule, gamma0, eta, y - a[-1, :t + 1])
    summed = summed + eta * delta
    q = q + eta * a[:-1, t] @ delta
  phi, total = [], np.broadcast_to(kx[None, :, None], (steps, size, steps, size))
  for layer in range(1, depth + 1):
    total = total + gamma0**2 * np.multiply.outer(a[layer], a[layer])
    phi.append(total)
  shape = (depth, steps, size, steps, size)
  g_pseudo = np.broadcast_to(signals[1:-1, :, None, None, None], shape)
  return a[-1], np.stack(phi), None, g_pseudo, np.broadcast_to(1.0, shape), {}, 0.0


def _backprop(kx, y, depth, gamma0, scale, steps, tolerance, iterations):
  """The fixed point of gradient descent."""
  size = len(y)
  # Errors of an iteration at early times grow at later ones: these are begun when the former are
  # right, on kernels that stay what they were.
  state, horizon = None, min(4, steps)
  while True:
    state = _extended(state, kx, depth, horizon)
    state, change = _iterated(state, y, gamma0, scale, tolerance, iterations)
    if change > tolerance:
      break
    if horizon == steps:
      f, h, g, a, b = state
      shaped = lambda kernels: kernels.reshape(-1, steps, size, steps, size)
      checks.growth('bp', gamma0, scale / gamma0, y - f.reshape(steps, size))
      responses = {'a': shaped(a[1:-1]), 'b': shaped(b[1:-1])} if depth > 1 else {}
      signals = shaped(g[:-1])
      return f.reshape(steps, size), shaped(h[1:]), signals, signals, signals, responses, change
    horizon = min(steps, 2 * horizon)
  raise ConvergenceError(
      f'the equations of bp at gamma0={gamma0:g} and learning_rate={scale / gamma0:g} are not '
      f'solved after {iterations} iterations of the first {horizon} steps. Either training itself '
      f'diverges, and learning_rate={scale / gamma0 / 4:g} will do, or more are needed: '
      f'iterations={4 * iterations}.')


def _extended(state, kx, depth, steps):
  """f, H^0 ... H^L, G^1 ... G^{L+1}, a^0 ... a^L and b^0 ... b^L over more steps."""
  size = len(kx)
  if state is None:
    kernel = np.kron(np.ones((steps, steps)), kx)
    zero = np.zeros((depth + 1, *kernel.shape))
    return (np.zeros(len(kernel)), np.broadcast_to(kernel, zero.shape).copy(), zero + 1, zero,
            zero.copy())
  f, *kernels = state
  known = len(f) // size
  more = (0, steps - known)
  grown = [np.pad(one.reshape(depth + 1, known, size, known, size),
                  ((0, 0), more, (0, 0), more, (0, 0)), mode).reshape(
                      depth + 1, steps * size, steps * size)
           for one, mode in zip(kernels, ('edge', 'edge', 'constant', 'constant'))]
  return np.pad(f.reshape(known, size), (more, (0, 0)), 'edge').ravel(), *grown


def _iterated(state, y, gamma0, scale, tolerance, iterations):
  """The state after as many iterations as are needed, and the change of the last of them."""
  f, h, g, a, b = state = [one.copy() for one in state]
  size, depth = len(y), len(h) - 1
  steps, eye = len(f) // size, np.eye(len(f))
  earlier = np.kron(np.tri(steps, k=-1), np.ones((size, size)))
  change = np.inf
  with np.errstate(over='ignore', invalid='ignore'):
    for _ in range(iterations):
      before = f, h.copy(), g.copy()
      gate = scale * earlier * (np.tile(y, steps) - f)
      try:
        for layer in range(1, depth + 1):
          c, d = _fields(state, gate, layer)
          h[layer], a[layer] = _through(eye, c, d, h[layer - 1], g[layer])
        for layer in range(depth, 0, -1):
          c, d = _fields(state, gate, layer)
          g[layer - 1], b[layer - 1] = _through(eye, d, c, g[layer], h[layer - 1])
      except np.linalg.LinAlgError:  # Entries so large that 1 is lost beside them.
        return (f, h, g, a, b), np.inf
      f = ((gate * h[depth]).sum(1) + a[depth].sum(1)) / gamma0
      largest = max(float(np.abs(one).max()) for one in (f, h, g))
      if not largest < 1e100:
        return (f, h, g, a, b), np.inf
      change = max(float(np.abs(one - old).max()) for one, old in zip((f, h, g), before)) / largest
      if change <= tolerance:
        break
  return (f, h, g, a, b), change


def _fields(state, gate, layer):
  """C and D of a layer."""
  _, h, g, a, b = state
  return a[layer - 1] + gate * h[layer - 1], b[layer] + gate * g[layer]


def _through(eye, c, d, own, other):
  """The kernel and the response of a field (1 - C D)^-1 (u + C r), u and r with kernels."""
  solved = np.linalg.solve(eye - c @ d, np.concatenate([eye, c], 1))
  left, right = solved[:, :len(eye)], solved[:, len(eye):]
  return left @ own @ left.T + right @ other @ right.T, right


def _hebb(kx, y, depth, gamma0, scale, steps):
  """The march of error-modulated Hebbian learning."""
  size, entries = len(y), steps * len(y)
  h = np.zeros((depth + 1, entries, entries))
  h[0] = np.kron(np.ones((steps, steps)), kx)
  r = np.broadcast_to(np.eye(entries), (depth + 1, entries, entries)).copy()
  delta = np.zeros(entries)
  for t in range(steps):
    now, past = slice(t * size, (t + 1) * size), slice(0, t * size)
    until = slice(0, (t + 1) * size)
    for layer in range(1, depth + 1):
      r[layer, now, past] = scale * h[layer - 1, now, past] * delta[past]**2 @ r[layer, past, past]
      rows = r[layer, now, until] @ h[layer - 1, until, until] @ r[layer, until, until].T
      h[layer, now, until], h[layer, until, now] = rows, rows.T
    f = scale / gamma0 * h[depth, now, past] @ delta[past]
    delta[now] = y - f
    checks.growth('hebb', gamma0, scale / gamma0, delta[until].reshape(-1, size))
  earlier = np.kron(np.tri(steps, k=-1), np.ones((size, size)))
  above, b = np.ones((entries, entries)), np.zeros((depth + 1, entries, entries))
  signals = []
  for layer in range(depth, 0, -1):
    q = b[layer] + scale * earlier * above * delta
    above = q @ h[layer] * delta
    b[layer - 1] = q @ r[layer]
    signals.insert(0, above)
  shaped = lambda kernels: np.asarray(kernels).reshape(-1, steps, size, steps, size)
  f, phi = (np.tile(y, steps) - delta).reshape(steps, size), shaped(h[1:])
  pseudo = delta[:, None] * h[1:] * delta
  responses = {'b': shaped(b[1:depth])} if depth > 1 else {}
  return f, phi, None, shaped(signals), shaped(pseudo), responses, 0.0
