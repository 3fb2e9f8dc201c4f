"""A model, linen or NNX, as pure functions of its parameters by path."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

from bioprop.errors import MeasureError
from bioprop.plug.output import Where, locate
from bioprop.rules import AnyRule, NetworkRule, Rule
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
    rule_at: the rule of the layer with this label; None if it is no rule of single layers.
    stored: maps a layer's label and `others` to the layer's feedback by name, {} if it has none.
    initial: maps `others` to the initial parameters by path, under a rule that keeps them.
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
  rule_at: Callable[[str], Rule | None]
  stored: Callable[[str, PyTree], dict[str, Array]]
  initial: Callable[[PyTree], dict[str, Array]]
  canonical: Callable[[str], str]
  output: Where
  split: Callable[[Any], tuple[dict[str, Array], PyTree]]

  @property
  def twin(self) -> tuple[str, str] | None:
    """When inputs and errors are taken that a rule of the whole network multiplies; see there."""
    return self.rules[0].multiplies if self.rules and isinstance(
        self.rules[0], NetworkRule) else None

  def multiplies(self, label: str) -> bool:
    """Whether the layer with this label always multiplies its input with the cotangent."""
    rule = self.rule_at(label)
    # A network's own rule with a forward pass of its own is the exact derivative of that.
    return self.exact or self.own_forward or rule is not None and rule.multiplies


def traced(run: Run, params: PyTree, others: PyTree, sample: PyTree,
           output: Where) -> core.ClosedJaxpr:
  """The jaxpr of a network's one output, with ops marked.

  Args:
    run: of a `PlugNetwork`.
    params, others, sample: shapes of what it takes; the jaxpr's inputs are their leaves in order.
    output: which of the model's outputs.

  Raises:
    MeasureError: if the output's first axis is not the batch.
    OutputError: if the output is not one array.
  """
  closed = jax.make_jaxpr(lambda *inputs: locate(run(*inputs), output)[1])(params, others, sample)
  n, shape = jax.tree.leaves(sample)[0].shape[0], closed.out_avals[0].shape
  if not shape or shape[0] != n:
    raise MeasureError(
        f'the output of a batch of {n} has shape {shape}: its first axis is not the batch. Arrays '
        f'with a batch axis belong among the inputs, not among the keyword arguments: '
        f'bioprop.jacobians(model, x, mask).')
  return closed


def cast(tree: PyTree, dtype: jax.typing.DTypeLike | None) -> PyTree:
  """Arrays, or their shapes, in another floating dtype; whole numbers stay. None: as is."""
  if dtype is None:
    return tree
  floating = lambda leaf: jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
  one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype) if isinstance(
      leaf, jax.ShapeDtypeStruct) else jax.numpy.asarray(leaf, dtype)
  return jax.tree.map(lambda leaf: one(leaf) if floating(leaf) else leaf, tree)


def batch_of(n: int, sample: PyTree) -> PyTree:
  """Shapes of n samples like these."""
  shape = lambda leaf: (n, *leaf.shape[1:])
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
      shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)), sample)
