"""A small decoder-only transformer (Vaswani et al., 2017, arXiv 1706.03762), pre-norm."""
import flax.linen as nn
import jax
import jax.numpy as jnp


class TransformerBlock(nn.Module):
  """Causal self-attention and a GELU MLP of four times the width, each added to the stream.

  The kernels that write to the stream begin at zero, so that a block begins as the identity (as in
  Fixup, Zhang et al., 2019, arXiv 1901.09321).

  Attributes:
    heads: of the attention; divides the width.
  """
  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps x [n, T, width] to the same shape; `mask` [n, 1, T, T] says who sees whom."""
    width = x.shape[-1]
    attention = nn.MultiHeadDotProductAttention(
        self.heads, out_kernel_init=nn.initializers.zeros, name='attention')
    x = x + attention(nn.LayerNorm()(x), mask=mask)
    hidden = nn.gelu(nn.Dense(4 * width, name='up')(nn.LayerNorm()(x)))
    return x + nn.Dense(width, kernel_init=nn.initializers.zeros, name='down')(hidden)


class Transformer(nn.Module):
  """Token and learned position embeddings, pre-norm blocks, a last LayerNorm, a readout.

  The readout begins at zero too: the first prediction is uniform.

  Attributes:
    classes: number of tokens, in and out.
    layers: number of blocks.
    width: of the stream that the blocks add to.
    heads: of each attention; divides `width`.
    positions: length of the longest sequence.
  """
  classes: int = 10
  layers: int = 2
  width: int = 128
  heads: int = 4
  positions: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps tokens [n, T] to logits [n, T, classes]; position t sees tokens 0 to t.

    Raises:
      ValueError: if T is more than `positions`.
    """
    del train  # The same in training and evaluation.
    if x.shape[1] > self.positions:  # Rows that are not there would be read as NaN.
      raise ValueError(f'sequences of {x.shape[1]} tokens need as many positions, and the '
                       f'transformer has {self.positions}: Transformer(positions={x.shape[1]}).')
    # With a batch axis, so that a rule that works sample by sample finds the samples.
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    stream = (nn.Embed(self.classes, self.width, name='tokens')(x)
              + nn.Embed(self.positions, self.width, name='places')(places))
    mask = nn.make_causal_mask(x)
    for layer in range(self.layers):
      stream = TransformerBlock(self.heads, name=f'block_{layer}')(stream, mask)
    readout = nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name='readout')
    return readout(nn.LayerNorm()(stream))
