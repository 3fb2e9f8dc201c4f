"""Mean-field theory: closed equations of linear networks, plugged networks, and what it refuses."""
import functools
import itertools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop import theory
from bioprop.bench import fixed_point, wide
from bioprop.errors import ConvergenceError, TheoryError
from bioprop.theory import ensemble, march, problem, replicas

P, T = 3, 12
DRAWN = np.random.RandomState(0)
X = DRAWN.randn(P, 6)
X = np.float32(X * np.sqrt(6) / np.linalg.norm(X, axis=1, keepdims=True))
Y = np.array([1, -1, 1], np.float32)
SETTING = dict(depth=2, learning_rate=0.15, steps=T)
solve = functools.partial(theory.solve_dmft, X, Y, strict=False, **SETTING)
FEW = 1000  # Samples of what is to be compiled once.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def plain(size, depth, steps):
  """A setting whose numbers are 1, of one output and no biases."""
  one, none = jnp.ones(()), jnp.zeros(depth + 1)
  return problem.Setting(jnp.eye(size), jnp.ones((size, 1)), jnp.ones(size),
                         jnp.ones((steps, size)), one, one, one, none[0], none + 1, none, none)


def apart(one, other):
  """Relative distance."""
  return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.slow
@pytest.mark.parametrize('rule, rho, gamma0', [
    slow('bp', 0.0, 1.0), ('fa', 0.5, 1.0), slow('dfa', 0.0, 1.0), slow('hebb', 0.0, 0.15)])
def test_linear_networks_follow_their_closed_equations(rule, rho, gamma0):
  """All kernels, at two times each, and all responses, at three layers."""
  shared = dict(SETTING, depth=3, learning_rate=0.05, gamma0=gamma0, rule=rule, rho=rho)
  exact = theory.solve_linear(X, Y, **shared)
  found = theory.solve_dmft(X, Y, phi='linear', samples=4000, **shared)
  assert np.abs(found.f - exact.f).max() < 0.02
  assert apart(found.entk, exact.entk) < 0.03
  for name in ('phi', 'g', 'pseudo'):
    if getattr(exact, name) is not None:
      assert apart(getattr(found, name), getattr(exact, name)) < 0.04, name
  # Near 0 at the start, so that noise is compared with the whole.
  scale = np.linalg.norm(exact.phi) + np.linalg.norm(exact.g_pseudo)
  assert np.linalg.norm(found.g_pseudo - exact.g_pseudo) < 0.03 * scale
  assert set(exact.responses) <= set(found.responses)
  for letter, response in exact.responses.items():
    assert apart(found.responses[letter], response) < 0.02, letter
  assert max(found.error['f'], found.error['entk']) < 0.05 and found.converged


@pytest.mark.slow
@pytest.mark.parametrize('rule, rho', [
    ('bp', 0.0), ('fa', 0.0), ('fa', 0.6), ('dfa', 0.0), ('gln', 0.0)])
def test_poor_networks_are_lazy(rule, rho):
  """At gamma_0 -> 0 kernels stay the lazy ones, and outputs follow them."""
  phi = theory.ReLU(scale=2**0.5) if rule == 'gln' else 'erf'
  found = solve(gamma0=0.02, rule=rule, rho=rho, phi=phi, samples=6000)
  lazy = theory.lazy_kernels(jnp.asarray(X), 2, phi, rule, rho=rho)
  for step in (0, T - 1):
    assert apart(found.entk[step], lazy.entk) < 0.05
    assert apart(found.at('phi', step), np.asarray(lazy.phi[1:])) < 0.05
  # Gradient descent with the kernel K: f <- f + eta K (y - f), by NumPy.
  f, kernel = np.zeros(P), np.asarray(lazy.entk, np.float64)
  for step in range(T):
    assert np.abs(found.f[step] - f).max() < 0.05
    f = f + SETTING['learning_rate'] * kernel @ (Y - f)


@pytest.mark.slow
@pytest.mark.parametrize('rule, rho, gamma0, phi, close', [
    ('bp', 0.0, 2.0, 'tanh', 0.03), ('fa', 0.7, 4.0, 'tanh', 0.03), ('dfa', 0.0, 4.0, 'tanh', 0.03),
    ('hebb', 0.0, 0.4, 'tanh', 0.05), ('gln', 0.0, 1.0, 'relu', 0.05)])
