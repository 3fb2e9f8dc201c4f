"""Mean-field theory of several outputs, and of what else networks have: beside plugged ones."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop import theory
from bioprop.bench import wide
from bioprop.errors import ConvergenceError, TheoryError

P, T, C = 3, 12, 3
DRAWN = np.random.RandomState(0)
X = DRAWN.randn(P, 6)
X = np.float32(X * np.sqrt(6) / np.linalg.norm(X, axis=1, keepdims=True))
Y = np.float32(DRAWN.randn(P, C))
CLASSES = np.eye(C, dtype=np.float32)[[0, 2, 1]]
BATCHES = np.random.RandomState(1).randint(0, P, (T - 1, 2))
WEIGHTS, BIASES = (1.5, 0.8, 1.2), (0.3, 0.2, 0.1)
SETTING = dict(depth=2, learning_rate=0.15, steps=T)


def apart(one, other):
  """Relative distance."""
  return np.linalg.norm(one - other) / np.linalg.norm(other)


def networks(width, seeds, y=Y, **setting):
  """Mean over seeds of f and of K between all outputs."""
  found = [wide.train(x=jnp.asarray(X), y=jnp.asarray(y), width=width, seed=seed, **setting)
           for seed in range(seeds)]
  return np.mean([one.f for one in found], 0), np.mean([one.entk for one in found], 0)


def own_steps(kernel, y, rate, momentum, batches):
  """Outputs [T, P, C] of heavy balls on the kernel K [P, P] of each output, by NumPy."""
  f, velocity, found = np.zeros_like(y), np.zeros_like(y), []
  for batch in [*batches, []]:
    found.append(f)
    delta = np.zeros_like(y)
    np.add.at(delta, np.asarray(batch, int), (y - f)[np.asarray(batch, int)])
    velocity = momentum * velocity + delta
    f = f + rate * kernel @ velocity
  return np.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize('rule, rho', [
    ('bp', 0.0), ('fa', 0.0), ('fa', 0.6), ('dfa', 0.0), ('gln', 0.0)])
def test_poor_networks_are_lazy(rule, rho):
  """Outputs do not know of each other, and each follows the lazy kernel under all options."""
  phi = theory.ReLU(scale=2**0.5) if rule == 'gln' else 'erf'
  network = dict(weight_variance=WEIGHTS, bias_variance=BIASES, bias_rate=0.5)
  found = theory.solve_dmft(X, Y, gamma0=0.02, rule=rule, rho=rho, phi=phi, samples=8000,
                            momentum=0.5, batches=BATCHES, strict=False, kernels_at=[0, -1],
                            depth=2, learning_rate=0.05, steps=T, **network)
  lazy = theory.lazy_kernels(jnp.asarray(X), 2, phi, rule, rho=rho, **network)
  kernel = np.asarray(lazy.entk, np.float64)
  assert found.between.shape == (2, P, P, C, C) and found.phi.shape == (2, 2, P, 2, P)
  for between in found.between:
    assert apart(between, kernel[:, :, None, None] * np.eye(C)) < 0.06
  assert apart(found.at('phi', -1), np.asarray(lazy.phi[1:])) < 0.05
  want = own_steps(kernel, np.float64(Y), 0.05, 0.5, BATCHES)
  assert np.abs(found.f - want).max() < 0.06 and np.abs(want).max() > 1


@pytest.mark.slow
@pytest.mark.parametrize('rule, rho, gamma0', [
    ('bp', 0.0, 1.5), ('fa', 0.0, 3.0), ('fa', 0.5, 3.0), ('dfa', 0.0, 3.0), ('hebb', 0.0, 0.3),
    ('gln', 0.0, 0.7)])
@pytest.mark.parametrize('depth', [1, 2])
def test_plugged_networks_of_several_outputs(rule, rho, gamma0, depth):
  """K between all outputs; that of the start, and one for each output alone, would be far off."""
  setting = dict(depth=depth, gamma0=gamma0, rule=rule, rho=rho, steps=T, learning_rate=0.12,
                 phi='relu' if rule == 'gln' else 'tanh')
  found = theory.solve_dmft(X, Y, samples=4000, strict=False, **setting)
  f, entk = networks(1500, 3, **setting)
  assert apart(entk, found.between) < 0.05
  assert np.abs(f - found.f).max() < 0.06
  assert apart(np.broadcast_to(found.between[:1], entk.shape), entk) > 0.2
  assert apart(found.between * np.eye(C), entk) > 1.5 * apart(found.between, entk)
  np.testing.assert_allclose(np.einsum('tmncc->tmn', found.between) / C, found.entk, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('option, rule, rho, gamma0, rate', [
    ('weights', 'bp', 0.0, 1.5, 0.1), ('weights', 'fa', 0.5, 3.0, 0.1),
    ('biases', 'bp', 0.0, 1.5, 0.05), ('biases', 'fa', 0.5, 3.0, 0.05),
    ('biases', 'dfa', 0.0, 3.0, 0.05), ('biases', 'hebb', 0.0, 0.3, 0.05),
    ('momentum', 'bp', 0.0, 1.0, 0.05), ('momentum', 'fa', 0.5, 2.0, 0.05),
    ('batches', 'bp', 0.0, 1.5, 0.1), ('batches', 'fa', 0.5, 3.0, 0.1),
    ('batches', 'hebb', 0.0, 0.3, 0.1),
    ('cross_entropy', 'bp', 0.0, 2.0, 0.15), ('cross_entropy', 'fa', 0.5, 3.0, 0.15)])
def test_plugged_networks_with_options(option, rule, rho, gamma0, rate):
  """Each as networks have it; and another result than without it."""
  options = {'weights': dict(weight_variance=WEIGHTS), 'momentum': dict(momentum=0.7),
             'biases': dict(bias_variance=BIASES), 'batches': dict(batches=BATCHES),
             'cross_entropy': dict(loss='cross_entropy')}[option]
  rates = dict(bias_rate=1.0) if option == 'biases' else {}
  y = CLASSES if option == 'cross_entropy' else Y
  setting = dict(depth=2, gamma0=gamma0, rule=rule, rho=rho, steps=T, learning_rate=rate)
  solve = functools.partial(theory.solve_dmft, X, y, samples=4000, strict=False, **setting)
  found = solve(**options, **rates)
  f, entk = networks(1500, 3, y=y, **setting, **options)
  assert apart(entk, found.between) < 0.05
  assert np.abs(f - found.f).max() < 0.06
  without = solve()
  assert np.abs(f - without.f).max() > 0.12 or apart(without.between, entk) > 0.15


@pytest.mark.slow
def test_fewer_times_are_the_same_kernels():
  """Of those of all times, and where tangents are regressed."""
  for rule, phi in (('fa', 'tanh'), ('bp', 'relu')):
    solve = functools.partial(theory.solve_dmft, X, Y, gamma0=1.0, rule=rule, phi=phi,
                              samples=1000, strict=False, **SETTING)
    whole, few = solve(), solve(kernels_at=[-1, 4])
    np.testing.assert_array_equal(few.kernel_times, [4, T - 1])
    np.testing.assert_allclose(few.f, whole.f, atol=1e-5)
    at = np.array([4, T - 1])
    np.testing.assert_allclose(few.between, whole.between[at], atol=1e-4)
    for name in ('phi', 'g', 'g_pseudo', 'pseudo'):
      np.testing.assert_allclose(
          getattr(few, name), getattr(whole, name)[:, at][:, :, :, at], atol=1e-4)
    for letter, row in whole.responses.items():
      columns = (slice(None),) * (4 if letter in 'bd' else 3) + (at,)
      np.testing.assert_allclose(few.responses[letter], row[:, at][columns], atol=1e-4)
    np.testing.assert_allclose(few.at('g', 4), whole.at('g', 4), atol=1e-4)
    with pytest.raises(TheoryError, match=r'but after 4, 11'):
      few.at('g', 5)


@pytest.mark.slow
@pytest.mark.parametrize('rule, rho, gamma0, phi', [
    ('bp', 0.0, 1.5, 'tanh'), ('fa', 0.5, 3.0, 'tanh'), ('dfa', 0.0, 3.0, 'tanh'),
    ('hebb', 0.0, 0.3, 'tanh'), ('bp', 0.0, 0.4, 'relu')])
def test_a_summed_past_is_the_kept_one(rule, rho, gamma0, phi):
  """With biases and momentum; and without answers it would not be."""
  solve = functools.partial(
      theory.solve_dmft, X, Y, samples=2000, replicas=8, strict=False, depth=2, steps=T, phi=phi,
      gamma0=gamma0, rule=rule, rho=rho, learning_rate=0.05, momentum=0.3, bias_variance=0.1,
      bias_rate=0.3)
  kept, summed = solve(), solve(past='summed')
  assert apart(summed.between, kept.between) < 0.04 and np.abs(summed.f - kept.f).max() < 0.04
  assert not summed.responses
  blind = solve(past='summed', without='abcd')
  assert apart(blind.between, kept.between) > 1.5 * apart(summed.between, kept.between)


@pytest.mark.slow
def test_too_few_copies_for_a_summed_past():
  """Directions that they have no room for are not left out silently."""
  with pytest.raises(ConvergenceError, match=r'too few directions of the past. Say samples=56'):
    theory.solve_dmft(X, Y, gamma0=2.0, samples=28, past='summed', strict=False, **SETTING)


@pytest.mark.slow
def test_one_output_of_an_axis_is_one_output():
  """[P, 1] is [P], but for the axis; and a file keeps it."""
  solve = functools.partial(theory.solve_dmft, X, gamma0=1.0, depth=1, samples=1000, steps=T,
                            learning_rate=0.15, strict=False)
  plain, axis = solve(Y[:, 0]), solve(Y[:, :1])
  np.testing.assert_array_equal(axis.f[..., 0], plain.f)
  np.testing.assert_array_equal(axis.entk, plain.entk)
  np.testing.assert_array_equal(axis.between[..., 0, 0], plain.entk)


@pytest.mark.parametrize('changed, words', [
    (dict(momentum=1.0), r'momentum=1\.0 is not in'),
    (dict(batches=BATCHES[1:]), r'whole numbers \[11, B\]'),
    (dict(batches=BATCHES + 1), 'from 0 to 2'),
    (dict(batches=BATCHES * 1.0), 'float64'),
    (dict(kernels_at=[T]), 'from 0 to 11'), (dict(kernels_at=[]), r'kernels_at=\[\]'),
    (dict(kernels_at=[0.5]), 'whole numbers'), (dict(past='lost'), 'kept, summed'),
    (dict(weight_variance=[1.0]), 'weight_variance'), (dict(bias_variance=-1.0), 'bias_variance'),
    (dict(bias_rate=np.nan), 'bias_rate'),
    (dict(loss='hinge'), 'cross_entropy'), (dict(loss=lambda f, y: f - y), r'\[3\]'),
    (dict(max_gib=1e-4), r'kernels_at=\[0, -1\]')])
def test_refused(changed, words):
  """Each with the value and what to type."""
  with pytest.raises(TheoryError, match=words):
    theory.solve_dmft(X, Y, gamma0=1.0, samples=1000, **SETTING, **changed)


def test_memory_of_one_layer_does_not_grow_with_time():
  """Its ends are sums; of more layers the past is kept, for any number of outputs."""
  of = functools.partial(theory.memory, size=200, samples=4000, rule='fa', kernels=2)
  growth = lambda **kw: of(steps=200, **kw) / of(steps=20, **kw)
  assert growth(depth=1, outputs=10) < 1.05
  assert growth(depth=2, outputs=10) > 4
  assert (of(steps=200, depth=2, outputs=10) / of(steps=200, depth=2, outputs=1)) < 2


@pytest.mark.slow
def test_key_changes_nothing_but_noise():
  """Cross-entropy starts at the uniform distribution under every key."""
  for seed in range(2):
    found = theory.solve_dmft(X, CLASSES, gamma0=1.0, depth=1, samples=1000, steps=T, strict=False,
                              learning_rate=0.15, loss='cross_entropy', key=jax.random.key(seed))
    np.testing.assert_allclose(found.delta[0], CLASSES - 1 / C, atol=1e-6)
    np.testing.assert_allclose(found.delta[-1].sum(-1), 0, atol=1e-5)
