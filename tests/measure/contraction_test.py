"""Contractions of factors: against NumPy, and against multiply-adds counted in their programs."""
import functools
import math

import jax
import numpy as np
import pytest

from bioprop.jaxprs.layout import bodies_of
from bioprop.measure import contraction
from bioprop.measure.contraction import Sizes, contract, costs, formed
from bioprop.measure.jacobian import Jacobian

RNG = np.random.RandomState(0)
WAYS = ('vectors', 'gradients', 'half', 'through')
# n, C, m, D, T, K, O: outputs of x and x' are as many where they are traced.
FULL, TRACED = Sizes(3, 2, 5, 4, 3, 7, 2), Sizes(3, 4, 5, 4, 3, 7, 2)


def operands(sizes):
  """The factors of x, those of x', and the gradients [m, D, K O] of these."""
  n, c, m, d, t, k, o = sizes
  left = RNG.randn(n, t, k), RNG.randn(n, c, t, o)
  right = RNG.randn(m, t, k), RNG.randn(m, d, t, o)
  return left, right, np.einsum('mtk,mdto->mdko', *right).reshape(m, d, k * o)


def reference(left, right, trace):
  """Both gradients, and their inner products."""
  g, h = (np.einsum('ntk,ncto->ncko', *factors) for factors in (left, right))
  return np.einsum('ncko,mcko->nm' if trace else 'ncko,mdko->ncmd', g, h)


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


def forced(way, left, right, formed, sizes, trace):
  """One way, of factors, or of gradients where they are formed."""
  right = right if formed is None else formed.reshape(sizes.m, sizes.d, sizes.k, sizes.o)
  return getattr(contraction, f'_{way}')(left, right, trace)


def program(way, is_formed, sizes, trace):
  """The equations of one way, each with how often it runs."""
  left, right, formed = operands(sizes)
  run = functools.partial(forced, way, sizes=sizes, trace=trace)
  return list(equations(jax.make_jaxpr(run)(left, right, formed if is_formed else None).jaxpr))


def ways_of(sizes, trace):
  """The ways that there are, and whether x' has its gradients formed."""
  return [(way, formed) for formed in (False, True) for way in costs(sizes, trace, formed)]


def equations(jaxpr, times=1):
  """All equations of a program, each with how often it runs."""
  for eqn in jaxpr.eqns:
    inside = times * eqn.params['length'] if eqn.primitive.name == 'scan' else times
    for body in bodies_of(eqn):
      yield from equations(body.jaxpr, inside)
    yield eqn, times


def multiply_adds(equations):
  """Of all matrix products: the size of the result times that of what is summed over."""
  total = 0
  for eqn, times in equations:
    if eqn.primitive.name == 'dot_general':
      (summed, _), _ = eqn.params['dimension_numbers']
      length = math.prod(eqn.invars[0].aval.shape[axis] for axis in summed)
      total += times * length * math.prod(eqn.outvars[0].aval.shape)
  return total


@pytest.mark.parametrize('sizes, trace', [(FULL, False), (TRACED, True)], ids=['full', 'traced'])
@pytest.mark.usefixtures('x64')
def test_every_way_and_every_slice(sizes, trace, monkeypatch):
  """The same inner products, of factors and of formed gradients, all at once or in slices."""
  n, c, _, d, t, _, o = sizes
  two = {'gradients': 2 * n * c * o, 'half': 2 * n * t * (t + d * o), 'through': 2 * n * t * d * o}
  left, right, formed = operands(sizes)

  @jax.jit
  def run(left, right, formed):
    kernels = []
    for way, is_formed in ways_of(sizes, trace):
      for floats in (contraction._FLOATS, two[way], 1):
        with monkeypatch.context() as patch:
          patch.setattr(contraction, '_FLOATS', floats)
          kernels.append(forced(way, left, right, formed if is_formed else None, sizes, trace))
    return kernels

  kernels = run(left, right, formed)
  assert len(kernels) == 15
  for kernel in kernels:
    close(kernel, reference(left, right, trace))


@pytest.mark.parametrize('sizes, trace', [(FULL, False), (TRACED, True)], ids=['full', 'traced'])
@pytest.mark.usefixtures('x64')
def test_the_way_that_costs_least(sizes, trace):
  """Of sizes for which each way is the cheapest, `contract` gives the same as NumPy."""
  few = (6, 2, 1, 2, 2, 3, 1)
  cases = {
      ('vectors', False): (2, 3, 4, 3, 1, 5, 6), ('gradients', False): (4, 2, 3, 2, 9, 2, 3),
      ('half', False): (2, 2, 3, 2, 2, 6, 9), ('gradients', True): sizes._replace(t=9, k=2),
      ('through', False): few if trace else (4, 8, 3, 3, 3, 4, 1),
      ('through', True): few if trace else (4, 8, 4, 4, 4, 7, 1)}
  data = {}
  for (way, is_formed), case in cases.items():
    ways = costs(Sizes(*case), trace, is_formed)
    assert min(ways, key=ways.get) == way, (way, is_formed, ways)
    data[way, is_formed] = operands(Sizes(*case))
  run = jax.jit(lambda data: {case: contract(left, formed if case[1] else right, trace)
                              for case, (left, right, formed) in data.items()})
  for case, kernel in run(data).items():
    close(kernel, reference(*data[case][:2], trace))