def test_plugged_networks_of_width_1500(rule, rho, gamma0, phi, close):
  """Trained by the library's own rules; kernels that stayed lazy would be off by a third."""
  scaled = lambda h: 2**0.5 * jax.nn.relu(h)
  setting = dict(SETTING, steps=24, gamma0=gamma0, rule=rule, rho=rho)
  found = theory.solve_dmft(X, Y, phi=theory.ReLU(scale=2**0.5) if phi == 'relu' else phi,
                            samples=4000, replicas=4, **setting)
  networks = [wide.train(x=jnp.asarray(X), y=jnp.asarray(Y), width=1500, seed=seed,
                         phi=scaled if phi == 'relu' else phi, **setting) for seed in range(3)]
  mean = wide.Trained(*(np.mean(one, 0) for one in zip(*networks)))
  assert apart(mean.entk, found.entk) < close
  assert np.abs(mean.f - found.f).max() < 0.06
  phis = np.stack([found.at('phi', step) for step in range(24)], 1)
  assert apart(mean.phi, phis) < close
  assert apart(np.broadcast_to(found.entk[0], found.entk.shape), found.entk) > 0.3


def _ablated(letters, **setting):
  """How far K and the first layer's G~ are from networks', by the response that is left out."""
  setting = dict(SETTING, steps=24, gamma0=3.0, **setting)
  networks = [wide.train(x=jnp.asarray(X), y=jnp.asarray(Y), width=1000, seed=seed, **setting)
              for seed in range(16)]
  entk, first = (np.mean(values, 0) for values in zip(
      *((one.entk, one.g_pseudo[0]) for one in networks)))
  found = {without: theory.solve_dmft(X, Y, samples=3000, replicas=4, without=without, **setting)
           for without in ('', *letters)}
  return ({without: apart(one.entk, entk) for without, one in found.items()},
          {without: apart(np.stack([one.at('g_pseudo', step)[0] for step in range(24)]), first)
           for without, one in found.items()})


@pytest.mark.slow
def test_every_response_is_needed():
  """Without b, c or d it is not of networks (as in equations.md, A3); fa has no a."""
  entk, first = _ablated('abcd', rule='fa', rho=1.0)
  assert entk[''] < 0.015 and first[''] < 0.12 and entk['a'] == entk['']
  for error in (entk, first):
    assert all(error[letter] > 1.5 * error[''] for letter in 'bcd'), error
  assert entk['c'] > 0.05, entk


@pytest.mark.slow
def test_backprop_needs_a_and_b():
  """Without either, its eNTK is another than that of networks."""
  entk, _ = _ablated('ab', rule='bp')
  assert entk[''] < 0.02 and all(entk[letter] > 2 * entk[''] for letter in 'ab'), entk


@pytest.mark.slow
def test_relus_have_their_kinks():
  """The second derivative of a ReLU is a density at 0: without it b, and K, would be others."""
  setting = dict(SETTING, steps=24, learning_rate=0.05, gamma0=2.0, rule='bp')
  scaled = lambda h: 2**0.5 * jax.nn.relu(h)
  networks = [wide.train(x=jnp.asarray(X), y=jnp.asarray(Y), width=1500, seed=seed, phi=scaled,
                         **setting) for seed in range(4)]
  entk = np.mean([one.entk for one in networks], 0)
  found = [theory.solve_dmft(X, Y, phi=theory.ReLU(scale=2**0.5), samples=4000, replicas=4,
                             without=without, strict=False, **setting) for without in ('', 'b')]
  error = [apart(one.entk, entk) for one in found]
  assert error[0] < 0.08 and error[1] > 0.12, error


@pytest.mark.slow
@pytest.mark.parametrize('rule, depth, share', [
    ('dfa', 1, 0.2), ('bp', 1, 0.2), ('fa', 2, 0.5), ('hebb', 1, 0.8)])
