r"""Truncated backpropagation through time (Williams & Peng 1990).

  dW = sum_s sum_{t = s - steps + 1}^{s} (J_s ... J_{t+1} d_s)^T h_{t-1}^T ,

exactly the last `steps` terms of the error d_s of every output: it crosses from a step to the one
before it `steps` - 1 times. At `steps` >= T this is backprop through time. Errors of `steps` ages
cross side by side, and each step is run again on the way back: at `steps` = 5 a GRU takes 1.3 to
1.5 times backprop's time, and a third of its memory (`bench.speed --models=rnn`). With `chunked`
errors are stopped at every `steps`-th time, as practice does: an output is credited to between 1
and `steps` steps.

What one loop over time receives from another, as the first of two stacked layers does, is an error
of this time for it.
"""
import dataclasses

from bioprop.errors import RuleOptionError
from bioprop.rules.base import Credit, check_choice
from bioprop.rules.temporal import Temporal


@dataclasses.dataclass(frozen=True)
class TruncatedBackprop(Temporal):
  """Truncated backpropagation through time.

  Attributes:
    steps: how many steps an error is credited to, the one that it arises at among them.
    chunked: errors are stopped at every `steps`-th time.
    recurrent: patterns of the paths of recurrent ops, in place of those that are found; loops
      without any are not cut.
  """
  steps: int = 1
  chunked: bool = False
  multiplies = True
  truncates = True

  def __post_init__(self):
    super().__post_init__()
    if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
      raise RuleOptionError(
          f'{type(self).__name__} got steps={self.steps!r}, but an error is credited to a whole '
          f'number of steps of time, at least 1. Give it as bioprop.make(\'tbptt\', steps=5) or on '
          f'the command line as --config.rule_options.steps=5.')
    check_choice(self, 'chunked', (False, True))

  def sent_through(self, weights, feedback):
    """The weights themselves; see `Rule.sent_through`."""
    del feedback
    return weights

  def backward(self, op, params, x, feedback, g, e):
    """Backprop's; the loops around cut it; see `Rule.backward`."""
    del feedback, e
    return Credit(op.update(params, x, g),
                  op.send({name: params[name] for name in op.weights}, params, x, g))
