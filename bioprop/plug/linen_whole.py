"""linen models under a rule of the whole network."""
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core.scope import in_filter

from bioprop.errors import FeedbackMissingError, NothingMatchedError
from bioprop.plug.arguments import split
from bioprop.plug.session import FEEDBACK
from bioprop.rules import Network, NetworkRule
from bioprop.typing import Key

# Maps (variables, args, kwargs) to (out, the collections that changed).
Apply = Callable[[Mapping[str, Any], tuple[Any, ...], Mapping[str, Any]], tuple[Any, Any]]


def run(model: nn.Module, rule: NetworkRule, apply: Apply, variables: Mapping[str, Any], rngs: Any,
        args: tuple[Any, ...], kwargs: Mapping[str, Any], mutable: Any) -> tuple[Any, Any]:
  """`apply` of a plugged model: (out, the collections that changed).

  Args:
    model: the model, for messages.
    rule: its rule.
    apply: the plain model's `apply`.
    variables: its variables, and the feedback; where it is missing and `mutable`, it is made of
      the parameters as they are.
    rngs: random streams; feedback is drawn from 'feedback' or 'params'.
    args: the model's inputs.
    kwargs: its keyword arguments.
    mutable: the collections that the caller wants back.

  Raises:
    FeedbackMissingError: if `variables` carries no feedback, or one of other parameters.
  """
  others = dict(variables)
  params, feedback = others.pop('params', {}), others.pop(FEEDBACK, None)
  network = _network(apply, others, args, kwargs)
  if feedback is None and in_filter(mutable, FEEDBACK):
    feedback = rule.init_feedback(_key(rngs or {}), network, params)
  _check(model, rule, params, feedback)
  out, state = rule.run(network, params, feedback)
  if in_filter(mutable, FEEDBACK):
    state = {**state, FEEDBACK: feedback}
  return out, state


def feedback(model: nn.Module, rule: NetworkRule, apply: Apply, variables: Mapping[str, Any],
             rngs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """The rule's feedback for variables that the plain model's `init` made; arguments as in `run`.

  Raises:
    NothingMatchedError: if the model has no parameters.
  """
  others = dict(variables)
  params = others.pop('params', {})
  if not jax.tree.leaves(params):
    raise NothingMatchedError(
        f'{type(model).__name__} has no parameters that a learning rule could apply to.')
  return rule.init_feedback(_key(rngs), _network(apply, others, args, kwargs), params)


def _network(apply: Apply, others, args, kwargs) -> Network:
  arrays, _, rebuild = split(args, kwargs)

  def function(params, arrays):
    return apply({**others, 'params': params}, *rebuild(arrays))

  return Network(function, arrays)


def _key(rngs: Any) -> Key:
  """A key for feedback, never one that the model's own initialisers use."""
  streams = rngs if isinstance(rngs, Mapping) else {'params': rngs}
  key = streams.get(FEEDBACK, streams.get('params'))
  return jax.random.fold_in(jax.random.key(0) if key is None else key,
                            zlib.crc32(FEEDBACK.encode()))


def _check(model, rule, params, feedback) -> None:
  name = type(rule).__name__
  if feedback is None:
    raise FeedbackMissingError(
        f'{name} keeps what it needs of {type(model).__name__} at its initialisation in the '
        f'collection {FEEDBACK!r}, and the variables have none. Carry what init returned, as one '
        f'carries batch_stats: state = {{k: v for k, v in model.init(key, x).items() if k != '
        f'\'params\'}}, then model.apply({{\'params\': params, **state}}, x); or bind it once, for '
        f'a loop that carries only params: model = bioprop.wrap(model, rule, variables=variables).')
  shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), nn.meta.unbox(tree))
  if rule.keeps_weights and shapes(feedback.get('initial')) != shapes(params):
    raise FeedbackMissingError(
        f'the collection {FEEDBACK!r} does not hold initial parameters of this model, which '
        f'{name} needs: it was made for another model or by another rule. Run init of this plugged '
        f'model again: variables = model.init(key, x).')
