"""Gated linear networks; see `GatedLinear`."""
import dataclasses
import math

import jax
import jax.numpy as jnp

from bioprop.errors import (
  FeedbackMemoryError,
  FeedbackMissingError,
  NothingMatchedError,
  RuleOptionError,
  UnsupportedLayerError,
)
from bioprop.rules.base import check_range
from bioprop.rules.broadcast import at_least_float32
from bioprop.rules.network import NetworkRule, stop
from bioprop.typing import Array, PyTree

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GatedLinear(NetworkRule):
  r"""Gated linear network: fixed random gates of the input in place of each ReLU, exact gradients.

  Veness et al. (2021, arXiv 1910.01526) gate linear units by the network's input; trained by
  gradient descent they are the rule GLN of Bordelon & Pehlevan (2023, arXiv 2210.02157). Every
  ReLU, $\phi(h) = 1[h > 0]\, h$, takes its gate from a frozen random projection of the network's
  input $x$ and not from its own argument,

  $$ \phi(h_l) \;\to\; 1[m_l > 0]\, h_l , \qquad
     m_l = M_l\, x / \sqrt{D} , \qquad M_l \sim N(0, 1) \text{ frozen} $$

  forward and backward, and backprop through that network is exact. It is linear in each layer's
  weights given $x$. What a model returns under this rule is the gated network's output, not its
  own; so are the running statistics of its norms.

  Attributes:
    input: which of the model's arrays is x, counted from 0, keyword arguments last. None: the only
      floating one that has a sample and a feature axis.
    max_gib: the largest projection M that one ReLU may have, in GiB (2**30 bytes).

  Gates:
    Which ReLUs are found is told in bioprop/network/gates.py. What the gates of h see:

    | h | x | the gates see |
    |---|---|---|
    | [n, c] | any | all of the sample's x, flattened |
    | [n, h', w', c] | [n, H, W, C] | x, resized to h' x w' (linear, antialiased), per location |
    | [n, T, c] | [n, T, C] | x, per position |
    | of another rank than x | | per sample, and per position along leading axes of both |

    What is left of either is flattened, and D is the number of features that they see. A grid of
    one location is as good as h [n, c]: it sees all of x. An image of one channel has at each
    location one number, so that the gates of a convolution split its channels by that pixel's sign
    alone.

  Cost:
    A step takes 1.27 of plain Flax's on the MLP. Memory: M, which has an entry for each pair of an
    input and a unit.

  When it works:
    Networks of ReLUs, as many as the gates' features can tell apart: digits 97.3 % (bp 97.8), MNIST
    97.4 in 5 epochs with two hidden layers (98.2 with tanh). Models without a ReLU are refused, and
    so are ReLUs in loops and branches.

  Example:
    ```python
    import bioprop, flax.linen as nn, jax
    model = bioprop.plug(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]), 'gln')
    variables = model.init(jax.random.key(0), jax.numpy.ones((8, 64)))
    ```
  """
  input: int | None = None
  max_gib: float = 1.0
  papers = ('veness2021gated', 'bordelon2023influence')
  own_forward = True
  needs_sample = True

  def __post_init__(self):
    check_range(self, 'max_gib', 0.0)
    if self.input is not None and (type(self.input) is not int or self.input < 0):
      raise RuleOptionError(
          f'{type(self).__name__} got input={self.input!r}, but input must be None or the number '
          f'of one of the model\'s arrays, from 0. Give it as bioprop.make(\'gln\', input=0) or '
          f'on the command line as --config.rule_options.input=0.')

  def init_feedback(self, key, network, params):
    """{'gates': {'0': M, ...}}, M [features of x, features of h], in the ReLUs' order.

    Raises:
      NothingMatchedError: if the network has no ReLU.
      UnsupportedLayerError: if there is no input to make gates of, or a ReLU cannot have any.
      FeedbackMemoryError: if an M would take more than `max_gib`.
    """
    found = network.relus(params)
    if not found:
      raise NothingMatchedError(
          'the model has no ReLU of anything that its inputs reach, and gln replaces ReLUs by '
          'gates. It looked for jax.nn.relu (nn.relu, nnx.relu) and jnp.maximum(h, 0), also inside '
          'jit and remat; smooth, leaky and clipped nonlinearities (tanh, gelu, leaky_relu, relu6) '
          'and jnp.where are none. Write nn.relu(h) in the model (in bioprop train: '
          '--config.model_options.activation=relu), or choose a rule that takes any '
          'nonlinearity, such as \'fa\'.')
    # As JAX sees it: numpy's float64 is float32.
    x = jax.eval_shape(lambda a: a, self.gating_input(network.inputs))
    return {'gates': {str(i): self._draw(jax.random.fold_in(key, i), i, x, h.shape)
                      for i, h in enumerate(found)}}

  def run(self, network, params, feedback):
    """The gated network's output and state; see `NetworkRule.run`.

    Raises:
      FeedbackMissingError: if the feedback was made for other ReLUs or shapes.
    """
    if 'gates' not in feedback:
      raise FeedbackMissingError(
          f'the feedback holds {sorted(feedback)}, and gln needs \'gates\': another rule made it. '
          f'Run init of this plugged model again, or bioprop.plug for an NNX model: '
          f'variables = model.init(key, x).')
    gates, x = feedback['gates'], jnp.asarray(self.gating_input(network.inputs))

    def gated(number, h):
      if str(number) not in gates:
        raise _other_count(len(gates), f'at least {number + 1}')
      return jax.lax.select(_gate(x, gates[str(number)], number, h.shape), h, jnp.zeros_like(h))

    outs, count = network.gated(params, gated)
    if count != len(gates):
      raise _other_count(len(gates), str(count))
    return outs

  def gating_input(self, inputs: PyTree) -> Array:
    """The input [n, ..., features] that the gates are projections of."""
    arrays = jax.tree.leaves(inputs)
    asked = arrays if self.input is None else arrays[self.input:self.input + 1]
    usable = [a for a in asked if jnp.issubdtype(a.dtype, jnp.floating) and a.ndim >= 2]
    if len(usable) == 1:
      return usable[0]
    named = ', '.join(f'{i}: {a.dtype} {tuple(a.shape)}' for i, a in enumerate(arrays)) or 'none'
    raise UnsupportedLayerError(
        f'gln makes its gates of one floating array of two or more axes among the model\'s '
        f'arguments, and with input={self.input} there are {len(usable)} to choose from. The '
        f'arrays are: {named}. If there are several, say which: bioprop.make(\'gln\', input=0), '
        f'or --config.rule_options.input=0. Pixels can be cast: model.apply(variables, '
        f'x.astype(jnp.float32)). Tokens are no numbers to project: choose a rule that leaves '
        f'the nonlinearity alone, such as \'fa\'.')

  def _draw(self, key, number: int, x: Array, h: Shape) -> Array:
    shape, dtype = _layout(number, x.shape, h)[2], at_least_float32(x.dtype)
    gib = math.prod(shape) * dtype.itemsize / 2**30
    if gib > self.max_gib:
      raise FeedbackMemoryError(
          f'the gates of ReLU {number}, of shape {h}, would need a projection {dtype.name} {shape} '
          f'of the input {x.shape}, which takes {gib:.3g} GiB, and max_gib allows '
          f'{self.max_gib:g} GiB for one ReLU. Choose a larger bound: '
          f'bioprop.make(\'gln\', max_gib={math.ceil(gib)}) or '
          f'--config.rule_options.max_gib={math.ceil(gib)}.')
    return jax.random.normal(key, shape, dtype)


