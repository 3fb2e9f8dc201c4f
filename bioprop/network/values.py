"""What is known of every value of a network before anything runs, and how a network is laid out.

A `Frame` is a jaxpr whose calls are written out where parameters meet data in them: a list of steps
over numbered slots. Loops, branches and remats keep frames of their own.
"""
import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core

from bioprop.jaxprs.layout import Scan, bind
from bioprop.rules import Op
from bioprop.typing import Array, Params


class Kind(enum.Flag):
  """What a value depends on, beside constants."""
  CONSTANT = 0
  INPUT = enum.auto()
  PARAMETER = enum.auto()
  DATA = INPUT | PARAMETER


@dataclasses.dataclass(frozen=True)
class Seen:
  """What is known of a value.

  Attributes:
    kind: what it depends on.
    paths: the parameters that a value of kind PARAMETER is made of.
    loops: the scans at whose steps a value of kind PARAMETER differs: it is a slice of a stack.
    axis: which of its axes is the samples', None if none is.
    ends: numbers of the ops whose outputs reach it through no other op.
    live: it can take a cotangent: it is no constant, and made of no integers.
  """
  kind: Kind
  paths: tuple[str, ...] = ()
  loops: frozenset[int] = frozenset()
  axis: int | None = None
  ends: frozenset[int] = frozenset()
  live: bool = False


CONSTANT = Seen(Kind.CONSTANT)


@dataclasses.dataclass(frozen=True)
class Node:
  """One equation.

  Attributes:
    eqn: the equation.
    ins, outs: slots of its frame.
    frames: the bodies that an evaluator has to enter: of a remat, a scan, or branches.
    scan: the parts of a scan that is entered.
    loop: its number, which `Seen.loops` names.
  """
  eqn: core.JaxprEqn
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  frames: tuple['Frame', ...] = ()
  scan: Scan | None = None
  loop: int = -1

  @property
  def name(self) -> str:
    """The primitive's name."""
    return self.eqn.primitive.name


@dataclasses.dataclass
class SeenOp:
  """An equation in which a parameter meets data in a product, and what belongs to it.

  Attributes:
    number: ops are numbered in the order in which the network runs.
    path: the first parameter that its weight is made of.
    use: how many uses of that parameter came before, for messages and measurements.
    weight, x: slots of the product's two operands.
    bias: the slot of a parameter that is added to the product, None if there is none.
    nodes: the product, then what leads to the sum with the bias.
    seen_weight, seen_x, seen_bias, seen_y: what is known of these values.
    w_aval, x_aval, y_aval: shapes and dtypes of one call.
    stack: the lengths of the scans, from the outside, at whose steps the weight differs.
    loops: their numbers.
    outermost: the op runs inside of no scan, branch or remat.
  """
  number: int
  path: str
  weight: int
  x: int
  nodes: list[Node]
  seen_weight: Seen
  seen_x: Seen
  seen_y: Seen
  w_aval: jax.ShapeDtypeStruct
  x_aval: jax.ShapeDtypeStruct
  y_aval: jax.ShapeDtypeStruct
  stack: tuple[int, ...] = ()
  loops: tuple[int, ...] = ()
  outermost: bool = True
  use: int = 0
  bias: int | None = None
  seen_bias: Seen = CONSTANT

  @property
  def out(self) -> int:
    """The slot of its output."""
    return self.nodes[-1].outs[0]

  @property
  def outs(self) -> tuple[int, ...]:
    """As `Node.outs`."""
    return self.nodes[-1].outs

  @property
  def paths(self) -> tuple[str, ...]:
    """The parameters that its weight is made of."""
    return self.seen_weight.paths

  @property
  def name(self) -> str:
    """What a rule calls its weight: the parameter's own name."""
    return self.path.rpartition('/')[2]

  @property
  def bias_name(self) -> str:
    """What a rule calls what is added."""
    return 'added' if self.name == 'bias' else 'bias'

  @property
  def features(self) -> int | None:
    """The weight's axis of the output's features, as `Op.features`."""
    node, rank = self.nodes[0], len(self.w_aval.shape)
    if node.name == 'conv_general_dilated':
      return node.eqn.params['dimension_numbers'].rhs_spec[0]
    if node.name != 'dot_general':
      return rank - 1 if rank else None
    at = node.ins.index(self.weight)
    met = {axis for pair in node.eqn.params['dimension_numbers'] for axis in pair[at]}
    return max(set(range(rank)) - met, default=None)

  @property
  def others(self) -> tuple[int, ...]:
    """Slots of constants that it reads beside weight, input and bias."""
    made = {self.weight, self.x, self.bias, *(out for node in self.nodes for out in node.outs)}
    return tuple(dict.fromkeys(at for node in self.nodes for at in node.ins if at not in made))

  def op(self, known: Mapping[int, Array], front: bool = False, **about: Any) -> Op:
    """The op as a rule sees it, a function of {name: weight, bias_name: bias} and x.

    Args:
      known: values of its `others`.
      front: the samples' axis is put first in x and y.
      **about: fields of `Op`.
    """
    move = front and self.seen_x.axis not in (None, 0), front and self.seen_y.axis not in (None, 0)

    def function(params: Params, x: Array) -> Array:
      values = dict(known)
      values[self.weight] = params[self.name]
      values[self.x] = jax.numpy.moveaxis(x, 0, self.seen_x.axis) if move[0] else x
      if self.bias is not None:
        values[self.bias] = params[self.bias_name]
      for node in self.nodes:
        values.update(zip(node.outs, bind(node.eqn, [values[at] for at in node.ins])))
      y = values[self.out]
      return jax.numpy.moveaxis(y, self.seen_y.axis, 0) if move[1] else y

    return Op(function, (self.name,), features=self.features, **about)


Step = Node | SeenOp


@dataclasses.dataclass
class Frame:
  """A jaxpr as steps over slots.

  Attributes:
    inputs, outs: slots.
    steps: in the order in which they run.
    constants: values of the slots that are known.
    seen: what is known of each slot.
    avals: shape and dtype of each slot.
  """
  inputs: list[int]
  outs: list[int]
  steps: list[Step]
  constants: dict[int, Any]
  seen: list[Seen]
  avals: list[Any]


@dataclasses.dataclass(frozen=True)
class Meeting:
  """Where a parameter meets data elsewhere than in an op.

  Attributes:
    path: the parameter.
    primitive: the name of the equation.
    entered: False: products with the parameter may happen in there, which the evaluator cannot see.
    refusable: gradients can pass it.
  """
  path: str
  primitive: str
  entered: bool
  refusable: bool = True


@dataclasses.dataclass(frozen=True)
class Network:
  """A network as it was seen.

  Attributes:
    frame: its outermost frame.
    ops: every op, by number.
    meetings: where parameters meet data elsewhere.
  """
  frame: Frame
  ops: tuple[SeenOp, ...]
  meetings: tuple[Meeting, ...]

  @property
  def acted(self) -> list[str]:
    """The parameters that a rule could act on: those of ops, and those that meet data unseen."""
    hidden = (meeting.path for meeting in self.meetings if not meeting.entered)
    return list(dict.fromkeys([*(path for op in self.ops for path in op.paths), *hidden]))
