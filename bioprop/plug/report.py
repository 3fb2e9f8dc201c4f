"""describe: which parameter learns by which rule, before anything is trained."""
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from bioprop.plug.linen import Plugged, wrap
from bioprop.plug.output import Where
from bioprop.plug.session import FEEDBACK, Record
from bioprop.plug.sites import ELEMENTWISE, REPARAMETRISED
from bioprop.rules import RULES, Rule

_STREAMS = ('params', 'feedback', 'dropout')


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter of a plugged model.

  Attributes:
    path: the parameter's path in `params`.
    shape: its shape.
    layer: the kind of its layer: an op such as 'Dense', or the module's class.
    rule: the name of the rule that it learns by; 'local' for elementwise parameters, which follow
      the exact gradient of what arrives at them; 'BACKPROP' for weights that no rule covers.
    feedback: the feedback's shape, None if there is none.
    note: the nonlinearity that a Hebbian layer is taken to have, or what to know of the parameter.
  """
  path: str
  shape: tuple[int, ...]
  layer: str
  rule: str
  feedback: tuple[int, ...] | None
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Report:
  """The rows, one a parameter; prints as a table."""
  rows: tuple[Row, ...]

  @property
  def left_out(self) -> tuple[Row, ...]:
    """Rows of weights that stay on backprop because no rule covers their layer."""
    return tuple(row for row in self.rows if row.rule == 'BACKPROP')

  def __iter__(self):
    return iter(self.rows)

  def __len__(self):
    return len(self.rows)

  def __str__(self) -> str:
    shown = lambda shape: '-' if shape is None else 'x'.join(map(str, shape)) or 'scalar'
    table = [('parameter', 'shape', 'layer', 'rule', 'feedback', '')]
    table += [(r.path, shown(r.shape), r.layer, r.rule, shown(r.feedback), r.note)
              for r in self.rows]
    widths = [max(len(row[i]) for row in table) for i in range(6)]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
    if self.left_out:
      lines.append(f'WARNING: {len(self.left_out)} weight(s) stay on backprop: '
                   f'{", ".join(r.path for r in self.left_out)}')
    return '\n'.join(lines)


def describe(
    model: nn.Module,
    rule: Rule | str | Mapping[str, Rule | str] | None,
    *sample: Any,
    output: Where = None,
    rngs: Mapping[str, jax.Array] | None = None,
    **kwargs: Any,
) -> Report:
  """Says, for each parameter of a model, which rule it would learn by. Computes nothing.

  Args:
    model: an unbound linen module, plain or plugged.
    rule: what `wrap` takes; None for a model that is plugged already.
    *sample: the model's inputs, as for `init`: arrays, or `jax.ShapeDtypeStruct`s.
    output: as in `wrap`.
    rngs: random streams for `init`, if the model needs more than 'params' and 'dropout'.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    A report; print it.

  Raises:
    NothingMatchedError: if no layer of the model is covered.
    PatternError, OutputError, LiftedTransformError: as `wrap` and `init` do.
  """
  plugged = model if rule is None and isinstance(model, Plugged) else wrap(
      model, rule, output=output)
  streams = rngs or {name: jax.random.key(0) for name in _STREAMS}
  variables, session = _abstract_init(plugged, streams, sample, kwargs)
  names = {cls: name for name, cls in RULES.items()}
  rows = []
  for path, leaf in _flat(variables['params']):
    layer, _, name = path.rpartition('/')
    record = session.records.get(layer)
    if name.startswith(f'{FEEDBACK}_'):
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
  leaves, structure = jax.tree.flatten((sample, kwargs))
  arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, 'shape')}

  def init(arrays):  # Flags such as train=False are no arrays, and stay as they are.
    inputs, options = jax.tree.unflatten(
        structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
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
