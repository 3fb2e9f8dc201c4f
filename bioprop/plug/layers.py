"""layers: the layers of a model as functions of their own, for measurements."""
from typing import Any

import flax.linen as nn
from flax import nnx

from bioprop.plug import linen as linen_plug
from bioprop.plug import nnx as nnx_plug
from bioprop.plug.traced import TracedOp, traced_ops


def layers(model: nn.Module | nnx.Module, *sample: Any, **kwargs: Any) -> dict[str, TracedOp]:
  """Cuts a model into its layers, each at its first call. Computes nothing.

  Args:
    model: an unbound linen module or an NNX module, plain or plugged; it stays as it is.
    *sample: the model's inputs, as for `init`: arrays, or `jax.ShapeDtypeStruct`s.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    The layers that a rule can act on, by their path, in the order of their calls.
  """
  marked = nnx_plug.marked_jaxpr if isinstance(model, nnx.Module) else linen_plug.marked_jaxpr
  return traced_ops(marked(model, sample, kwargs))
