"""layers: the layers of a model as functions of their own, for measurements."""
import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from bioprop.network.feedback import front
from bioprop.network.values import Frame, SeenOp
from bioprop.probes.fronts import make_model
from bioprop.probes.made import Made
from bioprop.probes.model import plain
from bioprop.typing import Array


def layers(model: nn.Module | nnx.Module, *sample: Any, **kwargs: Any) -> dict[str, 'Layer']:
  """Cuts a model into its layers, each at its first call. Computes nothing.

  Args:
    model: an unbound linen module or an NNX module, plain or plugged; it stays as it is.
    *sample: the model's inputs, as for `init`: arrays, or `jax.ShapeDtypeStruct`s.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    The layers that a rule can act on, by their path, in the order of their calls. Of a layer with
    several weights each is one, by its own path.

  Raises:
    SampleError: if there is no sample, or the model cannot be called on it.
  """
  made = make_model('measure.layers', model, sample, None, kwargs)
  network = plain(made.seen(made.shapes, sample)).traced.network
  named, found = labels(network.ops), {}
  for op, frame in frames_of(network.frame):
    found.setdefault(named[op.number], Layer(named[op.number], op, frame))
  return {label: found[label] for label in dict.fromkeys(named.values())}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
  """One layer, at its first call.

  Attributes:
    label: the layer's path.
    op: what it does.
    frame: where that stands.
  """
  label: str
  op: SeenOp
  frame: Frame

  @functools.cached_property
  def weights(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each weight, by its path in the model's parameters, as the layer sees it:
    in a stack of layers that a scan runs, of one layer."""
    avals = (self.frame.avals[at] for at in self._made.leaves)
    return {path: jax.ShapeDtypeStruct(aval.shape, aval.dtype)
            for path, aval in zip(self._paths, avals)}

  @property
  def x(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the layer's input, [n, ...]."""
    return front(self.op.x_aval, self.op.seen_x.axis)

  @property
  def y(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the layer's output, [n, ...]."""
    return front(self.op.y_aval, self.op.seen_y.axis)

  def linear(self, weights: Mapping[str, Array], x: Array) -> Array:
    """What the weights do to an input, without biases: like the layer's output.

    Args:
      weights: values of the weights, by path.
      x: an input, shaped like the layer's.
    """
    params = {self.op.name: self._made([weights[path] for path in self._paths])}
    if self.op.bias is not None:
      params[self.op.bias_name] = self._filled(self.op.bias, jnp.zeros)
    known = {at: self.frame.constants.get(at, self._filled(at, jnp.ones)) for at in self.op.others}
    return self.op.op(known, front=True)(params, x)

  @functools.cached_property
  def _made(self) -> 'Made':
    return Made(self.frame, self.op.weight)

  @property
  def _paths(self) -> list[str]:
    # What was put together of several outside of a loop has the paths of all, and is no parameter.
    return [' + '.join(self.frame.seen[at].paths) for at in self._made.leaves]

  def _filled(self, at: int, fill) -> Array:
    aval = self.frame.avals[at]
    return fill(aval.shape, aval.dtype)


def labels(ops: Sequence[SeenOp]) -> dict[int, str]:
  """What each op is called, by its number: its layer's path, or the parameter's where the layer has
  several weights."""
  layer = lambda op: op.path.rpartition('/')[0]
  weights = collections.Counter(path.rpartition('/')[0] for path in {op.path for op in ops})
  return {op.number: layer(op) if weights[layer(op)] == 1 else op.path for op in ops}


def frames_of(frame: Frame) -> Iterator[tuple[SeenOp, Frame]]:
  """Every op, and the frame in which it stands."""
  for step in frame.steps:
    if isinstance(step, SeenOp):
      yield step, frame
    else:
      for inner in step.frames:
        yield from frames_of(inner)
