"""Convolutions of dilated inputs without the zeros: against JAX's own, which multiply them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bioprop.probes.dilated import undilated

RNG = np.random.RandomState(0)
LAST, FIRST = ('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW')
# Places, window, strides, padding, dilation of the window, groups, axes.
CASES = {
    'as in networks': ((8, 8), (3, 3), (2, 2), 'SAME', (1, 1), 1, LAST),
    'odd places': ((7, 9), (3, 2), (2, 3), 'VALID', (1, 1), 1, LAST),
    'channels first, groups': ((6, 7), (3, 3), (2, 2), 'SAME', (1, 1), 2, FIRST),
    'a window that steps over entries': ((9, 8), (2, 3), (2, 2), 'SAME', (2, 3), 1, LAST),
    'strides that share a factor': ((11, 9), (3, 2), (4, 3), [(2, 3), (3, 1)], (2, 1), 1, LAST),
    'phases that meet nothing': ((8, 8), (1, 2), (2, 3), 'SAME', (1, 1), 1, LAST),
    'one axis strided': ((5, 6), (3, 3), (1, 2), 'SAME', (1, 2), 1, FIRST),
    'a sequence': ((9,), (4,), (3,), 'SAME', (1,), 1, ('NWC', 'WIO', 'NWC')),
    'a volume': ((4, 5, 6), (2, 3, 3), (2, 1, 3), 'SAME', (1, 1, 1), 1,
                 ('NDHWC', 'DHWIO', 'NDHWC')),
}


def pulled(places, window, strides, padding, dilation, groups, numbers):
  """The vjp of a strided convolution, and a cotangent."""
  last = numbers[0].endswith('C')
  x = RNG.randn(*((2, *places, 4) if last else (2, 4, *places)))
  w = jnp.asarray(RNG.randn(*((*window, 4 // groups, 6) if last else (6, 4 // groups, *window))))
  function = lambda x: lax.conv_general_dilated(
      x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers,
      feature_group_count=groups)
  y, back = jax.vjp(jax.jit(function), x)
  return lambda g: back(g)[0], jnp.asarray(RNG.randn(*y.shape))


@pytest.mark.usefixtures('x64')
def test_the_same_numbers():
  """Of all kinds of strides, windows, paddings, groups, axes; and mapped over cotangents."""
  made = {name: pulled(*case) for name, case in CASES.items()}
  both = lambda make: jax.jit(lambda gs: {name: make(made[name][0])(g) for name, g in gs.items()})
  cotangents = {name: g for name, (_, g) in made.items()}
  got, want = both(undilated)(cotangents), both(lambda back: back)(cotangents)
  for name in CASES:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-12, err_msg=name)
  back, g = made['as in networks']
  several = jnp.stack([g, 2 * g])
  np.testing.assert_allclose(jax.jit(jax.vmap(undilated(back)))(several)[1],
                             2 * got['as in networks'], rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='elsewhere the op stays as it is')
@pytest.mark.usefixtures('x64')
def test_no_zeros():
  """The compiled program spreads no input."""
  back, g = pulled(*CASES['as in networks'])
  program = lambda function: jax.jit(function).lower(g).compile().as_text()
  assert 'lhs_dilate' in program(back) and 'lhs_dilate' not in program(undilated(back))
