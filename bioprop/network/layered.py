"""A function of named parameters, seen once, and run by rules of single layers."""
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

from bioprop import errors
from bioprop.network.acting import Acting, Home
from bioprop.network.activity import Activation, activations
from bioprop.network.feedback import Draw, homes, init_feedback
from bioprop.network.recurrence import Entries, entries
from bioprop.network.see import data, parameter, see
from bioprop.network.temporal import in_time, truncated
from bioprop.network.truncation import Loop
from bioprop.network.values import CONSTANT, Network, SeenOp
from bioprop.rules import Backprop, Rule
from bioprop.rules.credit import tap
from bioprop.typing import Array, Key, PyTree

# Maps (parameters by path, what takes no gradient, inputs) to outputs.
Function = Callable[[Mapping[str, Array], PyTree, PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Traced:
  """A function's jaxpr.

  Attributes:
    closed: the jaxpr, of the leaves of (parameters, what takes no gradient, inputs).
    out: shapes of what the function returns.
    paths: of the parameters, in order.
    network: what was seen in it.
  """
  closed: core.ClosedJaxpr
  out: PyTree
  paths: tuple[str, ...]
  network: Network


def trace(function: Function, params: Mapping[str, Array], held: PyTree,
          inputs: PyTree) -> Traced:
  """Traces a function; arguments may be shapes. Nothing is computed."""
  closed, out = _make_jaxpr(function, (dict(params), held, inputs), ())
  paths, avals = tuple(sorted(params)), closed.in_avals
  first = len(avals) - len(jax.tree.leaves(inputs))
  seen = [*map(parameter, paths), *[CONSTANT] * (first - len(paths)), *data(avals[first:])]
  return Traced(closed, out, paths, see(closed, seen))


def _make_jaxpr(function: Function, arguments: tuple[Any, ...], axes: tuple[tuple[str, int], ...]):
  """`jax.make_jaxpr`; axes that a pmap will bind, as means over devices do, are of size 1."""
  try:
    return jax.make_jaxpr(function, return_shape=True, axis_env=axes or None)(*arguments)
  except NameError as error:
    found = re.search(r'unbound axis name: (\w+)', str(error))
    if found is None or found[1] in dict(axes):
      raise
    return _make_jaxpr(function, arguments, (*axes, (found[1], 1)))


@dataclasses.dataclass(frozen=True)
class Layered:
  """A traced function under rules.

  Attributes:
    traced: the function.
    rule_for: the rule of each parameter, by path.
    locate: maps what the function returns to (the position of its output among the leaves, it).
  """
  traced: Traced
  rule_for: Callable[[str], Rule]
  locate: Callable[[PyTree], tuple[int, Any]]

  @functools.cached_property
  def rules(self) -> dict[int, Rule]:
    """The rule of each op, by number.

    Raises:
      UnsupportedLayerError: if an op's weight is made of parameters of several rules.
    """
    return {op.number: self._rule(op) for op in self.traced.network.ops}

  @property
  def _seen_by_rules(self) -> bool:
    return any(rule.reads_error or rule.needs_activation or rule.needs_readout
               for rule in self.rules.values())

  @functools.cached_property
  def output(self) -> tuple[int, jax.ShapeDtypeStruct] | None:
    """Position and shape of the array whose error is broadcast, None if no rule asks.

    Raises:
      OutputError: if there is no such array.
    """
    if not self._seen_by_rules:
      return None
    position, leaf = self.locate(self.traced.out)
    return position, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

  @functools.cached_property
  def phis(self) -> dict[int, Activation]:
    """The nonlinearity after each op whose rule needs it, by the op's number."""
    wanted = {number for number, rule in self.rules.items() if rule.needs_activation}
    return activations(self.traced.network, lambda op: op.number in wanted) if wanted else {}

  @functools.cached_property
  def readouts(self) -> tuple[frozenset[int], frozenset[int]]:
    """The ops whose output reaches the network's through no other, and those that so reach only
    another of the function's outputs."""
    if not any(rule.needs_readout for rule in self.rules.values()):
      return frozenset(), frozenset()
    frame = self.traced.network.frame
    ends = [frame.seen[at].ends for at in frame.outs]
    own = ends[self.output[0]]
    return own, frozenset().union(*ends) - own

  @functools.cached_property
  def _detached(self) -> frozenset[int]:
    """The ops that reach nothing which the function returns, or through stop_gradient only."""
    frame, below = self.traced.network.frame, {op.number: op.seen_x.ends
                                               for op in self.traced.network.ops}
    reached: frozenset[int] = frozenset()
    new = reached.union(*(frame.seen[at].ends for at in frame.outs))
    while new:
      reached |= new
      new = frozenset().union(*(below[number] for number in new)) - reached
    return frozenset(below) - reached

  def _acting(self, op: SeenOp) -> Rule:
    """An op's rule; of a detached one, to which no error belongs, backprop, of whose gradient of
    zeros a broadcast knows nothing."""
    rule = self.rules[op.number]
    return Backprop() if rule.reads_error and op.number in self._detached else rule

  @functools.cached_property
  def _in_time(self) -> tuple[dict[int, Entries], dict[int, Loop]]:
    loops = in_time(self.traced.network, self.rules)
    return ({number: entries(own) for number, own in loops.items()},
            truncated(self.traced.network, self.rules, loops))

  @property
  def recurrent(self) -> dict[int, Entries]:
    """Which entries of its input are recurrent, by the number of each op whose rule asks.

    Raises:
      RecurrenceError: if a rule asks, and there are none, or it cannot act on them.
    """
    return self._in_time[0]

  def check(self, name: str) -> None:
    """Refuses what would silently learn by backprop.

    Args:
      name: the model's, for messages.

    Raises:
      UnsupportedLayerError: if a parameter meets data in a product where no rule can act.
    """
    for meeting in self.traced.network.meetings:
      if not meeting.entered and meeting.refusable and not self.rule_for(meeting.path).exact:
        rule = type(self.rule_for(meeting.path)).__name__
        raise errors.UnsupportedLayerError(
            f'{name} uses the parameter {meeting.path!r} together with data inside a '
            f'{meeting.primitive!r}, into which no rule can follow, so that {rule} cannot act on '
            f'it, and it would silently learn by backprop. Move the product out of it (jit, remat, '
            f'scan and cond are followed), or leave the parameter on backprop: '
            f'{{{meeting.path!r}: \'bp\', \'*\': ...}}.')

  def _check_samples(self) -> None:
    """Raises ErrorShapeError where it is not known whose error is whose."""
    frame, ops = self.traced.network.frame, self.traced.network.ops
    reading = [op for op in ops if self.rules[op.number].reads_error and op.seen_x.live]
    if not reading:
      return
    position, error = self.output
    samples = frame.seen[frame.outs[position]].axis
    if samples:
      raise errors.ErrorShapeError(
          f'the network\'s output has shape {error.shape}, its samples along axis {samples}: a '
          f'rule that broadcasts the error finds them along the first. Return jnp.moveaxis(out, '
          f'{samples}, 0).')
    for op in reading:
      own = op.x_aval.shape[op.seen_x.axis or 0] if op.x_aval.shape else 1
      if own != error.shape[0] and None in (samples, op.seen_x.axis):
        raise errors.ErrorShapeError(
            f'the weight {op.path!r} meets an input of shape {op.x_aval.shape}, and the error at '
            f'the network\'s output has shape {error.shape}: in between samples are brought '
            f'together or parted, and {type(self.rules[op.number]).__name__} cannot see whose '
            f'error is whose. Keep the first axis of all activities for the samples, or give it a '
            f'rule that needs no broadcast: {{{op.path!r}: \'fa\', \'*\': ...}}.')

  def require_ops(self, name: str) -> None:
    """Raises NothingMatchedError if no parameter meets data in a product."""
    if not self.traced.network.ops:
      raise errors.NothingMatchedError(
          f'{name} has no parameter that meets its inputs in a product (a matrix product, a '
          f'convolution, a lookup), so no learning rule could apply, and it would silently learn '
          f'by backprop. Its parameters: {", ".join(self.traced.paths) or "none"}.')

  def init_feedback(self, params: Mapping[str, Array], draw: Draw,
                    key: Key) -> tuple[dict[str, Array], dict[Home, dict[str, Any]]]:
    """See `network.feedback.init_feedback`; ErrorShapeError if an error's samples are unknown."""
    self._check_samples()
    error = self.output[1] if self.output else None
    silent = {number for number, own in self.recurrent.items() if own is True}
    return init_feedback(self.traced.network, lambda op: self.rules[op.number], params, draw, key,
                         error, silent)

  def made(self, params: Mapping[str, Array]) -> tuple[PyTree, dict[Home, dict[str, Any]]]:
    """Shapes and dtypes of what `init_feedback` gives."""
    make = lambda params, key: self.init_feedback(params, lambda _: params, key)
    return jax.eval_shape(make, dict(params), jax.random.key(0))

  def _checked(self, params, weights, direct) -> dict[Home, dict[str, Any]]:
    """What the rules ask for of `direct`; raises FeedbackMissingError if not all is there."""
    needed, made = self.made(params)
    found = {home: {name: direct.get(home, {}).get(name) for name in own}
             for home, own in made.items()}
    types = lambda tree: ', '.join(str(leaf.dtype) for leaf in jax.tree.leaves(tree))
    rows = [(path, weights.get(path), like) for path, like in needed.items()]
    rows += [(home[0], found[home][name], like) for home, own in made.items()
             for name, like in own.items()]
    for path, got, like in rows:
      if types(got) != types(like):
        raise errors.FeedbackMissingError(
            f'the weight {path!r} has {types(got) or "no"} feedback, and '
            f'{type(self.rule_for(path)).__name__} sends errors back through {types(like)}: it was '
            f'cast, made for another model or by another rule, or on a call on which the model '
            f'does not use this weight so, such as train=False; or plug saw no sample, and made '
            f'some for matrices only. Make it again, by init, and carry it; or by plug(model, '
            f'rule, rngs, x).')
    return found

  def run(self, params: Mapping[str, Array], held: PyTree, inputs: PyTree, *,
          weights: Mapping[str, Array], direct: Mapping[Home, Mapping[str, Array]],
          key: Key | None = None, taps: Mapping[int, Array] | None = None,
          loops: Mapping[int, Loop] | None = None
          ) -> tuple[PyTree, dict[int, Array]]:
    """Runs the function; its gradients are the rules'.

    Args:
      params, held, inputs: its arguments.
      weights: feedback shaped like parameters, by path.
      direct: feedback shaped like activities.
      key: for rules that draw at each call.
      taps: what is added to the outputs of ops that are in no loop, by number.
      loops: how loops are run that are to be no plain scans, by number.

    Returns:
      What the function returns, and the inputs of the ops with taps.

    Raises:
      FeedbackMissingError: if feedback is not there that a rule asks for, or of another dtype.
    """
    readouts, auxiliaries = self.readouts
    direct = self._checked(params, weights, direct)
    reads = any(rule.reads_error for rule in self.rules.values())
    walk = Acting(self._acting, backed=frozenset(weights), direct=direct,
                  homes=homes(self.traced.network), error=self.output[1] if reads else None,
                  key=key, phis=self.phis, readouts=readouts, auxiliaries=auxiliaries,
                  recurrent=self.recurrent, loops={**self._in_time[1], **(loops or {})}, taps=taps)
    arguments = [(params[path], weights[path]) if path in weights else (params[path],)
                 for path in self.traced.paths]
    arguments += [(leaf,) for leaf in jax.tree.leaves((held, inputs))]
    outs = [one[0] for one in walk.evaluate(self.traced.network.frame, arguments)]
    if reads:
      outs[self.output[0]] = tap(outs[self.output[0]], walk.thread)
    return jax.tree.unflatten(jax.tree.structure(self.traced.out), outs), walk.inputs

  def _rule(self, op: SeenOp) -> Rule:
    rules = {path: self.rule_for(path) for path in op.paths}
    if len(set(rules.values())) > 1:
      named = ', '.join(f'{path!r} by {type(rule).__name__}' for path, rule in rules.items())
      raise errors.UnsupportedLayerError(
          f'one product has a weight that is made of parameters which are to learn by several '
          f'rules: {named}. Give them one rule, with a pattern that matches all of them.')
    return rules[op.path]
