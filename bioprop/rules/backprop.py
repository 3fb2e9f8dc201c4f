"""Backpropagation: the exact gradient, and the yardstick of every other rule."""
import dataclasses

from bioprop.rules.base import Credit, Rule


@dataclasses.dataclass(frozen=True)
class Backprop(Rule):
  """dW = x^T g, dx = W^T g (Rumelhart, Hinton & Williams 1986)."""
  exact = True
  multiplies = True

  def sent_through(self, weights, feedback):
    """W; see `Rule.sent_through`."""
    del feedback
    return weights

  def backward(self, op, params, x, feedback, g, e):
    """The op's own vjp; see `Rule.backward`."""
    del feedback, e
    return Credit(op.update(params, x, g), op.send({}, params, x, g))
