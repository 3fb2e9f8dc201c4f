"""Which recurrent networks can be credited forward in time, by traces; the others are refused."""
import math
from collections.abc import Iterator

import numpy as np

from bioprop.errors import RecurrenceError
from bioprop.fronts.choice import Choice
from bioprop.network.layered import Layered
from bioprop.network.recurrence import changing, entries, recurrent_ops
from bioprop.network.values import Kind, Node, SeenOp
from bioprop.rules.temporal import Spatial
from bioprop.streams.stream import Stream

_OFFLINE = 'Use the rule offline, on whole sequences: bioprop.plug(model, ...).'


def stream_of(layered: Layered, name: str) -> Stream:
  """A network, seen on sequences of one step, as a stream.

  Args:
    layered: the network under its rules.
    name: the model's, for messages.

  Raises:
    RecurrenceError: if its credit cannot be assigned forward in time, by name.
  """
  node = _loop(layered, name)
  body, = node.frames
  carried = slice(node.scan.consts, node.scan.consts + node.scan.carried)
  frame = layered.traced.network.frame
  live = tuple(body.seen[at].live for at in body.inputs[carried])
  shapes = {body.avals[at].shape for at, own in zip(body.inputs[carried], live) if own}
  if any(frame.seen[at].kind is not Kind.CONSTANT for at in node.ins[carried]):
    raise RecurrenceError(
        f'what {name} carries begins with something that depends on its parameters or its inputs, '
        f'and a stream begins with what is always the same. Begin with zeros. {_OFFLINE}')
  axes = {body.seen[at].axis for at, own in zip(body.inputs[carried], live) if own}
  if len(shapes) != 1 or len(next(iter(shapes))) != 2 or axes != {0}:
    raise RecurrenceError(
        f'{name} carries arrays of shapes {", ".join(map(str, sorted(shapes)))}, and traces are '
        f'kept of arrays [n, neurons] of one size. {_OFFLINE}')
  stream = Stream(layered, node, changing(layered.traced.network, node), live)
  for message in _faults(stream, *next(iter(shapes))):
    raise RecurrenceError(f'{message} {_OFFLINE}')
  return stream


def check_rules(choice: Choice) -> None:
  """Raises RecurrenceError if one of the rules cannot be told forward in time."""
  for pattern, rule in choice.rows:
    if not (rule.exact or isinstance(rule, Spatial)):
      raise RecurrenceError(
          f'the weights {pattern!r} learn by {type(rule).__name__}, and only rflo, eprop and, in '
          f'cells whose neurons do not hear each other, bp can be told forward in time. {_OFFLINE}')


def _loop(layered: Layered, name: str) -> Node:
  steps = layered.traced.network.frame.steps
  loops = [step for step in steps if isinstance(step, Node) and step.scan and any(
      step.frames[0].seen[at].live for at in step.frames[0].inputs[
          step.scan.consts:step.scan.consts + step.scan.carried])]
  if len(loops) != 1:
    found = f'{len(loops)} loops' if loops else 'no loop'
    raise RecurrenceError(
        f'{name} has {found} over time at its outside, and a stream is one recurrent layer: of '
        f'stacked or bidirectional layers, a neuron\'s past changes what other neurons remember, '
        f'and loops inside of others are not entered. {_OFFLINE}')
  if loops[0].scan.length != 1 or loops[0].scan.options['reverse']:
    raise RecurrenceError(
        f'the loop of {name} runs over {loops[0].scan.length} steps of a sequence of one step'
        f'{", backwards" if loops[0].scan.options["reverse"] else ""}, so that it is none over '
        f'time, forward. {_OFFLINE}')
  return loops[0]


def _faults(stream: Stream, n: int, width: int) -> Iterator[str]:
  """Why a network's credit cannot be assigned forward in time."""
  layered, network = stream.layered, stream.layered.traced.network
  recurrent = recurrent_ops(network)
  for op in network.ops:
    found = entries(recurrent.get(op.number, {}))
    told = layered.recurrent.get(op.number, False)
    if layered.rules[op.number].exact and found is not False:
      yield (f'under backprop errors travel back in time through the recurrent weight {op.path!r}, '
             f'from every neuron to every other, and traces of all pairs are not kept. Choose '
             f'rflo or eprop.')
    elif not np.array_equal(found, told):
      yield (f'the weight {op.path!r} is {"not " if told is False else ""}to count as recurrent, '
             f'against what it does in the loop, so that errors pass it in ways that traces do not '
             f'follow. Leave recurrent= out.')
  for number in sorted(stream.changing.deep):
    yield (f'the weight {network.ops[number].path!r} changes what is remembered, and its input is '
           f'made by other parameters at the same step, whose traces would be of pairs of neurons: '
           f'nothing that learns may lie below a recurrent layer, or between its weights.')
  for op in stream.ops:
    if not _is_dense(op, n, width) or not _outside(stream, op):
      yield (f'the weight {op.path!r} maps {op.x_aval.shape} to {op.y_aval.shape} in a '
             f'{op.nodes[0].name}, and traces are kept of matrices that map [n, inputs] to '
             f'[n, neurons], outside of branches.')
  avals = dict(zip(layered.traced.paths, layered.traced.closed.in_avals))
  for path in stream.changing.parameters:
    if len(avals[path].shape) != 1 or avals[path].shape[0] % width:
      yield (f'the parameter {path!r} of shape {avals[path].shape} changes what is remembered '
             f'elsewhere than in a product, and is no number for each of {width} neurons.')


def _is_dense(op: SeenOp, n: int, width: int) -> bool:
  """Whether it maps the features of one step, and nothing else, by a matrix."""
  node = op.nodes[0]
  if node.name != 'dot_general' or len(op.w_aval.shape) != 2 or op.stack:
    return False
  contracted, batched = node.eqn.params['dimension_numbers']
  alone = lambda aval, axis: axis == 0 and math.prod(aval.shape) == n * aval.shape[-1] or (
      axis is not None and math.prod(aval.shape) == aval.shape[axis] * aval.shape[-1])
  return not any(batched) and all(len(axes) == 1 for axes in contracted) and (
      alone(op.x_aval, op.seen_x.axis) and alone(op.y_aval, op.seen_y.axis)
      and op.y_aval.shape[-1] % width == 0)


def _outside(stream: Stream, op: SeenOp) -> bool:
  """Whether it stands in the loop itself, or outside of all loops."""
  frames = (stream.layered.traced.network.frame, stream.node.frames[0])
  return any(step is op for frame in frames for step in frame.steps)
