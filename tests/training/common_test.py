"""One program for functions that differ in numbers: their values are the functions' own."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.training.common import common

X = np.linspace(-1, 1, 6, dtype=np.float32)


def _scan(a):
  return lambda x: jax.lax.scan(lambda c, y: (c * a + y, jnp.sin(c) * a), x[0], x)


def _nested(a):
  def inner(c):
    return jax.lax.fori_loop(0, 3, lambda _, d: d * a + jnp.float32(1), c)
  return lambda x: jax.lax.scan(lambda c, y: (inner(c) + y, c), x[0], x)


def _while(a):
  step = np.linspace(.5, 1, 6, dtype=np.float32) * a
  return lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 10 * a, lambda c: c + step + a, x)


def _branch(a):
  return lambda x: jax.lax.cond(jnp.sum(x) > a, lambda y: y * a, lambda y: y - jnp.float32(2), x)


def _switch(a):
  return lambda x: jax.lax.switch(1, [lambda y: y, lambda y: y + a, lambda y: y * y], x)


def _called(a):
  return lambda x: jax.jit(lambda y: y ** 2 + a)(x)


def _remat(a):
  return lambda x: jax.grad(lambda y: jnp.sum(jax.checkpoint(lambda z: jnp.sin(z) * a)(y)))(x)


def _own_derivative(a):
  @jax.custom_vjp
  def f(x):
    return x * a
  f.defvjp(lambda x: (x * a, None), lambda _, g: (g,))
  return lambda x: f(x) + jnp.float32(1)


def _constant(a):
  array = np.full(6, a)
  return lambda x: x + array


def _output(a):
  return lambda x: (x, jnp.float32(a))


def _key(a):
  return lambda x: x + jax.random.normal(jax.random.key(int(100 * a)), (6,))


@pytest.mark.parametrize('make', [_scan, _nested, _while, _branch, _switch, _called, _remat,
                                  _own_derivative, _constant, _output, _key])
@pytest.mark.some(2)
def test_numbers_are_taken_out(make):
  """Wherever they stand; under vmap, all functions at once."""
  functions = [make(np.float32(a)) for a in (0.5, 0.25, 2.0, 0.5)]
  (run, members, numbers), = common(functions, X)
  assert members == [0, 1, 2, 3] and numbers
  assert all(number.shape[0] == 4 for number in numbers)
  together = jax.vmap(lambda *numbers: run(numbers, X))(*numbers)
  for at, function in enumerate(functions):
    want = function(X)
    jax.tree.map(np.testing.assert_allclose, run([number[at] for number in numbers], X), want)
    own = jax.tree.map(lambda leaf, row=at: leaf[row], together)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, want)


def test_what_differs_otherwise_stays_apart():
  """Another operation, shape, static exponent, dtype, or number of equations."""
  functions = [lambda x: x * 2.0, lambda x: x + 2.0, lambda x: x * 3.0, lambda x: x ** 2,
               lambda x: x ** 3, lambda x: jnp.sin(x * 2.0), lambda x: x[:3] * 2.0,
               lambda x: x * np.float32(2), lambda x: x.astype(jnp.bfloat16)]
  found = common(functions, X)
  assert [members for _, members, _ in found][0][:2] == [0, 2]
  assert sorted(sum((members for _, members, _ in found), [])) == list(range(len(functions)))
  for run, members, numbers in found:
    for row, at in enumerate(members):
      np.testing.assert_allclose(run([one[row] for one in numbers], X), functions[at](X),
                                 rtol=1e-6)


def test_which_operand_is_which_matters():
  """x - y is not y - x, although each equation is the same."""
  functions = [lambda x, y: x - y * 2.0, lambda x, y: y - x * 2.0]
  assert [members for _, members, _ in common(functions, X, X)] == [[0], [1]]


def test_equal_functions_have_no_numbers():
  """And one program."""
  (_, members, numbers), = common([_scan(np.float32(.5))] * 3, X)
  assert members == [0, 1, 2] and not numbers
