"""nn.RNN names the collections that its scan carries in fields, so it can be told of ours."""
import contextlib

import flax.linen as nn
from flax.core.scope import union_filters


@contextlib.contextmanager
def carrying(rnn: nn.RNN, feedback: str, ports: str):
  """Lets the scan inside `rnn` carry feedback as it carries the parameters, and stack the ports.

  Fields of a bound module are frozen against users; this one call changes them and puts them back.
  """
  axes = dict(rnn.variable_axes)
  beside_params = axes.get('params')
  changed = {'variable_axes': {**axes, ports: 0},
             'split_rngs': {feedback: False, **rnn.split_rngs}}
  if beside_params is not None:
    changed['variable_axes'][feedback] = beside_params
  else:
    changed['variable_broadcast'] = union_filters(rnn.variable_broadcast, feedback)
  kept = {name: getattr(rnn, name) for name in changed}
  try:
    for name, value in changed.items():
      object.__setattr__(rnn, name, value)
    yield
  finally:
    for name, value in kept.items():
      object.__setattr__(rnn, name, value)
