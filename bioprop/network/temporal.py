"""What rules of recurrent networks ask of one: its recurrent ops, and the loops that they cut."""
import functools
from collections.abc import Mapping, Sequence

from bioprop.errors import PatternError, RecurrenceError
from bioprop.network.recurrence import Entries, entries, own_entries, recurrent_ops
from bioprop.network.store import matches
from bioprop.network.truncation import Loop, chunked_scan, truncated_scan
from bioprop.network.values import Frame, Network, Node, SeenOp
from bioprop.rules import Rule
from bioprop.rules.tbptt import TruncatedBackprop
from bioprop.rules.temporal import Temporal

Loops = dict[int, dict[int, Entries]]  # By op, by the number of a loop.
_NO_LOOP = -1


def in_time(network: Network, rules: Mapping[int, Rule]) -> Loops:
  """The recurrent ops under rules that ask for them.

  Args:
    network: the network.
    rules: the rule of each op.

  Returns:
    By the op's number, the loops in which it is recurrent, and which entries of its input are.

  Raises:
    RecurrenceError: if rules ask, and no op of theirs is recurrent; or if one is whose neurons do
      not meet themselves, and the rule needs that.
    PatternError: if a pattern of a rule matches no weight.
  """
  asked = {number: rule for number, rule in rules.items() if isinstance(rule, Temporal)}
  if not asked:
    return {}
  for rule in dict.fromkeys(asked.values()):
    _check_patterns(rule, [network.ops[number] for number, own in asked.items() if own == rule])
  found = recurrent_ops(network)
  chosen = {number: _chosen(network.ops[number], rule, found.get(number, {}))
            for number, rule in asked.items()}
  made = {number: loops for number, loops in chosen.items() if loops}
  if not made:
    raise RecurrenceError(_nothing(network, next(iter(asked.values()))))
  for number, loops in made.items():
    op, rule = network.ops[number], asked[number]
    if rule.meets_itself and own_entries(op, entries(loops)) is None:
      raise RecurrenceError(
          f'{type(rule).__name__} sends errors back in time from each neuron to itself, and in the '
          f'recurrent weight {op.path!r}, which maps {op.x_aval.shape} to {op.y_aval.shape}, no '
          f'neuron meets itself. Give it a rule that sends nothing back in time: '
          f'{{{op.path!r}: \'rflo\', \'*\': ...}}, or choose \'rflo\' or \'tbptt\' for all.')
  return made


def truncated(network: Network, rules: Mapping[int, Rule], loops: Loops) -> dict[int, Loop]:
  """How loops are run in which errors are cut, by the number of the loop.

  Args:
    network: the network.
    rules: the rule of each op.
    loops: as `in_time` gives them.

  Raises:
    RecurrenceError: if one op is in several loops over time, or one loop has several rules.
  """
  found: dict[int, TruncatedBackprop] = {}
  for number, own in loops.items():
    rule, path = rules[number], network.ops[number].path
    if not rule.truncates:
      continue
    if len(own) > 1:
      raise RecurrenceError(
          f'the recurrent weight {path!r} is used in {len(own)} loops over time, one inside of the '
          f'other, and {type(rule).__name__} cannot count their steps together. Run all steps in '
          f'one scan.')
    found.update(dict.fromkeys(own, rule))
  if found:
    for number, own in recurrent_ops(network).items():
      for loop in own:
        if loop in found and rules[number] != found[loop]:
          raise RecurrenceError(
              f'{type(found[loop]).__name__} cuts all that a loop carries, and the recurrent '
              f'weight {network.ops[number].path!r} of the same loop learns by {rules[number]!r}. '
              f'Give all recurrent weights of a cell one rule, with one pattern.')
  scans = {False: truncated_scan, True: chunked_scan}
  return {loop: functools.partial(scans[rule.chunked], steps=rule.steps)
          for loop, rule in found.items()}


def _chosen(op: SeenOp, rule: Temporal, found: dict[int, Entries]) -> dict[int, Entries]:
  if not rule.patterns:
    return found
  if not any(matches(pattern, path) for pattern in rule.patterns for path in op.paths):
    return {}
  return found or ({} if rule.truncates else {_NO_LOOP: True})  # Which has no loop to cut.


def _check_patterns(rule: Temporal, ops: Sequence[SeenOp]) -> None:
  paths = list(dict.fromkeys(path for op in ops for path in op.paths))
  for pattern in rule.patterns:
    if not any(matches(pattern, path) for path in paths):
      raise PatternError(
          f'{type(rule).__name__} got recurrent={rule.recurrent!r}, and {pattern!r} matches none '
          f'of the weights that learn by it: {", ".join(paths)}.')


def _nothing(network: Network, rule: Temporal) -> str:
  name = type(rule).__name__
  if rule.patterns:
    return (f'{name} got recurrent={rule.recurrent!r}, and none of these weights lies on a cycle '
            f'through time in a scan, so that there is no loop in which it could cut errors. Leave '
            f'recurrent= out, or choose a rule of layers, such as \'fa\'.')
  if not _scans(network.frame):
    return (f'{name} is a rule of recurrent networks, and the model has no loop over time in which '
            f'a parameter meets data: it runs no scan, or writes every step out, where nobody '
            f'can tell time from depth. Use nn.RNN, nnx.RNN, nn.scan or jax.lax.scan over the '
            f'steps, or choose a rule of layers, such as \'fa\'.')
  return (f'{name} is a rule of recurrent networks, and in no scan of the model does a product '
          f'read what it has itself changed a step before: what is carried meets no weight in a '
          f'product, or the scan runs over layers. Such models remember elementwise, which {name} '
          f'leaves exact. Choose a rule of layers, such as \'fa\'; or name the weights: '
          f'bioprop.make(..., recurrent=\'cell/*\').')


def _scans(frame: Frame) -> bool:
  nodes = [step for step in frame.steps if isinstance(step, Node)]
  return any(node.scan is not None or any(map(_scans, node.frames)) for node in nodes)
