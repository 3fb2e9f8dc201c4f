"""Chooses how a model becomes a `PlugNetwork`."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from bioprop.plug import linen_network, nnx_network
from bioprop.plug.network import PlugNetwork


def make_network(model: nn.Module | nnx.Module, sample: tuple[Any, ...],
                 rngs: Mapping[str, jax.Array] | None, kwargs: Mapping[str, Any]) -> PlugNetwork:
  """The network of a linen or NNX model, plain or plugged.

  Args:
    model: an unbound linen module, or an NNX module.
    sample: shapes of its inputs.
    rngs: random streams of a linen model.
    kwargs: its keyword arguments.
  """
  package = nnx_network if isinstance(model, nnx.Module) else linen_network
  return package.make_network(model, sample, rngs or {}, kwargs)
