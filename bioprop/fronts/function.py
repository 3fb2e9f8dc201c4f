"""Any JAX function whose weights learn by another rule; and what all fronts share."""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bioprop.errors import FeedbackMissingError, refusing_forward_mode, refusing_samples, shapes
from bioprop.fronts.choice import Choice, Where, choose, locate
from bioprop.network.acting import Home
from bioprop.network.feedback import Draw, Names, homes
from bioprop.network.layered import Layered, trace
from bioprop.network.store import Keys, Made, Store, by_path, flat, nested, redrawn
from bioprop.network.whole import TracedNetwork
from bioprop.rules import AnyRule, NetworkRule
from bioprop.typing import Array, Key, PyTree

FEEDBACK = 'feedback'  # The collection of frozen feedback, and the name of its random stream.
ByPosition = dict[int, Any]
# Puts other values in the places of what was split off, and returns (args, kwargs).
Rebuild = Callable[[ByPosition], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Call:
  """One call of a model.

  Attributes:
    name: the model's, for messages.
    function: maps (parameters by path, `held`, `inputs`) to (what the model returns, its state, a
      tree of arrays).
    params: the parameters by path, arrays or shapes.
    keys: the keys that lead to each parameter, by path.
    held: arrays that take no gradient: running means, random streams.
    inputs: the arrays among the model's arguments.
  """
  name: str
  function: Callable[[Mapping[str, Array], PyTree, PyTree], tuple[PyTree, PyTree]]
  params: Mapping[str, Array]
  keys: Mapping[str, Keys]
  held: PyTree
  inputs: PyTree


@dataclasses.dataclass(frozen=True)
class Plug:
  """What a front was told: which rules, and which of the model's outputs is the network's."""
  choice: Choice
  output: Where = None

  def seen(self, call: Call, returned: 'Returned | None' = None, check: bool = True) -> Layered:
    """A call under rules of single layers; it is traced here.

    Args:
      call: the call.
      returned: told of what the call returns.
      check: refuse what would silently learn by backprop.

    Raises:
      PatternError: if a weight has no rule.
      UnsupportedLayerError: if a rule cannot act where a parameter is used.
    """
    returned = returned or Returned()

    def function(params, held, inputs):
      out, state = call.function(params, held, inputs)
      return returned.keep(out), state

    find = lambda result: returned.position(*locate(returned.restore(result[0]), self.output))
    layered = Layered(trace(function, call.params, call.held, call.inputs), self.choice.rule_for,
                      find)
    if check:
      layered.check(call.name)
    return layered

  def init(self, call: Call, draw: Draw, key: Key, check: bool = True) -> Made:
    """Makes the feedback of all that a call uses.

    Args:
      call: a call; its parameters are W(0).
      draw: draws parameters like these, by path.
      key: what feedback is drawn from.
      check: as in `seen`.

    Raises:
      NothingMatchedError: if no parameter meets data in a product.
      PatternError: if a pattern decides for nothing.
      SampleError: if the model cannot be called so.
      UnsupportedLayerError, OutputError, ErrorShapeError, FeedbackMemoryError: as rules raise them.
    """
    with refusing_samples(call.name, call.inputs):
      if (rule := self.choice.network) is not None:
        made = rule.init_feedback(key, _whole(call, Returned()), call.params)
        return _whole_keys(call, rule, made), frozenset()
      layered = self.seen(call, check=check)
    layered.require_ops(call.name)
    self.choice.check_used(layered.traced.network.acted)
    weights, direct = layered.init_feedback(call.params, draw, key)
    named = Names(layered.traced.network, call.keys)
    rows = [(call.keys[path], (path,), value) for path, value in weights.items()]
    rows += [(named(home, name), (home[0], name), value) for home, own in direct.items()
             for name, value in own.items()]
    learns = frozenset(keys for keys, at, _ in rows if self.choice.learns_at(*at))
    return {keys: value for keys, _, value in rows}, learns

  @refusing_forward_mode()
  def run(self, call: Call, stored: Mapping[Keys, Any], key: Key | None = None
          ) -> tuple[PyTree, PyTree]:
    """Runs a call by the rules.

    Args:
      call: the call.
      stored: its feedback, as `init` made it.
      key: for rules that draw at each call.

    Returns:
      What the model returns, and its state.

    Raises:
      FeedbackMissingError: if the feedback is another model's.
      ForwardModeError: if a derivative in forward mode is asked.
    """
    returned = Returned()
    if self.choice.network is not None:
      network = _whole(call, returned)
      out, state = self.choice.network.run(
          network, dict(call.params), _whole_feedback(call, self.choice.network, stored))
    else:
      layered = self.seen(call, returned)
      weights, direct = self.unpacked(layered, call, stored)
      (out, state), _ = layered.run(
          call.params, call.held, call.inputs, weights=weights, direct=direct, key=key)
    return returned.restore(out), state

  def check(self, call: Call, stored: Mapping[Keys, Any]) -> None:
    """Raises FeedbackMissingError if feedback is of other shapes; nothing is traced."""
    if self.choice.network is not None:
      _whole_feedback(call, self.choice.network, stored)
      return
    for path, w in call.params.items():
      if call.keys[path] in stored and hasattr(stored[call.keys[path]], 'dtype'):
        _check_alike(path, self.choice.rule_for(path), stored[call.keys[path]], w)

  def unpacked(self, layered: Layered, call: Call, stored: Mapping[Keys, Any]
               ) -> tuple[dict[str, Array], dict[Home, dict[str, Any]]]:
    """Stored feedback as `Layered.run` takes it."""
    weights = {}
    for path, rule in {path: layered.rules[op.number] for op in layered.traced.network.ops
                       for path in op.paths}.items():
      if not rule.exact and rule.keeps_feedback and call.keys[path] in stored:
        weights[path] = stored[call.keys[path]]
        _check_alike(path, rule, weights[path], call.params[path])
    named, direct = Names(layered.traced.network, call.keys), {}
    leaves = {keys: value for keys, value in stored.items() if keys not in call.keys.values()}
    for home in dict.fromkeys(homes(layered.traced.network).values()):
      layer = call.keys[home[0]][:-1]
      own = {keys[-1]: value for keys, value in leaves.items() if keys[:-1] == layer}
      found = {name: own[leaf] for leaf in own if (name := named.read(home, leaf)) is not None}
      if found:
        direct[home] = found
    return weights, direct


def split(args: tuple[Any, ...], kwargs: Mapping[str, Any]
          ) -> tuple[ByPosition, ByPosition, Rebuild]:
  """Splits a call's arguments.

  Args:
    args: positional arguments, trees of anything.
    kwargs: keyword arguments.

  Returns:
    The arrays (or their shapes) and the NNX objects (nnx.Rngs) by position, and `Rebuild`.
  """
  is_node = lambda a: isinstance(a, (nnx.Pytree, nnx.Variable))
  leaves, structure = jax.tree.flatten((args, dict(kwargs)), is_leaf=is_node)
  nodes = {i: leaf for i, leaf in enumerate(leaves) if is_node(leaf)}
  arrays = {i: leaf for i, leaf in enumerate(leaves) if i not in nodes and _is_array(leaf)}
  rebuild = lambda others: jax.tree.unflatten(
      structure, [others.get(i, leaf) for i, leaf in enumerate(leaves)])
  return arrays, nodes, rebuild


class Returned:
  """Tells arrays from all else that a model returns, so that JAX can trace it."""

  def keep(self, out: PyTree) -> list[Array]:
    """The arrays."""
    leaves, self._structure = jax.tree.flatten(out)
    self._is_array = [hasattr(leaf, 'dtype') for leaf in leaves]
    self._others = [None if array else leaf for leaf, array in zip(leaves, self._is_array)]
    return [leaf for leaf, array in zip(leaves, self._is_array) if array]

  def restore(self, arrays: Sequence[Any]) -> PyTree:
    """What the model returned, with other arrays."""
    rest = iter(arrays)
    return jax.tree.unflatten(self._structure, [
        next(rest) if array else leaf for leaf, array in zip(self._others, self._is_array)])

  def position(self, at: int, leaf: Any) -> tuple[int, Any]:
    """A leaf's position among the arrays, and the leaf."""
    return sum(self._is_array[:at]), leaf


def plug_function(function: Callable[..., PyTree],
                  rule: AnyRule | str | Mapping[str, AnyRule | str], *, output: Where = None,
                  init: Callable[[Key], PyTree] | None = None) -> 'PluggedFunction':
  """See `bioprop.plug`, whose arguments and errors these are."""
  return PluggedFunction(function, Plug(choose(rule), output), init)


@dataclasses.dataclass(frozen=True)
class PluggedFunction:
  """A function of (params, *inputs) under a rule; `bioprop.plug` makes it."""
  function: Callable[..., PyTree]
  plug: Plug
  init: Callable[[Key], PyTree] | None = None

  def init_feedback(self, key: Key, params: PyTree, *sample: Any) -> dict[str, Any]:
    """Makes the rule's feedback, nested as the parameters are; {} if it has none.

    Args:
      key: what it is drawn from.
      params: the parameters, W(0).
      *sample: inputs of the function, arrays or `jax.ShapeDtypeStruct`s. Nothing is computed.

    Returns:
      A tree to be given to `apply`. Under 'kp', 'pfa', 'mirror' and 'dkp' it learns: give the
      optimiser both (params, feedback), with one weight decay.

    Raises:
      NothingMatchedError: if no parameter meets an input in a product.
      OutputError, UnsupportedLayerError, FeedbackMemoryError: as in `bioprop.plug`.
    """
    call = self._call(params, sample)
    draw = (lambda key: redrawn(call.params, key)) if self.init is None else (
        lambda key: by_path(self.init(key))[0])
    return nested(self.plug.init(call, draw, key)[0])

  def apply(self, params: PyTree, feedback: Mapping[str, Any], *inputs: Any,
            key: Key | None = None) -> PyTree:
    """What the function returns; its gradients in `params` are the rule's.

    Args:
      params: the parameters.
      feedback: what `init_feedback` made.
      *inputs: the function's.
      key: another one at each step, for rules that draw at each call ('brsf', 'mirror').

    Raises:
      FeedbackMissingError: if the feedback is missing or another function's, or there is no key.
    """
    if not isinstance(feedback, Mapping):
      raise FeedbackMissingError(
          f'apply was given {shapes(feedback)} for the feedback, its second argument. Make it '
          f'once: feedback = plugged.init_feedback(key, params, x); rules without any give {{}}.')
    if not (own_forward(self.plug.choice) or is_traced((params, inputs))):
      return self.function(params, *inputs)
    return self.plug.run(self._call(params, inputs), flat(feedback), key)[0]

  def _call(self, params: PyTree, inputs: tuple[Any, ...]) -> Call:
    arrays, _, rebuild = split(inputs, {})
    leaves, keys = by_path(params)
    structure, order = jax.tree.structure(params), list(leaves)

    def function(leaves, held, arrays):
      del held
      params = jax.tree.unflatten(structure, [leaves[path] for path in order])
      return self.function(params, *rebuild(arrays)[0]), ()

    name = getattr(self.function, '__name__', type(self.function).__name__)
    return Call(name, function, leaves, keys, (), arrays)


def own_forward(choice: Choice) -> bool:
  """Whether the rule has a forward pass of its own."""
  return choice.network is not None and choice.network.own_forward


def is_traced(tree: PyTree) -> bool:
  """Whether a gradient may be asked: with concrete arrays it cannot."""
  return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _whole(call: Call, returned: Returned) -> TracedNetwork:

  def function(params, inputs):
    out, state = call.function(params, call.held, inputs)
    return returned.keep(out), state

  return TracedNetwork(function, call.inputs)


def _whole_keys(call: Call, rule: NetworkRule, made: Mapping[str, PyTree]) -> Store:
  is_initial = lambda name: rule.keeps_weights and name == 'initial'
  return {(name, *(call.keys[inner[0]] if is_initial(name) else inner)): value
          for name, tree in made.items() for inner, value in flat(tree).items()}


def _whole_feedback(call: Call, rule: NetworkRule, stored: Mapping[Keys, Any]) -> dict[str, Any]:
  feedback = nested(stored)
  if not rule.keeps_weights:
    return feedback
  initial = {path: stored.get(('initial', *keys)) for path, keys in call.keys.items()}
  name = type(rule).__name__
  if not stored or any(w is None or (w.shape, w.dtype) != (call.params[path].shape,
                                                           call.params[path].dtype)
                       for path, w in initial.items()):
    raise FeedbackMissingError(
        f'the feedback does not hold initial parameters of {call.name}, which {name} needs: it was '
        f'made for another model or by another rule. Run init of this plugged model again, or '
        f'bioprop.plug for an NNX model: variables = model.init(key, x).')
  return {**feedback, 'initial': initial}


def _check_alike(path: str, rule: Any, b: Any, w: Any) -> None:
  if jnp.shape(b) != w.shape or b.dtype != w.dtype:
    raise FeedbackMissingError(
        f'the feedback of {path!r} is {b.dtype}{list(jnp.shape(b))}, and the weight is '
        f'{w.dtype}{list(w.shape)}: {type(rule).__name__} needs them alike, and this feedback was '
        f'made for another model, or cast. Make it again of these parameters, or cast it as they '
        f'were.')


def _is_array(leaf: Any) -> bool:
  return hasattr(leaf, 'shape') and not isinstance(leaf, np.generic)  # numpy's own True is a flag.
