"""Which Flax methods are ops, and which layers are elementwise: literal tables.

A method is recognised by its code, not by its class's name: a subclass of `nn.Dense` that overrides
`__call__` and calls `super().__call__` is matched inside that call, where it is affine.
"""
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn


class OpKind(NamedTuple):
  """A Flax method that is affine in its input and in its parameters.

  Attributes:
    name: what `describe` calls it.
    method: the method; its first argument after self is the op's input.
    weights: names of the parameters that multiply the input.
  """
  name: str
  method: Callable[..., Any]
  weights: tuple[str, ...]

  def label(self, path: str) -> str:
    """The op's own name: an embedding's two methods are two ops of one layer."""
    return f'{path}.attend' if self.name == 'Embed.attend' else path


def code_of(method: Callable[..., Any]) -> Callable[..., Any]:
  """The function that a Flax method wraps."""
  return inspect.unwrap(method)


# nn.Conv and nn.ConvLocal share one __call__, as do all subclasses that do not override it.
OPS: dict[Callable[..., Any], OpKind] = {
    code_of(kind.method): kind for kind in (
        OpKind('Dense', nn.Dense.__call__, ('kernel',)),
        OpKind('DenseGeneral', nn.DenseGeneral.__call__, ('kernel',)),
        OpKind('Conv', nn.Conv.__call__, ('kernel',)),
        OpKind('ConvTranspose', nn.ConvTranspose.__call__, ('kernel',)),
        OpKind('Einsum', nn.Einsum.__call__, ('kernel',)),
        OpKind('Embed', nn.Embed.__call__, ('embedding',)),
        OpKind('Embed.attend', nn.Embed.attend, ('embedding',)),
    )
}

# OptimizedLSTMCell multiplies by concatenated kernels inside its own code, where nothing can be
# intercepted. LSTMCell has the same fields, parameters and values, and is made of Dense layers.
SAME_AS: dict[Callable[..., Any], Callable[..., Any]] = {
    code_of(nn.OptimizedLSTMCell.__call__): nn.LSTMCell.__call__,
}

RNN_CALL = code_of(nn.RNN.__call__)

# Their parameters multiply or shift each unit by itself: the local gradient is the exact one.
ELEMENTWISE: tuple[type, ...] = (
    nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm, nn.PReLU,
)

# They normalise the weights of the layer that they wrap inside a lifted transform of their own,
# which carries no other collection.
REPARAMETRISED: tuple[type, ...] = (nn.SpectralNorm, nn.WeightNorm)
