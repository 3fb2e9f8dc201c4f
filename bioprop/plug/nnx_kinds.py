"""Which NNX layers are ops, and which are elementwise: literal tables."""
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx


class Kind(NamedTuple):
  """An NNX layer that is affine in its input and in its parameters.

  Attributes:
    name: what `describe` calls it.
    layer: its class; subclasses count too.
    methods: the methods that use its weights; the first argument of each is the op's input.
    weights: names of the parameters that multiply the input.
    ndim: the number of axes of a layer's weight; one with more is a stack of layers, as `nnx.vmap`
      makes for `nnx.scan`.
  """
  name: str
  layer: type[nnx.Module]
  methods: tuple[str, ...]
  weights: tuple[str, ...]
  ndim: Callable[[nnx.Module], int]


KINDS: tuple[Kind, ...] = (
    Kind('Linear', nnx.Linear, ('__call__',), ('kernel',), lambda layer: 2),
    Kind('LinearGeneral', nnx.LinearGeneral, ('__call__',), ('kernel',),
         lambda layer: len((*layer.batch_axis, *layer.in_features, *layer.out_features))),
    Kind('Einsum', nnx.Einsum, ('__call__',), ('kernel',), lambda layer: len(layer.kernel_shape)),
    Kind('Conv', nnx.Conv, ('__call__',), ('kernel',), lambda layer: len(layer.kernel_size) + 2),
    Kind('ConvTranspose', nnx.ConvTranspose, ('__call__',), ('kernel',),
         lambda layer: len(layer.kernel_size) + 2),
    Kind('Embed', nnx.Embed, ('__call__', 'attend'), ('embedding',), lambda layer: 2),
    Kind('LoRA', nnx.LoRA, ('__call__',), ('lora_a', 'lora_b'), lambda layer: 2),
)

# Their parameters multiply or shift each unit by itself: the local gradient is the exact one.
ELEMENTWISE: tuple[type, ...] = (
    nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.PReLU,
)

def kind_of(cls: type) -> Kind | None:
  """The kind of a layer's class, None if no rule covers it."""
  return next((kind for kind in KINDS if issubclass(cls, kind.layer)), None)
