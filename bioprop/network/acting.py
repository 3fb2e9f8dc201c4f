"""Runs a network by rules of single layers.

The value of a parameter is followed by its counterpart, through which errors go back in its place:
whatever turns parameters into an op's weight (a transpose, a cast, a slice of a stack, a
concatenation) is done to the counterparts too. Feedback that is shaped like activities belongs to
ops. What every op leaves for the error is one array, which loops carry and the output's tap reads.
"""
import copy
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioprop.errors import FeedbackMissingError
from bioprop.jaxprs.convolutions import fast_convolutions, has_convolution
from bioprop.network.recurrence import Entries, keeping_own
from bioprop.network.truncation import Loop
from bioprop.network.values import Frame, Kind, Node, Seen, SeenOp
from bioprop.network.walk import Value, Walk, run_plain
from bioprop.rules import Rule
from bioprop.rules.credit import assign
from bioprop.typing import Array, Key

Home = tuple[str, int]  # What feedback shaped like activities is kept by; see `homes`.


class Acting(Walk):
  """Runs ops by their rules.

  Attributes:
    inputs: of ops with a tap, what went in, once this has run.
  """

  def __init__(self, rule_of: Callable[[SeenOp], Rule], *, backed: frozenset[str] = frozenset(),
               direct: Mapping[Home, Mapping[str, Array]] | None = None,
               homes: Mapping[int, Home] | None = None,
               error: jax.ShapeDtypeStruct | None = None, key: Key | None = None,
               phis: Mapping[int, Callable[[Array], Array]] | None = None,
               readouts: frozenset[int] = frozenset(), auxiliaries: frozenset[int] = frozenset(),
               recurrent: Mapping[int, Entries] | None = None,
               loops: Mapping[int, Loop] | None = None,
               taps: Mapping[int, Array] | None = None):
    """Arguments are by the ops' numbers where they are mappings.

    Args:
      rule_of: the rule of each op.
      backed: the parameters that have a counterpart.
      direct: feedback that is shaped like activities.
      homes: where each op's is kept.
      error: shape and dtype of the error, None if no rule reads it.
      key: for rules that draw at each call, None if none does.
      phis: the nonlinearity after each op, for rules that need it.
      readouts, auxiliaries, recurrent: as in `Op`.
      loops: how those are run that are no plain scans, by the loop's number.
      taps: what is added to the outputs of chosen ops outside of loops.
    """
    self._rule_of, self._backed = rule_of, backed
    self._direct, self._homes = direct or {}, homes or {}
    self._error, self._key, self._phis = error, key, phis or {}
    self._readouts, self._auxiliaries, self._taps = readouts, auxiliaries, taps or {}
    self._recurrent, self._loops = recurrent or {}, loops or {}
    self._steps: dict[int, Array] = {}  # At which step each scan around is.
    self.inputs: dict[int, Array] = {}
    self.thread = None if error is None else jnp.zeros(error.shape, error.dtype)

  def inside(self, node: Node, slices: Any) -> Walk:
    inner = copy.copy(self)
    if slices is not None:
      inner._direct = {**self._direct, **slices['direct']}
      inner._steps = {**self._steps, node.loop: slices['step']}
    return inner

  def slices_of(self, node: Node) -> Any:
    stacked = {self._homes[op.number] for op in _ops(node) if node.loop in op.loops
               and op.number in self._homes}
    return {'direct': {home: self._direct[home] for home in stacked if home in self._direct},
            'step': None if self._key is None else jnp.arange(node.scan.length)}

  def raised(self, value: Value, seen: Seen, wanted: Seen) -> Value:
    if not self._has_back(wanted):
      return value[:1]
    return value if len(value) > 1 else (value[0], jax.lax.stop_gradient(value[0]))

  def plain(self, node: Node, frame: Frame, ins: list[Value]) -> list[Value]:
    now = run_plain(node, ins)
    if not any(self._has_back(frame.seen[at]) for at in node.outs):
      return [(a,) for a in now]
    held = [one if len(one) > 1 else (_held(one[0]),) for one in ins]
    back = run_plain(node, held, 1)
    return [(a, b) if self._has_back(frame.seen[at]) else (a,)
            for at, a, b in zip(node.outs, now, back)]

  def loop(self, node: Node, step, start, slices):
    run = self._loops.get(node.loop)
    if run is None:
      return super().loop(node, step, start, slices)
    return run(step, start, slices, node.scan.length, node.scan.options)

  def op(self, op: SeenOp, frame: Frame, known: list[Value]) -> Value:
    rule, weight, x = self._rule_of(op), known[op.weight], known[op.x][0]
    params = {op.name: weight[0]}
    if op.bias is not None:
      params[op.bias_name] = known[op.bias][0]
    seen = op.op({at: known[at][0] for at in op.others}, rule.reads_error,
                 activation=self._phis.get(op.number), readout=op.number in self._readouts,
                 auxiliary=op.number in self._auxiliaries, **self._in_time(op, rule))
    if op.number in self._taps:
      self.inputs[op.number] = x
    if rule.exact:
      y = seen(params, x)
    else:
      y = self._assigned(op, rule, seen, params, weight, x)
    return (y + self._taps[op.number],) if op.number in self._taps else (y,)

  def _in_time(self, op: SeenOp, rule: Rule) -> dict[str, Any]:
    recurrent = self._recurrent.get(op.number, False)
    if recurrent is False:
      return {}
    own = keeping_own(op, recurrent) if rule.meets_itself else None
    return {'recurrent': recurrent, 'own': own}

  def _assigned(self, op: SeenOp, rule: Rule, seen, params, weight: Value, x: Array) -> Array:
    moved = rule.reads_error and op.seen_x.axis not in (None, 0)
    rewrite = fast_convolutions if has_convolution(op.nodes[0].eqn) else lambda function: function
    y, port = assign(rule, seen, params, jnp.moveaxis(x, op.seen_x.axis, 0) if moved else x,
                     self._feedback(op, rule, weight), self._error if rule.reads_error else None,
                     rewrite)
    if port is not None:
      self.thread = self.thread + port
    away = rule.reads_error and op.seen_y.axis not in (None, 0)
    return jnp.moveaxis(y, 0, op.seen_y.axis) if away else y

  def _feedback(self, op: SeenOp, rule: Rule, weight: Value) -> dict[str, Any] | None:
    found = dict(self._direct.get(self._homes.get(op.number), {}))
    if len(weight) > 1:
      found[op.name] = weight[1]
    if rule.redraws:
      if self._key is None:
        raise FeedbackMissingError(
            f'{type(rule).__name__} draws new feedback at every step, and the weight {op.path!r} '
            f'has no random stream for it. Pass one: model.apply(variables, x, '
            f'rngs={{\'feedback\': jax.random.fold_in(key, step)}}).')
      key = jax.random.fold_in(self._key, zlib.crc32(f'{op.path}:{op.use}'.encode()))
      for loop in op.loops:  # Layers of a stack draw each their own; steps of one layer do not.
        key = jax.random.fold_in(key, self._steps[loop])
      found['key'] = key
    return found or None

  def _has_back(self, seen: Seen) -> bool:
    return seen.kind is Kind.PARAMETER and not self._backed.isdisjoint(seen.paths)


def _held(a: Array) -> Array:
  inexact = jnp.issubdtype(jnp.result_type(a), jnp.inexact)
  return jax.lax.stop_gradient(a) if inexact else a


def _ops(node: Node):
  """The ops inside a node, at any depth."""
  for frame in node.frames:
    for step in frame.steps:
      if isinstance(step, SeenOp):
        yield step
      elif step.frames:
        yield from _ops(step)