def test_errors_fall_with_richness_where_the_start_is_known(rule, depth, share):
  """At gamma_0 = .05, of f and of K; and the means stay what they are."""
  kernel = jnp.asarray(X @ X.T / X.shape[1])
  values, vectors = jnp.linalg.eigh(kernel)
  small = jnp.asarray(0.05 if rule != 'hebb' else 0.01)
  setting = plain(P, depth, T)._replace(
      root=vectors * jnp.sqrt(jnp.maximum(values, 0))[None], targets=jnp.asarray(Y)[:, None],
      gamma0=small, rate=jnp.asarray(0.15), rho=jnp.asarray(0.5 if rule == 'fa' else 0.0))
  layers = theory.lazy_kernels(jnp.asarray(X), depth, 'erf', rule, rho=float(setting.rho)).layers
  known = setting._replace(lazy=problem.Lazy(
      layers[-1] if rule == 'hebb' else sum(layers), layers[-1] + layers[-2]))
  program = problem.Program(rule, theory.as_activation('erf'), depth, T, FEW, 'mse')
  found = [[march.march(program, one, key) for key in jax.random.split(jax.random.key(0), 8)]
           for one in (setting, known)]
  for name in ('f', 'entk'):
    without, there = (np.stack([getattr(one, name) for one in many]) for many in found)
    assert np.sqrt(there.var(0).sum()) < share * np.sqrt(without.var(0).sum()), name
    assert apart(there.mean(0), without.mean(0)) < 3 * np.sqrt(
        without.var(0, ddof=1).sum() / 8) / np.linalg.norm(without.mean(0))


def test_noise_is_not_called_the_steps():
  """Where some replicas diverge and others do not, it is the averages."""
  program = problem.Program('bp', theory.as_activation('tanh'), 1, 3, 100, 'mse')
  setting = plain(1, 1, 3)
  calls, real = [], replicas.march

  def sometimes(*arguments):
    calls.append(arguments)
    found = real(*arguments)
    factor = 1 if len(calls) % 2 else jnp.asarray([[1.0], [1e3], [1e6]])
    return found._replace(delta=found.delta * factor)

  with unittest.mock.patch.object(replicas, 'march', sometimes):
    with pytest.raises(ConvergenceError, match=r'2 of 4 replicas.*samples=400'):
      replicas.average(program, setting, jax.random.key(0), 4)


@pytest.mark.slow
def test_inputs_of_zeros():
  """Black images stay at 0 in networks without biases, and make no kernel of others infinite."""
  zero = np.zeros((1, 6), np.float32)
  for phi in ('tanh', 'relu'):
    alone = solve(gamma0=1.0, phi=phi, samples=3000)
    both = theory.solve_dmft(X, Y, x_test=zero, phi=phi, gamma0=1.0, samples=3000, strict=False,
                             **SETTING)
    np.testing.assert_array_equal(both.f[:, P], 0)
    assert np.abs(both.f[:, :P] - alone.f).max() < 0.06
  inside = theory.solve_dmft(np.concatenate([X, zero]), [*Y, 0.0], phi='relu', gamma0=1.0,
                             samples=3000, strict=False, **SETTING)
  np.testing.assert_array_equal(inside.phi[..., P], 0)


@pytest.mark.slow
def test_small_gamma0_is_not_rounded_away():
  """At the least that is allowed outputs are those of the lazy network."""
  lazy = theory.lazy_kernels(jnp.asarray(X), 2, 'erf', 'bp').entk
  steps = theory.predict_steps(lazy, jnp.asarray(Y), 0.15, T - 1).train
  found = solve(gamma0=2e-4, phi='erf', samples=6000)
  assert np.abs(found.f - np.asarray(steps)).max() < 0.05


def test_directions_are_orthogonal():
  """Also of so many copies that the angles of the transform leave 32 bits."""
  program = problem.Program('bp', theory.as_activation('tanh'), 2, 3, 40000, 'mse')
  setting = plain(2, 2, 3)
  probes = jax.jit(lambda key: ensemble.Ensemble(program, setting, key).probes)(jax.random.key(0))
  flat = np.asarray(probes, np.float64).reshape(6, -1)
  np.testing.assert_allclose(flat @ flat.T / 40000, np.eye(6), atol=1e-5)


@pytest.mark.slow
def test_memory():
  """No less than what XLA holds, and not twice of it."""
  for rule, phi in itertools.product(('bp', 'fa', 'hebb'), ('tanh', 'relu')):
    program = problem.Program(rule, theory.as_activation(phi), 3, 20, 1000, 'mse')
    lowered = march.march.lower(program, plain(4, 3, 20), jax.random.key(0))
    found = lowered.compile().memory_analysis()
    held = found.temp_size_in_bytes + found.output_size_in_bytes
    assert 0.5 < held / theory.memory(20, 4, 3, 1000, rule, phi=phi) <= 1.05, (rule, phi)
  program = problem.Program('bp', theory.as_activation('tanh'), 2, 30, 1000, 'mse', outputs=1,
                            times=(0, 29), past='summed')
  lowered = march.march.lower(program, plain(30, 2, 30), jax.random.key(0))
  found = lowered.compile().memory_analysis()
  held = found.temp_size_in_bytes + found.output_size_in_bytes
  assert 0.5 < held / theory.memory(30, 30, 2, 1000, 'bp', kernels=2, past='summed') <= 1.05


