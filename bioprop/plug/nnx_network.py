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
from bioprop.plug.nnx_layer import PLAN, Watcher, watching
from bioprop.plug.nnx_run import let_watch


def make_network(model: nnx.Module, sample: tuple[Any, ...], rngs: Mapping[str, jax.Array],
                 kwargs: Mapping[str, Any]) -> PlugNetwork:
  """The network of an NNX model, plain or plugged; the model stays as it is.

  Args:
    model: the model.
    sample: shapes of its inputs; unused, as the model is made already.
    rngs: unused: NNX models hold their own streams.
    kwargs: its keyword arguments.
  """
  del sample, rngs
  bare = uninstall(nnx.clone(model))
  graphs = {'plain': nnx.split(bare, graph=True), 'acting': nnx.split(model, graph=True)}
  templates = {name: nnx.to_flat_state(state) for name, (_, state) in graphs.items()}
  names = {_name(path) for path, variable in templates['plain'] if isinstance(variable, nnx.Param)}

  def split(variables):
    if not isinstance(variables, nnx.Module) or nnx.graphdef(variables, graph=True) != (
        graphs['acting'][0]):
      raise MeasureError(
          'the derivatives of an NNX model are taken at the model itself, with the rule that it '
          'had when they were prepared: bioprop.jacobians(model, x).true(model).')
    values = {_name(path): variable.get_raw_value()
              for path, variable in nnx.to_flat_state(nnx.state(variables, graph=True))}
    return ({name: values[name] for name in sorted(names)},
            {name: value for name, value in values.items() if name not in names})

  def merged(kind, params, others):
    values = {**params, **others}
    state = nnx.from_flat_state([(path, variable.replace(values[_name(path)]))
                                 for path, variable in templates[kind]])
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

  plans = {plan.path: plan.rule for _, node in nnx.iter_graph(model, graph=True)
           if isinstance(node, nnx.Module) and (plan := getattr(node, PLAN, None)) is not None}
  whole = vars(model).get(nnx_whole.RULE)
  rules = (whole,) if whole is not None else tuple(plans.values())

  def multiplies(label):
    layer = max((path for path in plans if label.startswith(path)), key=len, default=None)
    return not rules or whole is None and layer is not None and plans[layer].multiplies

  return PlugNetwork(plain, acting, rules, whole is not None and whole.own_forward, multiplies,
                     split)


def _name(path: tuple[Any, ...]) -> str:
  return '/'.join(map(str, path))
