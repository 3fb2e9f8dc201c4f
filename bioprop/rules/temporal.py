"""What rules of recurrent networks share: which ops are recurrent, and how errors leave the others.

In time. An op is recurrent if it lies on a cycle through time: inside a scan, its input depends on
a carry whose next value its output reaches. What the cell itself carries elementwise (a leak, the
gates) is differentiated by JAX as it is, under every rule.
In space. All other ops send errors back through feedback weights, as in feedback alignment.
"""
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bioprop.errors import RuleOptionError
from bioprop.rules.base import Credit, Rule, check_range
from bioprop.typing import Array


@dataclasses.dataclass(frozen=True)
class Temporal(Rule):
  """A rule of recurrent networks.

  Attributes:
    recurrent: patterns of the paths of the ops that are to count as recurrent, with commas between,
      in place of those that are found on cycles through time; for top-down loops between layers,
      which are cycles too. '' (the default): those that are found.

  Class attributes:
    truncates: the rule cuts what loops carry, and leaves the ops as they are.
  """
  recurrent: str = ''
  needs_time = True
  truncates: ClassVar[bool] = False

  def __post_init__(self):
    if not isinstance(self.recurrent, str):
      raise RuleOptionError(
          f'{type(self).__name__} got recurrent={self.recurrent!r}: it must be a string of path '
          f'patterns. For instance bioprop.make(..., recurrent=\'*/h*,top_down\').')

  @property
  def patterns(self) -> tuple[str, ...]:
    """The patterns of `recurrent`."""
    return tuple(part.strip() for part in self.recurrent.split(',') if part.strip())

  @property
  def meets_itself(self) -> bool:
    """Whether recurrent ops send something, through the entries by which a neuron meets itself."""
    return False


@dataclasses.dataclass(frozen=True)
class Spatial(Temporal):
  """A rule that cuts the recurrent ops, and sends errors through the others by feedback.

  Attributes:
    feedback: what the others send errors back through; see the rule.
    scale: factor on random feedback; 1 draws it as large as the layer's initial weights.
  """
  feedback: str = 'random'
  scale: float = 1.0
  multiplies = True

  def __post_init__(self):
    super().__post_init__()
    check_range(self, 'scale', 0.0)

  @property
  def keeps_feedback(self):
    """Whether there are feedback weights; see `Rule.keeps_feedback`."""
    return self.feedback != 'symmetric'

  def through_time(self, weight: Array, own) -> Array | None:
    """What a recurrent op sends errors back through, shaped like its weight; None if nothing.

    Args:
      weight: the op's own.
      own: as `Op.own`.
    """
    raise NotImplementedError

  def init_feedback(self, key, site):
    """B for each weight of an op that is not recurrent, shaped like it; see `Rule`."""
    return site.draw(key, self.scale) if self.keeps_feedback else None

  def sent_through(self, weights, feedback):
    """What ops that are not recurrent send through; see `Rule.sent_through`."""
    return feedback if self.keeps_feedback else weights

  def backward(self, op, params, x, feedback, g, e):
    """The op's own weight gradient; g sent by what the input is; see `Rule.backward`."""
    del e
    update = op.update(params, x, g)
    name, = op.weights
    back, space, learned = None, None, None
    if op.recurrent is not False:
      through = self.through_time(params[name], op.own)
      back = None if through is None else op.send({name: through}, params, x, g)
    if op.recurrent is not True:
      through = feedback if self.keeps_feedback else {name: params[name]}
      space = None if through is None else op.send(through, params, x, g)
      if self.learns and feedback is not None:
        learned = {name: update[name] for name in feedback}
    return Credit(update, _joined(op.recurrent, back, space), learned)


def _joined(recurrent, back: Array | None, space: Array | None) -> Array | None:
  """What is sent to the recurrent entries of an input, and to the others."""
  if not isinstance(recurrent, bool) and (back is not None or space is not None):
    zeros = jnp.zeros_like(space if back is None else back)
    return jax.lax.select(jnp.broadcast_to(recurrent, zeros.shape),
                          *(zeros if one is None else one for one in (back, space)))
  return space if back is None else back