@pytest.mark.slow
def test_samples_for_testing():
  """They move as others, and move nobody: training them away changes nothing."""
  alone = solve(gamma0=1.0, rule='bp', samples=4000)
  both = theory.solve_dmft(X, Y, x_test=X[:1] * [[-1.0]], gamma0=1.0, samples=4000, strict=False,
                           **SETTING)
  assert both.trained == P and both.f.shape == (T, P + 1)
  np.testing.assert_array_equal(both.delta[:, P], 0)
  assert np.abs(both.f[:, :P] - alone.f).max() < 0.03
  # An odd network sends -x where it sends x with the other sign.
  assert np.abs(both.f[:, P] + both.f[:, 0]).max() < 0.03


@pytest.mark.slow
def test_other_losses():
  """A loss of one's own, of which the squares are one."""
  squares = lambda f, y: jnp.square(f - y) / 2
  one, other = (solve(gamma0=1.0, samples=FEW, loss=loss) for loss in ('mse', squares))
  np.testing.assert_allclose(one.f, other.f, atol=1e-4)
  logistic = solve(gamma0=1.0, samples=FEW, loss=lambda f, y: jax.nn.softplus(-f * y))
  np.testing.assert_allclose(logistic.delta, Y / (1 + np.exp(Y * logistic.f)), rtol=1e-3)


@pytest.mark.slow
def test_equal_keys_give_equal_solutions():
  """And others do not, by about what the error says."""
  one, same, other = (solve(gamma0=1.0, samples=FEW, key=jax.random.key(seed))
                      for seed in (3, 3, 4))
  np.testing.assert_array_equal(one.phi, same.phi)
  assert 0.2 * one.error['entk'] < apart(one.entk, other.entk) < 5 * one.error['entk']


@pytest.mark.slow
def test_errors_fall_as_the_root_of_samples():
  """The reported error, over sixteen times the copies: a quarter."""
  few, many = (solve(gamma0=1.0, rule='fa', rho=0.5, samples=samples, replicas=8).error
               for samples in (500, 8000))
  assert 2.5 < few['entk'] / many['entk'] < 6.5


@pytest.mark.slow
def test_what_is_not_accurate_enough_is_refused_or_flagged():
  """With the number of copies that would do."""
  setting = dict(gamma0=1.0, samples=FEW, tolerance=0.001, **SETTING)
  with pytest.raises(ConvergenceError, match=r'samples=\d+'):
    theory.solve_dmft(X, Y, **setting)
  assert not theory.solve_dmft(X, Y, strict=False, **setting).converged


@pytest.mark.parametrize('changed, words', [
    (dict(gamma0=0.0), r'gamma0=0\.0 must be positive'),
    (dict(gamma0=-1.0), 'gamma0=-1'),
    (dict(rule='fa', rho=1.5), 'rho=1.5 is not in'),
    (dict(rule='bp', rho=0.5), 'only fa'),
    (dict(rule='kp'), 'bp, fa, dfa, hebb, gln'),
    (dict(depth=0), 'depth=0'),
    (dict(steps=1), 'steps=1'),
    (dict(learning_rate=0.0), 'learning_rate=0'),
    (dict(samples=10), 'samples=36'),
    (dict(replicas=1), 'replicas=1'),
    (dict(max_gib=1e-4), r'GiB, and max_gib allows 0\.0001'),
    (dict(rule='hebb', gamma0=8.0, phi='relu'), 'hebb diverges at gamma0=8'),
    (dict(learning_rate=5.0), 'learning_rate=1.25'),
    (dict(phi=jax.nn.softmax), 'mixes units'),
    (dict(phi='tan'), 'tanh'),
    (dict(x_test=X[:, :4]), 'x_test has 4 features'),
    (dict(without='e'), "without='e'"),
    (dict(gamma0=1e-7), 'lazy_kernels'),
    (dict(gamma0=np.ones(2)), 'gamma0='),
    (dict(rule='align_prop', rho=0.3), 'only fa'),
    (dict(samples=50.5), 'samples=50.5'),
    (dict(samples=10**6, max_gib=1e3), 'more replicas'),
    (dict(max_gib=0), 'max_gib=0'),
    (dict(loss='cross_entropy'), "loss='cross_entropy'"),
    (dict(loss=lambda f: f), 'function of one output'),
    (dict(key=3), 'key=3'),
    (dict(phi=theory.Quadrature(jax.nn.relu)), 'jumps'),
    (dict(phi=jnp.sign), 'jumps by 2 at h=0, where it has no derivative'),
])
@pytest.mark.some(4)
def test_refused(changed, words):
  """Each with the value and what to type."""
  with pytest.raises(TheoryError, match=words):
    solve(**{'gamma0': 1.0, 'samples': FEW, **changed})


