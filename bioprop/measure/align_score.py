r"""The alignment score: whether weights grew towards the activities that the initial network had.

Boopathy & Fiete (2022, arXiv 2106.08453) show that the weights of wide networks move by

  W(t) - W(0)  ->  - SUM_i INT_0^t a0(x_i)^T delta0(x_i; e_i(s)) ds ,

a sum over examples of the initial network's presynaptic activities a0 times its backpropagated
errors delta0, whatever of backprop and the Align rules they learn by. Written out that is the
change of a *shadow* network which learns by align_zero from the errors of the trained one. Of both
changes the Gram operator on a layer's input space is taken, and the score is its cosine:

  score = <A, B> / (|A| |B|) ,   A = dW dW^T ,   B the same of the shadow (y = a W: W is [in, out]).

It is 1 where the two agree up to a rotation of the outputs. The control shuffles the entries of dW,
and is what two changes without common structure come to.

For a layer with input [n, features] the inner products are exact. For every other, a convolution
above all, A is an operator on whole images, and <A, B> = E <A v, B v> over Gaussian noise v.
"""
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bioprop.errors import MeasureError
from bioprop.typing import Array, Key, PyTree


class AlignmentScore(NamedTuple):
  """One layer's score, in [-1, 1]; NaN if it or its shadow did not move.

  It is the cosine <A, B> / (|A| |B|) of A = dW dW^T, of the change dW [in, out] of the weights, and
  B, the same of the shadow's: 1 where both agree up to a rotation of the outputs.

  Attributes:
    score: of the change of the weights with the shadow's.
    control: of the change with its entries shuffled.
  """
  score: Array
  control: Array


class Layer(Protocol):
  """What is to be known of a layer; `bioprop.measure.layers` gives those of a model.

  Attributes:
    weights: shape and dtype of each weight by its path in the parameters, as the layer sees it.
    x: shape and dtype of the layer's input, [n, ...].
  """
  weights: Mapping[str, jax.ShapeDtypeStruct]
  x: jax.ShapeDtypeStruct

  def linear(self, weights: Mapping[str, Array], x: Array) -> Array:
    """The layer's output without biases."""


def alignment_scores(
    layers: Mapping[str, Layer],
    change: PyTree,
    shadow: PyTree,
    *,
    key: Key,
    probes: int = 1000,
) -> dict[str, AlignmentScore]:
  """Measures how far each layer's weights moved as those of a shadow network did.

  The shadow's pseudogradient at a step is that of align_zero at the trained network's parameters:
  `jax.grad` of the loss of `bioprop.plug(model, 'align_zero')` with the feedback
  {'initial': initial parameters}; see bioprop/bench/align_score.py.

  Args:
    layers: the network's, as `bioprop.measure.layers(model, x)` gives them.
    change: what its parameters have moved by since the start, a tree of them (for NNX as
      `nnx.to_pure_dict(nnx.state(model, nnx.Param))` gives it).
    shadow: what the shadow's have moved by.
    key: for the noise and the shuffling.
    probes: how many noise images, at least, estimate a product that is not exact.

  Returns:
    The scores by layer path; [layers] where a scan runs a stack of layers.

  Raises:
    MeasureError: if the trees have not the layers' weights, or probes is not positive.
  """
  if probes < 1:
    raise MeasureError(f'probes is {probes}, and must be at least 1: noise estimates the products.')
  moved, shadowed = _by_path(change), _by_path(shadow)
  scores = {}
  for number, (label, layer) in enumerate(layers.items()):
    own = _of(layer, moved, 'change')
    other = _of(layer, shadowed, 'shadow')
    scores[label] = _stacked(_Scored(layer, probes), own, other, jax.random.fold_in(key, number))
  return scores


@dataclasses.dataclass(frozen=True, eq=False)
class _Scored:
  """The scores of one layer."""
  layer: Layer
  probes: int

  def __call__(self, own, other, key: Key) -> AlignmentScore:
    noise_key, *keys = jax.random.split(key, 1 + len(own))
    shuffled = {path: jax.random.permutation(k, w.reshape(-1)).reshape(w.shape)
                for k, (path, w) in zip(keys, own.items())}
    score = lambda changed: self._cosine(changed, other, noise_key)
    return AlignmentScore(score(own), score(shuffled))

  def _cosine(self, own, other, key) -> Array:
    if not jnp.issubdtype(self.layer.x.dtype, jnp.inexact):  # Tokens, each of which chooses a row.
      (a,), (b,) = own.values(), other.values()
      inner = lambda a, b: jnp.sum(jnp.square(a.T @ b))  # trace(a a^T b b^T)
      return inner(a, b) / jnp.sqrt(inner(a, a) * inner(b, b))

    def products(v):
      fs = [self._gram_of(weights, v) for weights in (own, other)]
      return jnp.stack([jnp.vdot(f, g) for f in fs for g in fs])

    aa, ab, _, bb = jax.lax.map(lambda inputs: products(self._inputs(inputs)),
                                self._batches(key)).sum(0)
    return ab / jnp.sqrt(aa * bb)

  def _batches(self, key) -> Array:
    """What `_inputs` makes inputs of: numbers of unit vectors, or keys."""
    x = self.layer.x
    if x.ndim == 2:
      return jnp.arange(-(-x.shape[1] // x.shape[0]))
    return jax.random.split(key, -(-self.probes // x.shape[0]))

  def _inputs(self, batch) -> Array:
    """All unit vectors, batch by batch, so that the sum over them is exact; or noise."""
    x = self.layer.x
    if x.ndim == 2:
      return jax.nn.one_hot(batch * x.shape[0] + jnp.arange(x.shape[0]), x.shape[1], dtype=x.dtype)
    return jax.random.normal(batch, x.shape, x.dtype)

  def _gram_of(self, weights, v: Array) -> Array:
    """A v = dW^T-then-dW: the layer's linear map, and its adjoint."""
    y, adjoint = jax.vjp(lambda v: self.layer.linear(weights, v), v)
    return adjoint(y)[0]


def _stacked(scored: _Scored, own, other, key: Key) -> AlignmentScore:
  """The score; one for each layer of a stack."""
  path, shape = next(iter(scored.layer.weights.items()))
  stack = own[path].shape[:own[path].ndim - shape.ndim]
  measure = scored
  for _ in stack:
    measure = jax.vmap(measure)
  return jax.jit(measure)(own, other, jax.random.split(key, stack) if stack else key)


def _by_path(tree: PyTree) -> dict[str, Array]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {'/'.join(str(entry.key) for entry in path if hasattr(entry, 'key')): leaf
          for path, leaf in leaves}


def _of(layer: Layer, tree: Mapping[str, Array], name: str) -> dict[str, Array]:
  """The layer's own weights, from a tree of all."""
  for path, shape in layer.weights.items():
    if path not in tree or tree[path].shape[tree[path].ndim - shape.ndim:] != shape.shape:
      there = f'of shape {tree[path].shape}' if path in tree else 'not there'
      raise MeasureError(
          f'{name} is to hold what the weights have moved by, and {path!r}, of shape {shape.shape} '
          f'in the model, is {there}; it has {", ".join(sorted(tree)) or "nothing"}. Give the '
          f'difference of two trees of the model\'s parameters: '
          f'jax.tree.map(jnp.subtract, params, initial).')
  return {path: tree[path] for path in layer.weights}
