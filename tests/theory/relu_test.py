"""Mean-field theory where phi has kinks, beside networks; and how large errors are."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop import theory
from bioprop.bench import wide
from bioprop.theory import responses

RELU, ROOT2 = theory.ReLU(scale=2**0.5), lambda h: 2**0.5 * jax.nn.relu(h)
RICH = dict(steps=30, learning_rate=0.05)


@functools.cache
def four_samples():
  """Inputs [4, 8] of norm sqrt(8), and their targets."""
  x = np.random.RandomState(1).randn(4, 8)
  x = np.float32(x * np.sqrt(8) / np.linalg.norm(x, axis=1, keepdims=True))
  return x, np.array([1, -1, -1, 1], np.float32)


def apart(one, other):
  """Relative distance."""
  return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.slow
def test_responses_of_steps_are_densities():
  """d <1[x > 0]> / dx is the density of x at 0; of the newest time alone, and of its sample."""
  scales, correlation = np.array([1.0, 2.0]), 0.6
  drawn = np.random.RandomState(0).randn(2, 2, 60000)  # [T, P, S]
  x = np.stack([drawn[0], correlation * drawn[0] + (1 - correlation**2)**0.5 * drawn[1]])
  x = jnp.asarray(x * scales[None, :, None], jnp.float32)
  known = responses.nothing(2, 2, 60000, jnp.float32, 2)
  for t in range(2):
    known = responses.grown(known, jnp.float32(x[t] > 0), x.at[t + 1:].set(0))
    want = np.zeros((2, 2, 2))
    want[[0, 1], t, [0, 1]] = 1 / (scales * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(known.row, want, atol=0.01)


@pytest.mark.slow
def test_what_rests_keeps_its_response():
  """However much more of the same x is seen, and whatever noise was in its estimate."""
  x = jnp.asarray(np.random.RandomState(0).randn(3, 1, 50), jnp.float32)
  field = jnp.abs(x[0])
  first = responses.grown(responses.nothing(3, 1, 50, jnp.float32, 1), field, x.at[1:].set(0))
  np.testing.assert_array_equal(responses.grown(first, field, x).row, first.row)


def wide_entk(**setting):
  """K of ReLU networks, the mean and its relative standard error."""
  x, y = four_samples()
  found = np.stack([wide.train(x=jnp.asarray(x), y=jnp.asarray(y), width=1000, seed=seed, phi=ROOT2,
                               **RICH, **setting).entk for seed in range(8)])
  mean = found.mean(0)
  return mean, np.linalg.norm(found.std(0, ddof=1)) / 8**0.5 / np.linalg.norm(mean)


def solved(**setting):
  """Theory of the same."""
  x, y = four_samples()
  return theory.solve_dmft(x, y, phi=RELU, samples=4000, replicas=8, strict=False, **RICH,
                           **setting)


@pytest.mark.slow
@pytest.mark.usefixtures('optimised')
@pytest.mark.parametrize('rule, rho, gamma0, depth', [
    ('bp', 0.0, 1.0, 3), ('fa', 0.5, 2.0, 2), ('fa', 1.0, 1.5, 4), ('dfa', 0.0, 1.5, 3)])
def test_relus(rule, rho, gamma0, depth):
  """Networks that learn nearly all: within what theory and networks claim for themselves."""
  setting = dict(depth=depth, rule=rule, rho=rho, gamma0=gamma0)
  (mean, noise), found = wide_entk(**setting), solved(**setting)
  error, claimed = apart(found.entk, mean), found.error['entk']
  assert error < claimed + 3 * noise and error < 0.08, (error, claimed, noise)


@pytest.mark.slow
def test_errors_of_relus_fall_as_the_root_of_copies():
  """Distances to what many more copies give: about a quarter at sixteen times as many."""
  x, y = four_samples()
  solve = lambda copies, seed: theory.solve_dmft(
      x, y, phi=RELU, depth=2, rule='fa', rho=0.5, gamma0=2.0, samples=copies, replicas=2,
      strict=False, key=jax.random.key(seed), **RICH).entk
  many = np.mean([solve(20000, seed) for seed in (100, 101)], 0)
  few, more = (np.sqrt(np.mean([apart(solve(copies, seed), many)**2 for seed in range(4)]))
               for copies in (500, 8000))
  assert 1.8 < few / more < 9.0 and more < 0.05, (few, more)


@pytest.mark.slow
@pytest.mark.parametrize('phi, rule', [('tanh', 'bp'), (RELU, 'fa')])
def test_claimed_errors_are_those_that_are_made(phi, rule):
  """Of twenty keys, against far more copies: nineteen of twenty is what is claimed."""
  x, y = four_samples()
  setting = dict(phi=phi, depth=2, rule=rule, gamma0=1.0, strict=False, steps=15, learning_rate=0.1)
  exact = theory.solve_dmft(x, y, samples=12000, replicas=8, key=jax.random.key(99), **setting)
  within = 0
  for seed in range(20):
    found = theory.solve_dmft(x, y, samples=500, key=jax.random.key(seed), **setting)
    within += apart(found.entk, exact.entk) <= found.error['entk']
  assert within >= 16  # Fewer have a chance of 1 in 400, if each has 19 in 20.


@pytest.mark.slow
@pytest.mark.parametrize('phi, rule, gamma0', [
    ('tanh', 'bp', 2.0), ('gelu', 'dfa', 2.0), ('tanh', 'hebb', 0.3), (RELU, 'bp', 1.0)])
def test_defaults_arrive(phi, rule, gamma0):
  """At three layers, with nothing said of copies: within the tolerance."""
  x, y = four_samples()
  found = theory.solve_dmft(x, y, phi=phi, rule=rule, depth=3, gamma0=gamma0, **RICH)
  assert found.converged and max(found.error['f'], found.error['entk']) <= 0.05
