"""Kernels that are read from Flax models, beside those of neural-tangents, which is told them."""
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop

# Printed by neural-tangents 0.6.5 (jax 0.4.30, numpy 1.26), rounded to nine places:
#   jax.config.update('jax_enable_x64', True)
#   x, x2 = np.random.RandomState(0).randn(2, 5, 5, 2), np.random.RandomState(1).randn(1, 5, 5, 2)
#   def conv(s=(1, 1), p='SAME', f=(3, 3)):
#     return stax.Conv(8, f, s, p, W_std=1.3, b_std=.4, parameterization='ntk')
#   dense = lambda n=1: stax.Dense(n, W_std=1.3, b_std=.4, parameterization='ntk')
#   norm = lambda: stax.LayerNorm(axis=-1, eps=1e-6)
#   flat: serial(conv((2, 2)), Relu(), conv(p='VALID', f=(2, 3)), Erf(), Flatten(), dense())
#   pool: serial(conv((2, 2)), Relu(), conv(), Erf(), GlobalAvgPool(), dense())
#   avg: serial(conv(), Relu(), AvgPool((2, 2), (2, 2)), conv(), Relu(), Flatten(), dense())
#   residual: serial(conv(), FanOut(2), parallel(Identity(), serial(Relu(), conv())),
#                    FanInSum(), Relu(), GlobalAvgPool(), dense())
#   circular: serial(conv(p='CIRCULAR'), Relu(), conv(p='CIRCULAR'), Relu(), GlobalAvgPool(),
#                    dense())
#   norm: serial(conv(), norm(), Relu(), conv(), norm(), Erf(), GlobalAvgPool(), dense())
# Of each the NTK of x, that of x with x2, and the covariances of outputs of both.
PEER = {
    'flat': ([[3.229463332, 0.996089251], [0.996089251, 2.966400038]],
             [[1.202184686], [1.063483291]],
             [[1.045143773, 0.53388502], [0.53388502, 0.995541625]],
             [[0.594896046], [0.555211803]]),
    'pool': ([[0.880224346, 0.720868875], [0.720868875, 0.870634641]],
             [[0.735842199], [0.742445144]],
             [[0.460608011, 0.423293794], [0.423293794, 0.460009314]],
             [[0.428557675], [0.431160046]]),
    'avg': ([[1.400339069, 0.752716595], [0.752716595, 1.086226951]],
            [[0.911714699], [0.785935752]],
            [[0.668079756, 0.497203304], [0.497203304, 0.545355503]],
            [[0.546648419], [0.490116621]]),
    'residual': ([[1.837149099, 1.440300285], [1.440300285, 1.398466537]],
                 [[1.526014459], [1.341231053]],
                 [[1.338980606, 1.116518424], [1.116518424, 1.018940361]],
                 [[1.162982252], [1.018948294]]),
    'circular': ([[1.773925549, 1.407478257], [1.407478257, 1.295179136]],
                 [[1.519964038], [1.262187743]],
                 [[1.166302181, 0.965943261], [0.965943261, 0.842128633]],
                 [[1.038720866], [0.871695767]]),
    'norm': ([[0.909435437, 0.837497788], [0.837497788, 0.919196029]],
             [[0.861723672], [0.863731991]],
             [[0.495376013, 0.477627593], [0.477627593, 0.498513086]],
             [[0.485130035], [0.486130103]]),
}
NORMAL = nn.initializers.normal(1.0)


class Affine(nn.Module):
  """1.3 W x / sqrt(fan-in) + 0.4 b, W and b ~ N(0, 1), as neural-tangents has it."""
  layer: type
  fan_in: int
  options: tuple

  @nn.compact
  def __call__(self, x):
    layer = self.layer(*self.options[0], use_bias=False, kernel_init=NORMAL, param_dtype=x.dtype,
                       **dict(self.options[1]))
    y = layer(x)
    bias = self.param('bias', NORMAL, (1,) * (y.ndim - 1) + y.shape[-1:], x.dtype)
    return 1.3 * y / math.sqrt(self.fan_in) + 0.4 * bias


def conv(x, strides=(1, 1), padding='SAME', size=(3, 3)):
  options = (8, size, strides), (('padding', padding),)
  return Affine(nn.Conv, math.prod(size) * x.shape[-1], options)(x)


def dense(x):
  return Affine(nn.Dense, x.shape[-1], ((1,), ()))(x)


def norm(x):
  return nn.LayerNorm(use_bias=False, use_scale=False, param_dtype=x.dtype)(x)


def flat(x):
  x = jax.lax.erf(conv(nn.relu(conv(x, (2, 2))), padding='VALID', size=(2, 3)))
  return dense(x.reshape(len(x), -1))


def pool(x):
  return dense(jax.lax.erf(conv(nn.relu(conv(x, (2, 2))))).mean((1, 2)))


def avg(x):
  x = nn.relu(conv(x))[:, :4, :4].reshape(len(x), 2, 2, 2, 2, -1).mean((2, 4))
  x = nn.relu(conv(x))
  return dense(x.reshape(len(x), -1))


def residual(x):
  x = conv(x)
  return dense(nn.relu(x + conv(nn.relu(x))).mean((1, 2)))


def circular(x):
  x = nn.relu(conv(nn.relu(conv(x, padding='CIRCULAR')), padding='CIRCULAR'))
  return dense(x.mean((1, 2)))


def normed(x):
  return dense(jax.lax.erf(norm(conv(nn.relu(norm(conv(x)))))).mean((1, 2)))


NETS = {'flat': flat, 'pool': pool, 'avg': avg, 'residual': residual, 'circular': circular,
        'norm': normed}
single = {'norm'}  # Flax's norms are of float32.


class Net(nn.Module):
  """One of the networks."""
  name_of: str

  @nn.compact
  def __call__(self, x):
    return NETS[self.name_of](x)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETS)
def test_against_neural_tangents(name):
  """NTK and covariances, of one set of samples and of two."""
  with jax.enable_x64(name not in single):
    check(name, *((jnp.float32, 5e-6) if name in single else (jnp.float64, 2e-9)))


def check(name, dtype, close):
  x, x2 = (jnp.asarray(np.random.RandomState(seed).randn(n, 5, 5, 2), dtype)
           for seed, n in ((0, 2), (1, 1)))
  for other, ntk, nngp in ((None, *PEER[name][::2]), (x2, *PEER[name][1::2])):
    found = bioprop.theory.infinite(Net(name), x, other, variances={'*': 1.0})
    assert found.ntk.dtype == dtype
    np.testing.assert_allclose(found.ntk, ntk, rtol=close, atol=0)
    np.testing.assert_allclose(found.nngp, nngp, rtol=close, atol=0)
    np.testing.assert_array_equal(found.entk, found.ntk)
    assert found.error == 0
