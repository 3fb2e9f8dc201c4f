"""B = W gives backprop's gradient, exactly, for every op: no axis is swapped anywhere."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

F = jnp.float64
Dense = functools.partial(nn.Dense, param_dtype=F)
Conv = functools.partial(nn.Conv, param_dtype=F)
ConvTranspose = functools.partial(nn.ConvTranspose, param_dtype=F)

SHAPES = {'flat': (4, 6), 'line': (3, 8, 4), 'image': (2, 6, 7, 4), 'volume': (2, 4, 3, 4, 4)}
OPS = {
    'dense': ('flat', Dense(5)),
    'dense_without_bias': ('flat', Dense(5, use_bias=False)),
    'dense_on_positions': ('line', Dense(5)),
    'general_to_two_axes': ('line', nn.DenseGeneral((3, 2), param_dtype=F)),
    'general_from_two_axes': ('line', nn.DenseGeneral(5, axis=(-2, -1), param_dtype=F)),
    'general_from_inner_axis': ('image', nn.DenseGeneral((3, 2), axis=(1, 3), param_dtype=F)),
    'general_batched': ('line', nn.DenseGeneral(5, axis=-1, batch_dims=(0,), param_dtype=F)),
    'conv1d': ('line', Conv(5, (3,), strides=2)),
    'conv1d_causal': ('line', Conv(5, (3,), padding='CAUSAL')),
    'conv2d_same': ('image', Conv(5, (3, 2))),
    'conv2d_valid_strided': ('image', Conv(5, (3, 2), strides=(2, 1), padding='VALID')),
    'conv2d_explicit': ('image', Conv(5, (3, 3), padding=((1, 2), (0, 1)))),
    'conv2d_circular': ('image', Conv(5, (3, 3), padding='CIRCULAR')),
    'conv2d_reflect': ('image', Conv(5, (3, 3), padding='REFLECT')),
    'conv2d_kernel_dilated': ('image', Conv(5, (2, 3), kernel_dilation=(2, 1))),
    'conv2d_input_dilated': ('image', Conv(5, (3, 3), input_dilation=2, padding=((1, 1), (1, 1)))),
    'conv2d_grouped': ('image', Conv(6, (3, 3), feature_group_count=2)),
    'conv2d_depthwise': ('image', Conv(8, (3, 3), feature_group_count=4, use_bias=False)),
    'conv3d': ('volume', Conv(5, (2, 3, 2), strides=(1, 2, 1))),
    'local': ('image', nn.ConvLocal(3, (3, 3), param_dtype=F)),
    'transpose': ('image', ConvTranspose(5, (3, 3), strides=(2, 2))),
    'transpose_circular': ('image', ConvTranspose(5, (3, 3), strides=(2, 2), padding='CIRCULAR')),
    'transpose_valid_flipped': ('line', ConvTranspose(
        5, (3,), strides=(2,), padding='VALID', transpose_kernel=False)),
    'einsum': ('line', nn.Einsum((4, 3, 2), 'ntd,dab->ntab', param_dtype=F)),
    'einsum_bias': ('line', nn.Einsum((4, 8, 2), 'ntd,dtb->ntb', param_dtype=F)),
}


class Between(nn.Module):
  """A pointwise layer, the op, a readout: the op's feedback decides for the first layer."""
  op: nn.Module

  @nn.compact
  def __call__(self, x):
    x = self.op(nn.tanh(Dense(x.shape[-1], name='first')(x)))
    return Dense(3, name='readout')(nn.tanh(x).reshape((x.shape[0], -1)))


def draw(*shape):
  """Normals."""
  return jnp.asarray(np.random.RandomState(0).randn(*shape))


@pytest.mark.parametrize('name', OPS)
def test_op(x64, tools, name):
  """Every op that reads an array."""
  shape, op = OPS[name]
  variables = tools.check_exact(Between(op), draw(*SHAPES[shape]))
  kernel = variables['params']['op']['kernel']
  assert variables['feedback']['op']['kernel'].shape == kernel.shape


def test_masked_convolution(x64, tools):
  """A mask is part of the op."""
  mask = jnp.asarray(np.random.RandomState(1).rand(3, 3, 4, 5) > 0.5, F)
  tools.check_exact(Between(Conv(5, (3, 3), mask=mask)), draw(2, 4, 4, 4))


class Language(nn.Module):
  """Tokens in, logits out through the same matrix."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(11, 6, param_dtype=F)
    h = embed(tokens)
    return embed.attend(h + nn.tanh(Dense(6)(h)))


def test_tied_embedding(x64, tools):
  """Lookup and readout share a matrix; the readout alone has feedback."""
  variables = tools.check_exact(Language(), jnp.arange(12).reshape(4, 3) % 11)
  assert variables['feedback']['Embed_0']['embedding'].shape == (11, 6)


class Attention(nn.Module):
  """A transformer block with dropout; self- and cross-attention."""

  @nn.compact
  def __call__(self, x):
    attend = functools.partial(nn.MultiHeadDotProductAttention, 2, param_dtype=F,
                               dropout_rate=0.1, deterministic=False)
    h = Dense(8)(x)
    h = h + attend()(nn.LayerNorm(param_dtype=F)(h))
    h = h + attend(normalize_qk=True)(h, h[:, :2], h[:, :2])
    return Dense(5)(h + Dense(8)(nn.gelu(Dense(16)(nn.RMSNorm(param_dtype=F)(h)))))


@pytest.mark.slow
def test_attention(x64, tools):
  """Query, key, value and output projections."""
  with jax.numpy_dtype_promotion('standard'):  # flax's LayerNorm adds a float32 epsilon.
    tools.check_exact(Attention(), draw(2, 3, 4), rtol=1e-11)