def _gate(x: Array, matrix: Array, number: int, h: Shape) -> Array:
  """Whether each unit of h is open: 1[m > 0], boolean of h's shape."""
  shape = _layout(number, x.shape, h)[2]
  if matrix.shape != shape:
    raise FeedbackMissingError(
        f'the gates of ReLU {number}, of shape {h}, need a projection {shape} of the input '
        f'{x.shape}, and init made it as {matrix.shape}: the model was initialised on inputs of '
        f'another size (the batch aside), or with other layers. Run init on inputs of this size: '
        f'variables = model.init(key, x), or bioprop.plug(model, \'gln\', rngs, x).')
  x, matrix = stop((x, matrix.astype(x.dtype)))
  # The division by sqrt(D) that makes m of order one would not change its sign.
  return (seen_by_gates(x, number, h).reshape((-1, shape[0])) @ matrix > 0).reshape(h)


def seen_by_gates(x: Array, number: int, h: Shape) -> Array:
  """What of x the gates of h are projections of, [samples, *positions that h and x share, D]."""
  grid, shared, shape = _layout(number, x.shape, h)
  x = x if grid == x.shape else jax.image.resize(x, grid, 'linear')
  return x.reshape((*grid[:shared], shape[0]))


def _layout(number: int, x: Shape, h: Shape) -> tuple[Shape, int, Shape]:
  """How gates of h see x.

  Returns:
    The shape that x is resized to, how many axes are samples or positions, and the shape of M.
  """
  if len(h) < 2 or h[0] != x[0]:
    raise UnsupportedLayerError(
        f'ReLU {number} of the network acts on an array of shape {h}, whose first axis should be '
        f'the samples and whose last the units, as the gates are projections of the input '
        f'{x} of each sample. Keep the batch as the first axis where the ReLU is, as in '
        f'h.reshape((x.shape[0], -1)), or choose a rule that leaves it alone, such as \'fa\'.')
  if len(h) == len(x) and math.prod(h[1:-1]) > 1:
    grid, shared = (*h[:-1], x[-1]), len(h) - 1
  else:
    same = [a == b for a, b in zip(x[:-1], h[:-1])]
    grid, shared = x, (*same, False).index(False)
  return grid, shared, (math.prod(grid[shared:]), math.prod(h[shared:]))


def _other_count(made: int, seen: str) -> FeedbackMissingError:
  return FeedbackMissingError(
      f'the network has {seen} ReLUs on this call, and had {made} when its gates were made: '
      f'either the feedback is another model\'s, or the model calls other layers in training than '
      f'in evaluation. Make the gates on a call like this one: variables = model.init(key, x, '
      f'train=True), or bioprop.plug(model, \'gln\', rngs, x, train=True).')