@pytest.mark.parametrize('trace', [False, True])
def test_slices_are_small(trace, monkeypatch):
  """Where less may be held, no array is larger than that, what is given, and the result.

  But `through` has the gradients of x' as a whole.
  """
  sizes = Sizes(6, 2, 6, 2, 8, 40, 10)
  n, c, m, d, t, k, o = sizes
  given, gradients, few = max(n * t * k, n * c * t * o), m * d * k * o, 1000
  for way, is_formed in ways_of(sizes, trace):
    held = {}
    for floats in (2**24, few):
      monkeypatch.setattr(contraction, '_FLOATS', floats)
      held[floats] = max(var.aval.size for eqn, _ in program(way, is_formed, sizes, trace)
                         for var in eqn.outvars)
    bound = max(given, gradients if way == 'through' or is_formed else few)
    assert held[few] <= bound <= held[2**24], (way, is_formed, held)


@pytest.mark.parametrize('sizes, trace', [
    (FULL, False), (TRACED, True), (Sizes(2, 3, 4, 2, 1, 5, 6), False),
    (Sizes(2, 3, 4, 3, 1, 5, 6), True)])
def test_costs_are_those_of_the_programs(sizes, trace):
  """The products that each way's program makes, counted in it; an outer product is no sum."""
  for is_formed in (False, True):
    for way, cost in costs(sizes, trace, is_formed).items():
      assert multiply_adds(program(way, is_formed, sizes, trace)) == cost, (way, is_formed)


def test_costs_by_hand():
  """n = 2, C = 3, m = 5, D = 7, T = 11, K = 13, O = 17; and of one place, where T = 1."""
  forming_g, forming_h, pairs = 2 * 3 * 11 * 13 * 17, 5 * 7 * 11 * 13 * 17, 2 * 5
  assert costs(Sizes(2, 3, 5, 7, 11, 13, 17)) == {
      'gradients': forming_g + forming_h + pairs * 3 * 7 * 13 * 17,
      'half': pairs * (11 * 11 * 13 + 11 * 11 * 7 * 17 + 11 * 3 * 7 * 17),
      'through': forming_h + pairs * (11 * 7 * 13 * 17 + 11 * 3 * 7 * 17)}
  assert costs(Sizes(2, 3, 5, 7, 11, 13, 17), formed=True) == {
      'gradients': forming_g + pairs * 3 * 7 * 13 * 17,
      'through': pairs * (11 * 7 * 13 * 17 + 11 * 3 * 7 * 17)}
  one = Sizes(2, 3, 5, 3, 1, 13, 17)
  assert costs(one)['vectors'] == pairs * (13 + 3 * 3 * 17)
  assert costs(one, trace=True)['vectors'] == pairs * (13 + 3 * 17)
  assert 'vectors' not in costs(one, formed=True)


def chosen(monkeypatch, sizes, trace, formed):
  """The way that `contract` goes; nothing is computed."""
  with monkeypatch.context() as patch:
    for way in WAYS:
      patch.setattr(contraction, f'_{way}', lambda *_, way=way: way)
    n, c, m, d, t, k, o = sizes
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, np.float32)
    left, right = (shape(n, t, k), shape(n, c, t, o)), (shape(m, t, k), shape(m, d, t, o))
    return contract(left, np.broadcast_to(np.float32(0), (m, d, k * o)) if formed else right, trace)


@pytest.mark.parametrize('trace', [False, True])
def test_the_choice_flips_as_documented(trace, monkeypatch):
  """Layers of networks with 10 outputs, of 20 samples; errors at many outputs; formed gradients."""
  go = functools.partial(chosen, monkeypatch, trace=trace)
  layers = {  # T, K, O
      'gradients': (32 * 32, 3 * 9, 16), 'half': (4 * 4, 512 * 9, 512), 'vectors': (1, 512, 1000)}
  for way, places in layers.items():
    assert go(Sizes(20, 10, 20, 10, *places), formed=False) == way
  if not trace:
    assert go(Sizes(20, 1000, 20, 1, 48, 64, 64), formed=False) == 'through'
  formed = {go(Sizes(20, c, m, c, *places), formed=True) for c in (1, 10) for m in (1, 20)
            for places in ((1, 8, 4), (1, 2, 2), (2, 64, 1), (16, 8, 4), (64, 3, 2))}
  assert formed == {'gradients', 'through'}


@pytest.mark.usefixtures('x64')
def test_gradients_that_are_smaller_than_their_factors():
  """Of many locations with few channels they are formed, with their bias; others stay factors."""
  many, large, few = (Sizes(4, 3, 4, 3, *places) for places in ((64, 5, 2), (4, 10, 6), (2, 20, 9)))
  (a, g), *others = (operands(sizes)[0] for sizes in (many, large, few))
  jacobian = Jacobian({'many': (a, g), **dict(zip(('large', 'few'), others))},
                      {'rest': np.ones((4, 3, 1))}, (('bias', 'many'), ('other', 'few')))
  of = 100  # Of so many, `gradients` is the cheapest way for the first two.
  ways = [costs(sizes._replace(n=of, m=of)) for sizes in (many, large, few)]
  assert [min(one, key=one.get) == 'gradients' for one in ways] == [True, True, False]
  got = jax.jit(formed, static_argnums=(1, 2))(jacobian, of, False)
  assert set(got.outer) == {'large', 'few'} and got.biases == (('other', 'few'),)
  close(got.full['many'], np.einsum('ntk,ncto->ncko', a, g).reshape(4, 3, 10))
  close(got.full['bias'], g.sum(2))
  assert set(got.by_path()) == set(jacobian.by_path())


def test_factors_stay_where_other_ways_are_cheaper():
  """Of one sample with one output, whose gradient is smaller than its factors, 20 < 42."""
  factors = operands(Sizes(1, 1, 1, 1, 2, 20, 1))[0]
  jacobian = Jacobian({'weight': factors}, {})
  assert set(jax.eval_shape(lambda one: formed(one, 1, False), jacobian).outer) == {'weight'}
  assert not jax.eval_shape(lambda one: formed(one, 100, False), jacobian).outer
