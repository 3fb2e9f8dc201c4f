"""Linear networks: two-layer equations, known limits, networks by NumPy."""
import numpy as np
import pytest

from bioprop import theory
from bioprop.errors import TheoryError

DRAWN = np.random.RandomState(1)
X, Y = DRAWN.randn(4, 12), np.array([1.0, -1.0, -1.0, 1.0])
SETTING = dict(depth=3, gamma0=1.0, learning_rate=0.04, steps=30)


def network(rule, rho, width, seed, depth=3, gamma0=1.0, learning_rate=0.04, steps=30):
  """K [T, P, P] of one linear network, in NumPy: gradients and pseudogradients by hand."""
  drawn = np.random.RandomState(seed)
  draw = lambda *shape: drawn.standard_normal(shape)
  n, d = width, X.shape[1]
  w = [draw(n, d) / np.sqrt(d), *(draw(n, n) / np.sqrt(n) for _ in range(depth - 1)), draw(1, n)]
  mixed = [rho * one + np.sqrt(1 - rho**2) * draw(*one.shape) / (
      np.sqrt(n) if 0 < at < depth else 1) for at, one in enumerate(w)]
  direct = draw(depth, n)
  kernels, start = [], None
  for _ in range(steps):
    h = [X.T]
    for one in w[:-1]:
      h.append(one @ h[-1])
    f = (w[-1] @ h[-1])[0] / (gamma0 * n)
    start = f if start is None else start
    delta = Y - (f - start)
    back = lambda through: [np.ones((1, 1)) @ np.linalg.multi_dot([*through[:at:-1], np.eye(n)])
                            if at < depth else np.ones((1, 1)) for at in range(depth + 1)]
    true = back(w)
    pseudo = {'bp': true, 'fa': back(mixed),
              'dfa': [*direct[:, None], np.ones((1, 1))]}.get(rule)
    inner = [X @ X.T / d, *(one.T @ one / n for one in h[1:])]
    size = [n] * depth + [1]
    kernels.append(sum((a @ b.T).item() / m * k for a, b, m, k in zip(true, pseudo, size, inner)))
    rates = [gamma0 / np.sqrt(d) / np.sqrt(d), *[gamma0 / n] * (depth - 1), gamma0]
    for one, g, a, rate in zip(w, pseudo, h, rates):
      one += learning_rate * rate * g.T @ (a @ delta)[None]
  return np.stack(kernels)


@pytest.mark.parametrize('rule, rho', [
    ('fa', 0.5),
    *(pytest.param(rule, 0.0, marks=pytest.mark.slow) for rule in ('bp', 'fa', 'dfa'))])
def test_networks_approach_it(rule, rho):
  """The distance of one network's K falls as the root of its width."""
  exact = theory.solve_linear(X, Y, rule=rule, rho=rho, **SETTING).entk
  error = []
  for width in (125, 500):
    found = [network(rule, rho, width, seed) for seed in range(6)]
    error.append(np.sqrt(np.mean([np.square(one - exact).sum() for one in found])))
  assert error[1] < 0.12 * np.linalg.norm(exact)
  assert -0.75 < np.log(error[1] / error[0]) / np.log(4) < -0.25


def test_direct_feedback_is_uncorrelated_feedback():
  """Both have the same kernels in linear networks of any depth (equations.md, A4)."""
  one, other = (theory.solve_linear(X, Y, rule=rule, **SETTING) for rule in ('fa', 'dfa'))
  np.testing.assert_array_equal(one.entk, other.entk)


def test_the_first_step():
  """df / dt at the start is K^x y times SUM rho^k: 1, 1.875 and 4 for three layers."""
  for rule, rho, factor in (('fa', 0.0, 1), ('fa', 0.5, 1.875), ('fa', 1.0, 4), ('bp', 0.0, 4)):
    found = theory.solve_linear(X, Y, rule=rule, rho=rho, **dict(SETTING, learning_rate=1e-6))
    np.testing.assert_allclose(found.f[1], 1e-6 * factor * X @ X.T / X.shape[1] @ Y, rtol=1e-4)


def test_outputs_follow_the_kernel():
  """f(t + dt) - f(t) = eta K Delta to first order in eta, which the error is then of second."""
  for rule, gamma0 in (('bp', 1.0), ('fa', 1.0), ('hebb', 0.1)):
    error = []
    for rate in (0.02, 0.01):
      found = theory.solve_linear(X, Y, rule=rule, **dict(
          SETTING, gamma0=gamma0, learning_rate=rate, steps=12))
      step = np.einsum('tpq,tq->tp', found.entk, found.delta)[:-1] * rate
      error.append(np.abs(np.diff(found.f, axis=0) - step).max())
    assert error[1] < 0.35 * error[0]


@pytest.mark.parametrize('rule, rho, gamma0', [
    ('bp', 0.0, 1.5), ('fa', 0.4, 1.5), ('dfa', 0.0, 1.5), ('hebb', 0.0, 0.3)])
