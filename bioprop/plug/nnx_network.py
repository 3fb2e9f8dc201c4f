"""An NNX model as functions of its parameters by path, with its ops marked."""
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from bioprop.errors import MeasureError
from bioprop.plug import nnx_whole
from bioprop.plug.marks import marked
from bioprop.plug.network import PlugNetwork
from bioprop.plug.nnx import uninstall, watchable
from bioprop.plug.nnx_layer import PLAN, Plan, Watcher, watching
from bioprop.plug.nnx_run import OUTPUT, let_watch
from bioprop.rules import Rule, make


def make_network(model: nnx.Module, sample: tuple[Any, ...], rngs: Mapping[str, jax.Array],
                 kwargs: Mapping[str, Any]) -> PlugNetwork:
  """The network of an NNX model, plain or plugged; the model stays as it is.

  Args:
    model: the model.
    sample: shapes of its inputs; unused, as the model is made already.
    rngs: none, as NNX models hold their own streams.
    kwargs: its keyword arguments.
  """
  del sample
  if rngs:
    raise MeasureError('NNX models hold their own random streams, and take no rngs: leave rngs '
                       'out, or reseed the model\'s.')
  bare = uninstall(nnx.clone(model))
  graphs = {'plain': nnx.split(bare, graph=True), 'acting': nnx.split(model, graph=True)}
  templates = {name: nnx.to_flat_state(state) for name, (_, state) in graphs.items()}
  names = {_name(path) for path, variable in templates['plain'] if isinstance(variable, nnx.Param)}

  def split(variables):
    if not isinstance(variables, nnx.Module) or nnx.graphdef(variables, graph=True) != (
        graphs['acting'][0]):
      raise MeasureError(
          'the derivatives of an NNX model are taken at the model itself, as it was when they were '
          'prepared: bioprop.jacobians(model, x).true(model). This is another object, or its rule, '
          'its mode (train(), eval()) or another static attribute has changed: prepare again.')
    values = {_name(path): leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
              for path, leaf in nnx.to_flat_state(nnx.state(variables, graph=True))}
    return ({name: values[name] for name in sorted(names)},
            {name: value for name, value in values.items() if name not in names})

  def merged(kind, params, others):
    values = {**params, **others}
    of = lambda leaf, value: leaf.replace(value) if isinstance(leaf, nnx.Variable) else value
    state = nnx.from_flat_state([(path, of(leaf, values[_name(path)]))
                                 for path, leaf in templates[kind]])
    return nnx.merge(graphs[kind][0], state)

  def plain(params, others, inputs):
    copy = merged('plain', params, others)
    let_watch(watchable(copy))
    token = watching.set(Watcher())
    try:
      return copy(*inputs, **kwargs)
    finally:
      watching.reset(token)

  def acting(params, others, inputs):
    if not rules:
      return plain(params, others, inputs)
    with marked():
      return merged('acting', params, others)(*inputs, **kwargs)

  shared = _shared(bare)
  whole = vars(model).get(nnx_whole.RULE)
  plans = _Plans(model, whole is not None)
  rules = (whole,) if whole is not None else plans.rules

  def initial(others):
    inside = f'{nnx_whole.FEEDBACK}/initial/'
    return {name.removeprefix(inside): leaf for name, leaf in others.items()
            if name.startswith(inside)}

  return PlugNetwork(
      plain, acting, rules, whole is None and all(rule.exact for rule in rules),
      whole is not None and whole.own_forward, plans.rule_at, plans.stored, initial,
      lambda path: shared.get(path, path), vars(model).get(OUTPUT), split)


class _Plans:
  """What the layers of a plugged model were told, by the labels of their ops."""

  def __init__(self, model: nnx.Module, whole: bool):
    self._whole = whole  # The rule is one of the whole network, which layers know nothing of.
    self._plans = {
        plan.path: plan for _, node in nnx.iter_graph(model, graph=True)
        if isinstance(node, nnx.Module) and (plan := getattr(node, PLAN, None)) is not None}
    self.rules = tuple(plan.rule for plan in self._plans.values())

  def rule_at(self, label: str) -> Rule | None:
    """See `PlugNetwork`."""
    plan = self._plan(label)  # A layer that is left on backprop has none.
    return plan.rule if plan else None if self._whole else make('bp')

  def stored(self, label: str, others: Mapping[str, Any]) -> dict[str, jax.Array]:
    """See `PlugNetwork`."""
    plan = self._plan(label)
    if plan is None:
      return {}
    inside = f'{plan.path}/' if plan.path else ''
    return {name: others[f'{inside}{attribute}'] for _, name, attribute in plan.feedback
            if f'{inside}{attribute}' in others}

  def _plan(self, label: str) -> Plan | None:
    inside = lambda path: f'{label}/'.startswith((f'{path}/', f'{path}.'))
    layer = max((path for path in self._plans if inside(path)), key=len, default=None)
    return None if layer is None or self._whole else self._plans[layer]


def _shared(model: nnx.Module) -> dict[str, str]:
  """The path in the state of every parameter, by each of its paths."""
  first: dict[int, str] = {id(node): _name(path) for path, node in nnx.iter_graph(model, graph=True)
                           if isinstance(node, nnx.Variable)}
  return {_name((*path, name)): first[id(value)]
          for path, node in nnx.iter_graph(model, graph=True) if isinstance(node, nnx.Module)
          for name, value in vars(node).items() if id(value) in first}


def _name(path: tuple[Any, ...]) -> str:
  return '/'.join(map(str, path))
