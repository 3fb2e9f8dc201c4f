"""describe: which parameter learns by which rule, before anything is trained."""
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from bioprop.plug.arguments import split
from bioprop.plug.linen import Plugged, wrap
from bioprop.plug.nnx_report import rows_of
from bioprop.plug.output import Where
from bioprop.plug.rows import Report, Row
from bioprop.plug.session import FEEDBACK, Record
from bioprop.plug.sites import ELEMENTWISE, REPARAMETRISED
from bioprop.rules import RULES, AnyRule

_STREAMS = ('params', 'feedback', 'dropout')


def describe(
    model: nn.Module | nnx.Module,
    rule: AnyRule | str | Mapping[str, AnyRule | str] | None,
    *sample: Any,
    output: Where = None,
    rngs: Mapping[str, jax.Array] | None = None,
    **kwargs: Any,
) -> Report:
  """Says, for each parameter of a model, which rule it would learn by. Computes nothing.

  Args:
    model: an unbound linen module or an NNX module, plain or plugged; it stays as it is.
    rule: what `wrap` and `install` take; None for a model that is plugged already.
    *sample: the model's inputs, as for `init`: arrays, or `jax.ShapeDtypeStruct`s. An NNX model
      needs them for rules that broadcast the error.
    output: as in `wrap`.
    rngs: random streams for a linen `init`, if the model needs more than 'params' and 'dropout'.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    A report; print it.

  Raises:
    NothingMatchedError: if no layer of the model is covered.
    PatternError, OutputError, LiftedTransformError, FeedbackMemoryError: as `wrap` and
      `init`, or `install`, do.
  """
  if isinstance(model, nnx.Module):
    return Report(tuple(rows_of(model, rule, sample, output, kwargs)))
  plugged = model if rule is None and isinstance(model, Plugged) else wrap(
      model, rule, output=output)
  streams = rngs or {name: jax.random.key(0) for name in _STREAMS}
  variables, session = _abstract_init(plugged, streams, sample, kwargs)
  names = {cls: name for name, cls in RULES.items()}
  whole, rows = plugged._plug.choice.network, []
  for path, leaf in _flat(variables['params']):
    layer, _, name = path.rpartition('/')
    record = session.records.get(layer)
    if whole is not None:
      kind = record.kind if record else session.modules.get(layer, nn.Module).__name__
      feedback = leaf.shape if whole.keeps_weights else None
      rows.append(Row(path, leaf.shape, kind, names.get(type(whole), type(whole).__name__),
                      feedback))
    elif name.startswith(f'{FEEDBACK}_'):
      rows.append(Row(path, leaf.shape, record.kind, names.get(type(record.rule)), None,
                      'learned feedback'))
    elif record is not None and name in (*record.weights, 'bias'):
      rule_name = names.get(type(record.rule), type(record.rule).__name__)
      rows.append(Row(path, leaf.shape, record.kind, rule_name, _feedback_shape(record, name),
                      record.activation or '' if name in record.weights else ''))
    else:
      cls = session.modules.get(layer, nn.Module)
      local = issubclass(cls, ELEMENTWISE + REPARAMETRISED) or leaf.ndim <= 1
      rows.append(Row(path, leaf.shape, cls.__name__, 'local' if local else 'BACKPROP', None,
                      '' if local else 'no rule covers this layer'))
  return Report(tuple(rows))


def _abstract_init(plugged, streams, sample, kwargs):
  """Shapes of the plugged model's variables, and the session that made them."""
  sessions = []
  arrays, _, rebuild = split(sample, kwargs)

  def init(arrays):
    inputs, options = rebuild(arrays)
    (_, variables), session = plugged.traced_init(streams, *inputs, **options)
    sessions.append(session)
    return variables

  return jax.eval_shape(init, arrays), sessions[-1]


def _flat(params):
  """(path, leaf) of every parameter; partitioning boxes do not show."""
  return [('/'.join(str(entry.key) for entry in path if hasattr(entry, 'key')), leaf)
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]


def _feedback_shape(record: Record, name: str) -> tuple[int, ...] | None:
  if name not in record.weights:
    return None
  if record.rule.learns or name in record.feedback:
    return record.feedback.get(name)
  return next(iter(record.feedback.values()), None)