def test_two_layer_equations(rule, rho, gamma0):
  """Steps approach the flow on whitened data to first order in their size."""
  y = DRAWN.randn(4)
  x, norm = 2 * np.eye(4), np.linalg.norm(y)
  error = []
  for rate, steps in ((0.04, 26), (0.02, 51)):
    found = theory.solve_linear(x, y, depth=1, gamma0=gamma0, learning_rate=rate, steps=steps,
                                rule=rule, rho=rho)
    flow = theory.two_layer(rule, gamma0, y if rule == 'hebb' else norm, found.times, rho)
    h, signal = found.at('phi', -1)[0], found.at('g_pseudo', -1)[0]
    if rule == 'hebb':
      error.append([np.abs(flow.f - found.f).max(), np.abs(flow.h[-1] - np.diag(h)).max(),
                    np.abs(flow.g_pseudo[-1] - np.diag(signal)).max()])
    else:
      along = y / norm
      error.append([np.abs(flow.f - found.f @ along).max(), abs(along @ h @ along - flow.h[-1]),
                    abs(signal[0, 0] - flow.g_pseudo[-1])])
  error = np.array(error)
  assert (error[1] < 0.1).all()
  assert (error[1] < 0.65 * error[0]).all()


def test_two_layer_limits():
  """The fixed point, and how H_y scales with gamma_0 (equations.md, A5)."""
  for rho in (0.0, 0.4, 1.0):
    a = theory.feedback_limit(1.5, 2.0, rho)
    assert a**3 / 2 + (1 + rho) * a == pytest.approx(3.0)
    end = theory.two_layer('fa', 1.5, 2.0, [0.0, 40.0], rho)
    np.testing.assert_allclose([end.h[-1], end.g_pseudo[-1]], [1 + a**2, rho + a**2 / 2], rtol=1e-6)
    assert theory.feedback_limit(1e-3, 1.0, rho)**2 == pytest.approx(1e-6 / (1 + rho)**2, rel=1e-4)
  assert theory.feedback_limit(1e6, 1.0)**2 == pytest.approx(2e6**(2 / 3), rel=1e-3)
  bp = theory.two_layer('bp', 1e-2, 1.0, [0.0, 20.0])
  # Fast ones are divided finely: a step of a hundredth would jump to another orbit.
  np.testing.assert_allclose(theory.two_layer('bp', 44.7, 1.0, [0.0, 2.5, 5.0]).f[1:], 1, atol=1e-6)
  assert bp.h[-1] - 1 == pytest.approx(0.5e-4, rel=1e-3)
  # The factor 2 that the paper lost: at the start learning is that of fa with rho = 1.
  early = [theory.two_layer(rule, 1.0, 1.0, [1e-4], rho).f[-1]
           for rule, rho in (('bp', 0.0), ('fa', 1.0))]
  assert early[0] == pytest.approx(early[1], rel=1e-3) == pytest.approx(2e-4, rel=1e-3)


@pytest.mark.parametrize('changed, words', [
    (dict(gamma0=0.0), 'gamma0'), (dict(rule='gln'), 'bp, fa, dfa, hebb'),
    (dict(rule='fa', rho=-1.0), 'rho=-1'), (dict(rule='hebb', gamma0=20.0), 'hebb diverges'),
    (dict(rule='fa', learning_rate=9.0), 'fa diverges'), (dict(max_gib=1e-6), 'max_gib allows'),
    (dict(rule='bp', learning_rate=9.0), 'diverges'), (dict(steps=1), 'steps=1'),
    (dict(rule='bp', learning_rate=20.0), 'diverges, and learning_rate=5 will do'),
    (dict(rule='dfa', learning_rate=9.0), 'dfa diverges'), (dict(iterations=0), 'iterations=0'),
    (dict(rule='align_prop', rho=0.3), 'only fa'), (dict(gamma0='2'), "gamma0='2'"),
    (dict(depth=2.5), 'depth=2.5'), (dict(rho=None), 'rho=None')])
def test_refused(changed, words):
  """Each with the value and what to type."""
  with pytest.raises(TheoryError, match=words):
    theory.solve_linear(X, Y, **{**SETTING, **changed})


def test_two_layer_refused():
  """Times, targets and rules that are none."""
  for arguments, words in [
      (('gln', 1.0, 1.0, [1.0]), 'bp, fa, dfa, hebb'), (('bp', 1.0, 1.0, [1.0, 0.5]), 'increase'),
      (('hebb', 1.0, 1.0, [1.0]), 'all targets'), (('bp', 1.0, [1.0], [1.0]), 'their norm'),
      (('hebb', 50.0, [3.0, -3.0], [0.0, 10.0]), 'finite'),
      (('bp', 1.0, 1.0, [0.0, np.nan]), 'increase'), (('fa', 1.0, np.inf, [1.0]), 'their norm')]:
    with pytest.raises(TheoryError, match=words):
      theory.two_layer(*arguments)
