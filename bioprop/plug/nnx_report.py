"""describe, for NNX models."""
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from bioprop.plug import nnx_whole
from bioprop.plug.nnx import install
from bioprop.plug.nnx_kinds import ELEMENTWISE, kind_of
from bioprop.plug.nnx_layer import PLAN
from bioprop.plug.output import Where
from bioprop.plug.rows import Row
from bioprop.rules import RULES, NetworkRule

_NAMES = {cls: name for name, cls in RULES.items()}


def rows_of(model: nnx.Module, rule: Any, sample: tuple[Any, ...], output: Where,
            kwargs: Mapping[str, Any]) -> list[Row]:
  """The rows of `describe`; the model is copied, and nothing is computed.

  Args:
    model: an NNX module.
    rule: what `install` takes; None for a model that is plugged already.
    sample: the model's inputs.
    output: as in `install`.
    kwargs: the model's keyword arguments.
  """
  rows = []

  def plug(state):
    copy = nnx.merge(graphdef, state)
    if rule is not None:
      install(copy, rule, nnx.Rngs(0), *sample, output=output, **kwargs)
    rows.extend(_rows(copy, exact=rule is not None))

  graphdef, state = nnx.split(model, graph=True)
  jax.eval_shape(plug, state)
  return rows


def _rows(model: nnx.Module, exact: bool) -> list[Row]:
  """A row for each parameter; `exact`: layers without a plan are on bp because it was asked for."""
  rows, owners, whole = [], {}, vars(model).get(nnx_whole.RULE)
  for path, node in nnx.iter_graph(model, graph=True):
    if isinstance(node, nnx.Module):
      owners[path] = node
  for path, node in nnx.iter_graph(model, graph=True):
    if isinstance(node, nnx.Param):
      owner = max((at for at in owners if path[:len(at)] == at), key=len)
      rows.append(_row('/'.join(map(str, path)), str(path[-1]), node, owners[owner], exact, whole))
  return sorted(rows, key=lambda row: row.path)


def _row(path: str, name: str, parameter: nnx.Param, layer: nnx.Module, exact: bool,
         whole: NetworkRule | None) -> Row:
  shape, kind = parameter.shape, kind_of(type(layer))
  if whole is not None:
    return Row(path, shape, kind.name if kind else type(layer).__name__, _name(whole),
               shape if whole.keeps_weights else None)
  plan = getattr(layer, PLAN, None)
  if plan is not None and any(name == row[2] for row in plan.feedback):
    return Row(path, shape, kind.name, _name(plan.rule), None, 'learned feedback')
  if kind is not None and name in (*kind.weights, 'bias') and (plan is not None or exact):
    if plan is None or name == 'bias':
      return Row(path, shape, kind.name, 'bp' if plan is None else _name(plan.rule), None)
    own = [row for row in plan.feedback if row[1] == name or (row[1] not in kind.weights
                                                              and row[0] in ('', name))]
    feedback = getattr(layer, own[0][2]).shape if own else None
    phi = next((phi.name for op, phi in plan.activations.items() if op in ('', name)), '')
    return Row(path, shape, kind.name, _name(plan.rule), feedback, phi)
  local = isinstance(layer, ELEMENTWISE) or parameter.ndim <= 1
  return Row(path, shape, type(layer).__name__, 'local' if local else 'BACKPROP', None,
             '' if local else 'no rule covers this layer')


def _name(rule: Any) -> str:
  return _NAMES.get(type(rule), type(rule).__name__)