@pytest.mark.parametrize('x, y, words', [
    (X[0], Y, r'\[samples, features\]'), (X, Y[:2], 'targets have the shape'),
    (X, np.zeros((P, 2, 2)), 'one number for each output'), (X, np.zeros((P, 0)), r'or \(3, C\)'),
    (np.int32(X), Y, 'floating'), (X * np.nan, Y, 'NaN'),
    (X, Y * np.nan, 'NaN'), ([[1.0], [1.0, 2.0]], Y, 'cannot be read'),
    (np.float16(X), Y, '32 or')])
def test_data_that_are_none(x, y, words):
  """Never a traceback of JAX's."""
  with pytest.raises(TheoryError, match=words):
    theory.solve_dmft(x, y, gamma0=1.0, **SETTING)


def test_a_solution_is_kept_in_a_file(tmp_path):
  """Saved and loaded it is the same; nothing is overwritten unless asked for."""
  found, path = solve(gamma0=1.0, samples=FEW), tmp_path / 'one.npz'
  found.save(path)
  with pytest.raises(TheoryError, match='overwrite=True'):
    found.save(path)
  found.save(path, overwrite=True)
  loaded = theory.Solution.load(path)
  for name, value in vars(found).items():
    np.testing.assert_equal(getattr(loaded, name), value, name)
  assert type(loaded.converged) is bool and type(loaded.trained) is int
  assert [one.name for one in tmp_path.iterdir()] == ['one.npz']
  exact = theory.solve_linear(X, Y, gamma0=1.0, rule='fa', **SETTING)
  exact.save(tmp_path / 'two.npz')
  assert theory.Solution.load(tmp_path / 'two.npz').g is None
  (tmp_path / 'no.npz').write_text('nothing')
  (tmp_path / 'empty.npz').touch()
  (tmp_path / 'short.npz').write_bytes(path.read_bytes()[:100])
  for wrong in ('no.npz', 'missing.npz', 'empty.npz', 'short.npz'):
    with pytest.raises(TheoryError, match='cannot be read'):
      theory.Solution.load(tmp_path / wrong)
  for values in (dict(a=np.zeros(3)), dict(version=2, rule='fa')):
    np.savez(tmp_path / 'other.npz', **values)
    with pytest.raises(TheoryError, match='holds no solution'):
      theory.Solution.load(tmp_path / 'other.npz')
  with pytest.raises(TheoryError, match='no directory'):
    found.save(tmp_path / 'nowhere' / 'one.npz')
  for name in ('g', 'f'):
    with pytest.raises(TheoryError, match='no kernel'):
      exact.at(name, 0)


@pytest.mark.slow
def test_the_damped_iteration_arrives_there():
  """The method of papers: eigenvectors of kernels, and every derivative one at a time."""
  setting = dict(gamma0=1.5, learning_rate=0.1, steps=8)
  exact = theory.solve_dmft(X, Y, depth=2, rule='bp', samples=6000, **setting)
  kx = jnp.asarray(X @ X.T / X.shape[1])
  state, change = fixed_point.begin(kx, 2, 8), []
  for _ in range(8):
    fresh = fixed_point.iterate(state, jnp.asarray(Y), jax.random.key(0), phi=jnp.tanh,
                                gamma0=1.5, rate=0.1, samples=6000, damping=0.9)
    change.append(apart(np.asarray(fresh.phi), np.asarray(state.phi)))
    state = fresh
  assert change[-1] < 1e-3
  f, entk = fixed_point.outputs(state, jnp.asarray(Y), 0.1)
  # Euler's method follows the flow, and the march the steps: they differ by O(eta).
  assert np.abs(np.asarray(f) - exact.f).max() < 0.04
  assert apart(np.asarray(entk), exact.entk) < 0.04
  shape = (2, 8, P, 8, P)
  assert apart(np.asarray(state.phi[1:]).reshape(shape), exact.phi) < 0.05
  for letter, found in (('a', state.a[1]), ('b', state.b[1])):
    assert apart(np.asarray(found).reshape(shape[1:]), exact.responses[letter][0]) < 0.15
