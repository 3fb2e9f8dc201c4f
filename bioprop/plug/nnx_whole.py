"""NNX models under a rule of the whole network."""
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from bioprop.errors import FeedbackMissingError, NothingMatchedError, OutputError
from bioprop.plug.arguments import split
from bioprop.plug.nnx_layer import PLAN, Feedback, Plan, plugged_class, running, subclass
from bioprop.rules import Network, NetworkRule
from bioprop.typing import Array, Key

# Attributes of a plugged model: its rule, and the rule's feedback, a tree of `Feedback`.
RULE, FEEDBACK = '_bioprop_network', 'feedback_network'


def plug(model: nnx.Module, layers: list[tuple[str, nnx.Module]], rule: NetworkRule,
         key: Callable[[], Key], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
  """Makes the rule's feedback, and swaps the classes of the model and of its layers.

  A layer only sees to it that no gradient is asked of it outside the model's own call, where the
  rule could not act.

  Args:
    model: an NNX module without a rule.
    layers: its layers and their paths.
    rule: its rule.
    key: makes a key for what is drawn.
    args: the model's inputs, () if there is no sample.
    kwargs: its keyword arguments.
  """
  if not jax.tree.leaves(nnx.state(model, nnx.Param)):
    raise NothingMatchedError(
        f'{type(model).__name__} has no nnx.Param that a learning rule could apply to.')
  if not callable(model):
    raise OutputError(
        f'{type(rule).__name__} acts on the whole network, from its inputs to its output, and '
        f'{type(model).__name__} has no __call__. Give it a method def __call__(self, x), or '
        f'choose a rule of single layers, such as \'align_prop\' or \'fa\'.')
  if rule.needs_sample and not (args or kwargs):
    raise FeedbackMissingError(
        f'{type(rule).__name__} must know the shapes inside the network, and install was given no '
        f'sample of the model\'s input. Give it one batch, after the rngs, and the arguments with '
        f'which the model is called: bioprop.install(model, rule, rngs, x), or '
        f'bioprop.from_flags(model, x).')
  network, params = _network(model, type(model).__call__, args, kwargs)
  made = rule.init_feedback(key(), network, params)
  variables = dict(_named(nnx.state((model, {}), nnx.Param)))
  setattr(model, FEEDBACK, nnx.data(jax.tree_util.tree_map_with_path(
      lambda path, value: _variable(value, variables.get(path[-1].key)), made)))
  setattr(model, RULE, rule)
  for name, layer in layers:
    setattr(layer, PLAN, Plan(name, rule))
    object.__setattr__(layer, '__class__', plugged_class(type(layer)))
  object.__setattr__(model, '__class__', _whole_class(type(model)))


@functools.cache
def _whole_class(plain: type[nnx.Module]) -> type[nnx.Module]:

  @functools.wraps(plain.__call__)
  def call(self, *args, **kwargs):
    return _run(self, plain.__call__, args, kwargs)

  body = {'__call__': call, '_bioprop_plain': getattr(plain, '_bioprop_plain', plain)}
  return subclass(plain, (plain,), body)


def _run(model, call, args, kwargs):
  rule = getattr(model, RULE)
  feedback = jax.tree.map(lambda v: v[...], getattr(model, FEEDBACK),
                          is_leaf=lambda v: isinstance(v, nnx.Variable))
  network, params = _network(model, call, args, kwargs)
  token = running.set(True)
  try:
    out, changed = rule.run(network, params, feedback)
  finally:
    running.reset(token)
  if jax.tree.leaves(changed):
    nnx.update((model, split(args, kwargs)[1]), changed)
  return out


def _network(model, call, args, kwargs) -> tuple[Network, dict[str, Array]]:
  """The model's call as a pure function, and its parameters by path.

  What the call changes (running means, counts of random draws) is the function's state.
  """
  arrays, nodes, rebuild = split(args, kwargs)
  graphdef, params, rest = nnx.split((model, nodes), nnx.Param, ..., graph=True)
  names, variables = zip(*_named(params))
  treedef = jax.tree.structure(params)

  def function(params, arrays):
    state = jax.tree.unflatten(treedef, [params[name] for name in names])
    copy, others = nnx.merge(graphdef, state, rest, copy=True)
    before = {path: variable.get_raw_value() for path, variable in _flat((copy, others))}
    args, kwargs = rebuild({**others, **arrays})
    out = call(copy, *args, **kwargs)
    changed = [(path, variable) for path, variable in _flat((copy, others))
               if variable.get_raw_value() is not before.get(path)]
    return out, nnx.from_flat_state(changed)

  return Network(function, arrays), {n: v[...] for n, v in zip(names, variables)}


def _flat(node) -> list[tuple[tuple[Any, ...], nnx.Variable]]:
  """What a call may change: every variable but parameters and frozen feedback, by path."""
  return list(nnx.to_flat_state(nnx.state(node, nnx.Not(nnx.Any(nnx.Param, Feedback)), graph=True)))


def _named(state: nnx.State) -> list[tuple[str, nnx.Variable]]:
  """The variables of a state of (model, nodes) by path in the model, in the order of its leaves."""
  return [('/'.join(map(str, path if path[0] else path[1:])), variable)
          for path, variable in nnx.to_flat_state(state)]


def _variable(value: Array, weight: nnx.Variable | None) -> Feedback:
  """A variable for feedback, placed and annotated as the parameter that it copies."""
  if weight is None:
    return Feedback(value)
  metadata = {key: weight.get_metadata(key) for key in ('out_sharding', 'sharding_rules', 'mesh')
              if weight.has_metadata(key)}
  return Feedback(value, **metadata)
