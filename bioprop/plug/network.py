"""A model, linen or NNX, as pure functions of its parameters by path."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from bioprop.plug.output import Where
from bioprop.rules import AnyRule
from bioprop.typing import Array, PyTree

# Maps (parameters by path, all else that the model carries, its inputs) to its outputs.
Run = Callable[[Mapping[str, Array], PyTree, tuple[Array, ...]], PyTree]


@dataclasses.dataclass(frozen=True)
class PlugNetwork:
  """A model under its rule, with its ops marked in what is traced of it.

  Attributes:
    plain: runs the model by no rule.
    acting: runs it under its rule.
    rules: all rules that act in it.
    exact: all its rules are backprop, or there are none.
    own_forward: its rule has a forward pass of its own, and exact gradients.
    multiplies: whether the rule of the layer with this label always multiplies the layer's input
      with the cotangent.
    canonical: the path in the parameters of a weight that a layer calls by its own path: the same,
      unless layers share it.
    output: which of the model's outputs is its output, as it was plugged.
    split: maps the model's variables to (params, others), the parameters of the plain model by path
      and a tree of all else; raises MeasureError if they are not.
  """
  plain: Run
  acting: Run
  rules: tuple[AnyRule, ...]
  exact: bool
  own_forward: bool
  multiplies: Callable[[str], bool]
  canonical: Callable[[str], str]
  output: Where
  split: Callable[[Any], tuple[dict[str, Array], PyTree]]
