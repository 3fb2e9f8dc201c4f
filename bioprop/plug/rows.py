"""The table that `describe` prints: one row a parameter."""
import dataclasses


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
