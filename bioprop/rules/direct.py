"""Direct feedback alignment; see `DirectFeedbackAlignment`."""
import dataclasses
import math

import jax
import jax.numpy as jnp

from bioprop.errors import ErrorShapeError, FeedbackMemoryError
from bioprop.rules.base import Credit, Rule, check_choice, check_range
from bioprop.rules.broadcast import at_least_float32, shared_axes
from bioprop.rules.normalise import CHOICES, gain


@dataclasses.dataclass(frozen=True)
class DirectFeedbackAlignment(Rule):
  r"""Direct feedback alignment: `dx = B e`, `B` frozen, one per layer.

  Every layer's input receives the error $e$ of the network's output through a fixed random matrix
  of its own, in place of what came down the layers (Nøkland 2016, arXiv 1609.01596, equation 7):

  $$ dW = x^\top g , \qquad dx = B e $$

  The local derivative $\phi'(h)$ of the layer below is then taken by JAX, which gives Nøkland's
  $\delta h_l = (B_l e) \odot \phi'(h_l)$. The readout sees the true error, since nothing stands
  between it and the loss. No product with $W^\top$ is ever formed.

  Attributes:
    scale: factor on the feedback; at 1 the projected error has in expectation the error's norm.
      None: 0.1, and 0.05 for inputs with spatial axes.
    spatial: 'full', feedback of its own for each location, or 'shared', one for all locations.
    max_gib: the largest B that one layer may have, in GiB (2**30 bytes).
    normalise: 'none', or 'weights': B grows and shrinks as the weights of its layer (normalise.py).

  Positions:
    When the error has position axes that the layer's input has too ([n, T, C] and [n, T, d]), each
    position receives its own error; otherwise a sample's error is projected to all of the layer's
    input. For inputs with spatial axes ([n, h, w, c]), spatial='full' draws B for each location and
    channel; spatial='shared' draws it for each channel, and all locations receive the same signal,
    as they share a convolution's kernel (the choice of Sanfiz & Akrout 2021, BioTorch, arXiv
    2108.13446). The heads of an attention count as locations ([n, T, heads, d]).

  In time:
    Inside of a loop over steps the error is that of the whole sequence: the input of each op,
    recurrent or not, receives it through its B, at every step the same. Nothing is sent through
    recurrent weights, and what a cell carries elementwise carries the signal back, exactly.

  Scale:
    The entries of B are N(0, scale² / d), d the number of features of the layer's input. Then
    $E|B e|^2 = \mathrm{scale}^2 |e|^2$: at scale 1 the signal has the norm of the error, as
    backprop's has under an initialisation that preserves norms. But it does not descend until the
    layers above have aligned, and the activities of ReLU layers grow until then. Mean training loss
    of the first epoch on MNIST (SGD, learning rate 0.05, momentum 0.9, batch 64, gradients not
    clipped; the commands are those of `FeedbackAlignment`):

    | | bp | scale 1 | 0.5 | 0.3 | 0.1 | 0.05 | 0.03 |
    |---|---|---|---|---|---|---|---|
    | MLP, 2 x 800 ReLU | 0.17 | 8e3 | 16 | 0.50 | 0.32 | | |
    | LeNet-5 | 0.17 | 1e19 | 7e20 | 7e18 | 4e13 | 0.42 | 0.50 |

    The default is therefore 0.1, and 0.05 for inputs with spatial axes, where layers tend to be
    many. Larger feedback learns faster where it can be borne: by saturating units (tanh), which
    bound their own activities, and with gradients clipped by their norm.

  Cost:
    A step takes 0.80 of plain Flax's on the MLP, 0.60 on LeNet-5, 0.84 on ResNet-20, 0.70 on
    ResNet-18, 0.97 on a transformer. Memory 1.13 on ResNet-18. With spatial='full' B has a row for
    each output and a column for each number in a sample's input: 1000 classes and 112 x 112
    locations of 64 channels make 3 GiB, in one layer; what is larger than `max_gib` is refused
    before anything is allocated, with the words to type instead.

  When it works:
    As `fa`: MNIST 98.1 % (bp 98.3) with two hidden layers, 98.6 (99.3) with LeNet-5, CIFAR-10 with
    LeNet 52 after 8 epochs (65 after 3), 2.43 nats (1.53) for a transformer. Deep convolutional
    networks want gradients clipped by their norm.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    net = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(10)])
    model = bioprop.plug(net, bioprop.make('dfa', spatial='shared'))
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 16, 16, 3)))
    ```
  """
  scale: float | None = None
  spatial: str = 'full'
  max_gib: float = 1.0
  normalise: str = 'none'
  papers = ('nokland2016direct',)
  reads_error = True
  multiplies = True

  def __post_init__(self):
    if self.scale is not None:
      check_range(self, 'scale', 0.0)
    check_choice(self, 'spatial', ('full', 'shared'))
    check_range(self, 'max_gib', 0.0)
    check_choice(self, 'normalise', CHOICES)

  def init_feedback(self, key, site):
    """B [error features, features of x]; see `Rule.init_feedback`.

    Raises:
      ErrorShapeError: if the error cannot be matched with the layer's input.
      FeedbackMemoryError: if B would take more than `max_gib`.
    """
    if not site.sends:
      return None
    rows, features, samples = self._layout(site.x.shape, site.error.shape, site.path)
    spatial = len(site.x.shape) > len(samples) + 1
    scale = (0.05 if spatial else 0.1) if self.scale is None else self.scale
    columns = site.x.shape[-1] if self.spatial == 'shared' else features
    dtype = at_least_float32(site.x.dtype)
    self._check_memory(site, rows, columns, dtype)
    return {'error': jax.random.normal(key, (rows, columns), dtype)
                     * jnp.asarray(scale / math.sqrt(features), dtype)}

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; B e sent to its input; see `Rule.backward`.

    Raises:
      ErrorShapeError: if the feedback was made for other shapes.
    """
    update = op.update(params, x, g)
    if feedback is None or not jnp.issubdtype(x.dtype, jnp.inexact):
      return Credit(update, None)
    b = feedback['error']
    rows, features, samples = self._layout(x.shape, e.shape)
    columns = x.shape[-1] if self.spatial == 'shared' else features
    if b.shape != (rows, columns):
      raise ErrorShapeError(
          f'a layer\'s input {x.shape} and the error {e.shape} need direct feedback of shape '
          f'{(rows, columns)}, and init made it as {b.shape}: the model was initialised on inputs '
          f'of another size (the batch aside), or calls one layer on two sizes. Run init on inputs '
          f'of this size, or use a rule whose feedback is shaped like the weights, such as \'fa\'.')
    if self.normalise == 'weights':
      b = b * gain(params[op.weights[0]]).astype(b.dtype)
    signal = e.reshape((-1, rows)).astype(x.dtype) @ b.astype(x.dtype)
    if self.spatial == 'shared':
      signal = signal.reshape(samples + (1,) * (x.ndim - len(samples) - 1) + (columns,))
      return Credit(update, jnp.broadcast_to(signal, x.shape))
    return Credit(update, signal.reshape(x.shape))

  def _check_memory(self, site, rows, columns, dtype):
    """Raises FeedbackMemoryError if B [rows, columns] is too large."""
    gib = lambda width: rows * width * dtype.itemsize / 2**30
    if gib(columns) <= self.max_gib:
      return
    channels = site.x.shape[-1]
    shared = '' if columns == channels else (
        f'one signal for all locations, which takes {gib(channels):.3g} GiB: '
        f'bioprop.make(\'dfa\', spatial=\'shared\') or --config.rule_options.spatial=shared; or ')
    raise FeedbackMemoryError(
        f'the direct feedback of the layer {site.path!r} would be {dtype.name} {(rows, columns)}, '
        f'which takes {gib(columns):.3g} GiB, and max_gib allows {self.max_gib:g} GiB for one '
        f'layer: each of the {rows} outputs has a weight of its own to each of {columns} numbers '
        f'of the layer\'s input {site.x.shape}. Choose {shared}a larger bound: '
        f'bioprop.make(\'dfa\', max_gib={math.ceil(gib(columns))}) or '
        f'--config.rule_options.max_gib={math.ceil(gib(columns))}.')

  def _layout(self, x, error, path=''):
    """Error features, input features, and the axes that are samples, for two shapes."""
    shared = shared_axes(x, error, path)
    features = math.prod(x) // math.prod(error[:shared])
    return math.prod(error[shared:]), features, error[:shared]
