"""describe: which parameter learns by which rule, before anything is trained."""
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from bioprop.errors import not_described, not_plugged, refusing_samples, require_sample
from bioprop.fronts import linen as linen_plug
from bioprop.fronts import nnx as nnx_plug
from bioprop.fronts.choice import Where, choose
from bioprop.fronts.function import Call, Plug, split
from bioprop.fronts.nnx_run import beside, modules, unplug
from bioprop.network.layered import Layered
from bioprop.network.recurrence import Entries, entries, recurrent_ops
from bioprop.network.store import Keys, Made, Store, by_path, redrawn
from bioprop.network.values import Frame, Node, SeenOp
from bioprop.rules import RULES, AnyRule

Recurrent = dict[int, dict[int, Entries]]  # As `recurrent_ops` gives it.
_STREAMS = ('params', 'feedback', 'dropout')
_NAMES = {cls: name for name, cls in RULES.items()}
# Where a parameter so meets data nothing is multiplied by it.
_ADDED = frozenset('''add add_any sub concatenate select_n pad max min dynamic_update_slice
    convert_element_type reduce_precision'''.split())


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter of a plugged model.

  Attributes:
    path: the parameter's path in `params`.
    shape: its shape.
    layer: the class of the module that owns it, such as 'Dense'; of a plain function the equation
      in which it meets data.
    rule: the name of the rule that it learns by; 'local' where it meets data elsewhere than in a
      product, as norm scales do: it follows the exact gradient of what arrives at it; 'BACKPROP'
      where no rule can act; 'unused' where this call does not use it.
    feedback: the feedback's shape, None if there is none.
    note: the nonlinearity that a Hebbian op is taken to have, or what to know of the parameter.
    time: 'recurrent' where the parameter multiplies what its own product made a step of time
      before, 'in part' where that is some of what it multiplies, '' elsewhere.
  """
  path: str
  shape: tuple[int, ...]
  layer: str
  rule: str
  feedback: tuple[int, ...] | None
  note: str = ''
  time: str = ''


@dataclasses.dataclass(frozen=True)
class Report:
  """The rows, one a parameter, and whether the output is a softmax; prints as a table."""
  rows: tuple[Row, ...]
  normalised: bool = False

  @property
  def left_out(self) -> tuple[Row, ...]:
    """Rows of parameters that stay on backprop because no rule can act where they meet data."""
    return tuple(row for row in self.rows if row.rule == 'BACKPROP')

  @property
  def elementwise(self) -> tuple[Row, ...]:
    """Rows of matrices that multiply data elementwise, where a sum after it may be a product."""
    return tuple(row for row in self.rows if row.note.startswith('elementwise'))

  def __iter__(self) -> Iterator[Row]:
    return iter(self.rows)

  def __len__(self):
    return len(self.rows)

  def __str__(self) -> str:
    shown = lambda shape: '-' if shape is None else 'x'.join(map(str, shape)) or 'scalar'
    timed = any(r.time for r in self.rows)
    table = [('parameter', 'shape', 'layer', 'rule', 'feedback', *['time'] * timed, '')]
    table += [(r.path, shown(r.shape), r.layer, r.rule, shown(r.feedback), *[r.time] * timed,
               r.note) for r in self.rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
    for rows, what in ((self.left_out, 'stay on backprop'),
                       (self.elementwise, 'multiply data elementwise, where they learn as under '
                        'backprop: if a sum follows, write it as a product')):
      if rows:
        lines.append(f'WARNING: {len(rows)} weight(s) {what}: {", ".join(r.path for r in rows)}')
    if self.normalised:
      lines.append('WARNING: the output is a softmax, and losses that take logits, such as '
                   'optax.softmax_cross_entropy, apply another: return what goes into it')
    return '\n'.join(lines)


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
    rule: what `bioprop.plug` takes; None for a model that is plugged already.
    *sample: the model's inputs, as for `init`: arrays, or `jax.ShapeDtypeStruct`s. Without them
      what an NNX model does is not seen: its matrices are taken for weights.
    output: as in `bioprop.plug`.
    rngs: random streams for a linen `init`, if the model needs more than 'params' and 'dropout'.
    **kwargs: the model's keyword arguments, such as train=False.

  Returns:
    A report; print it.

  Raises:
    NothingMatchedError: if no parameter meets data in a product.
    SampleError: if the model cannot be called on the sample, or a linen model has none.
    PluggedError: if `rule` is None and not this NNX model is plugged, but a module of it.
    PatternError, OutputError, FeedbackMemoryError: as `bioprop.plug` and `init` do.
    TypeError: if `model` is a function.
  """
  if isinstance(model, nnx.Module):
    plug = getattr(model, nnx_plug.PLUG, None) if rule is None else Plug(choose(rule), output)
    part = next((path for path, node in modules(model) if hasattr(node, '_bioprop_role')), None)
    if plug is None and part is not None:
      raise not_plugged(type(model).__name__, '/'.join(map(str, part)))
    return _nnx(model, plug or Plug(choose('bp'), output), sample, kwargs)
  if not isinstance(model, nn.Module):
    raise not_described(model)
  require_sample('describe', sample, kwargs)
  plug = getattr(model, 'bioprop_plug', None) if rule is None else Plug(choose(rule), output)
  plug, streams = plug or Plug(choose('bp'), output), dict.fromkeys(_STREAMS, jax.random.key(0))
  return _linen(linen_plug.plain_model(model), plug, rngs or streams, sample, kwargs)


def _linen(plain: nn.Module, plug: Plug, streams, sample, kwargs) -> Report:
  owners: dict[str, str] = {}
  inner: dict[str, tuple[int, ...]] = {}

  def note(next_fun, args, kwargs, context):
    module, out = context.module, next_fun(*args, **kwargs)
    # Of modules with one path, as a transform makes them, the innermost is the first to end.
    owners.setdefault('/'.join(module.path), type(module).__name__)
    for path, leaf in by_path(nn.meta.unbox(module.variables.get('params', {})))[0].items():
      inner.setdefault('/'.join((*module.path, path)), leaf.shape)
    return out

  arrays, _, rebuild = split(sample, kwargs)

  def init(arrays):
    inputs, options = rebuild(arrays)
    with nn.intercept_methods(note):
      return plain.init(streams, *inputs, **options)

  with refusing_samples(type(plain).__name__, (sample, kwargs)):
    variables = jax.eval_shape(init, arrays)
  params, held = variables.get('params', {}), {k: v for k, v in variables.items() if k != 'params'}
  call = linen_plug.call_of(plain, params, held, sample, kwargs, streams, None,
                            nn.DenyList('params'))
  return _report(call, plug, owners, True, linen_plug.beside, inner)


def _nnx(model: nnx.Module, plug: Plug, sample, kwargs) -> Report:
  plain = unplug(nnx.clone(model))
  owners = {'/'.join(map(str, path)): type(node).__name__ for path, node in modules(plain)}
  seen = bool(sample or kwargs) and callable(plain)
  if not seen and any(nnx_plug.needs_sample(own) for _, own in plug.choice.rows):
    nnx_plug.require_sample(plug)
  call = nnx_plug.call_of(plain, type(plain).__call__ if callable(plain) else None, sample, kwargs)
  paths = {tuple(map(str, path)) for path, _ in modules(plain)}
  return _report(call, plug, owners, seen, lambda weight: beside(weight, paths), {})


def _report(call: Call, plug: Plug, owners: Mapping[str, str], seen: bool,
            beside: Callable[[Keys], Keys], inner: Mapping[str, Sequence[int]]) -> Report:
  """A row for each parameter."""
  whole, rows = plug.choice.network, []
  with refusing_samples(call.name, call.inputs):
    layered = plug.seen(call, check=False) if seen and whole is None else None
  if layered is not None:
    layered.require_ops(call.name)
  made, learns = _feedback(call, plug, seen)
  found = {} if layered is None else recurrent_ops(layered.traced.network)
  for path, w in call.params.items():
    layer = path.rpartition('/')[0]
    while layer not in owners and layer:  # A parameter in a list lies in the module that owns it.
      layer = layer.rpartition('/')[0]
    # A scan's inner module has the path of the outermost, ''.
    row = Row(path, tuple(w.shape), owners.get(layer, call.name) if layer else call.name, '', None)
    if whole is not None:
      rows.append(dataclasses.replace(
          row, rule=_name(whole), feedback=row.shape if whole.keeps_weights else None))
    elif layered is None:
      rows.append(_unseen(row, plug, made, call))
    else:
      rows.append(_row(row, layered, made, call, found, inner.get(path, row.shape)))
  for keys in sorted(learns):  # In the row of its weight, or of the one in whose layer it lies.
    near = [row for row in rows if row.feedback and call.keys[row.path][:-1] == keys[:-1]]
    own = max(near, key=lambda row: keys[-1].startswith(call.keys[row.path][-1]))
    rows.append(dataclasses.replace(own, path='/'.join(beside(keys)), feedback=None, note=(
        'learned feedback'), shape=tuple(made[keys].shape)))
  normalised = layered is not None and _normalised(layered.traced.network.frame)
  return Report(tuple(sorted(rows, key=lambda row: row.path)), normalised)


def _normalised(frame: Frame) -> bool:
  """Whether the first output is exp(h) / sum(exp(h))."""
  made = {at: step for step in frame.steps if isinstance(step, Node) for at in step.outs}
  operands = lambda at, name: tuple(made[at].ins) if at in made and (
      made[at].eqn.primitive.name == name) else ()
  top, *below = operands(frame.outs[0], 'div') or (-1,)
  sums = [at for one in below for at in operands(one, 'broadcast_in_dim')]
  return operands(top, 'exp') != () and [operands(at, 'reduce_sum') for at in sums] == [(top,)]


def _row(row: Row, layered: Layered, made: Store, call: Call, found: Recurrent, inner) -> Row:
  network = layered.traced.network
  meetings = [meeting for meeting in network.meetings if meeting.path == row.path]
  hidden = [meeting.primitive for meeting in meetings if not meeting.entered]
  ops = [op for op in network.ops if row.path in op.paths]
  if hidden:
    return dataclasses.replace(row, rule='BACKPROP', note=(
        f'inside a {hidden[0]}, where no rule can act'))
  if ops:
    feedback = made.get(call.keys[row.path])
    if feedback is None and ops[0].path == row.path:
      own = [value for keys, value in made.items() if keys not in call.keys.values() and (
          keys[:-1] == call.keys[row.path][:-1]) and (
              not _shares(network, row.path) or keys[-1].startswith(call.keys[row.path][-1]))]
      feedback = next((leaf for value in own for leaf in jax.tree.leaves(value)), None)
    phi = next((layered.phis[op.number].name for op in ops if op.number in layered.phis), '')
    return dataclasses.replace(row, rule=_name(layered.rules[ops[0].number]), note=phi,
                               feedback=None if feedback is None else tuple(feedback.shape),
                               time=_time(layered, ops, found))
  for op in network.ops:
    if row.path in op.seen_bias.paths:
      return dataclasses.replace(row, rule=_name(layered.rules[op.number]))
  if not meetings:
    return dataclasses.replace(row, rule='unused', note='this call does not use it')
  multiplied = [meeting.primitive for meeting in meetings if meeting.primitive not in _ADDED]
  # In a scan each step has its own vector of what is a matrix outside.
  matrix = sum(size > 1 for size in inner) > 1
  note = f'elementwise, in {", ".join(dict.fromkeys(multiplied))}' if multiplied and matrix else ''
  return dataclasses.replace(row, rule='local', note=note)


def _time(layered: Layered, ops: Sequence[SeenOp], found: Recurrent) -> str:
  """Whether a weight is recurrent, as its rule sees it, or as it is found."""
  own = [layered.recurrent.get(op.number, False) if layered.rules[op.number].needs_time else
         entries(found.get(op.number, {})) for op in ops]
  recurrent = [one for one in own if one is not False]
  whole = len(recurrent) == len(own) and all(one is True for one in recurrent)
  return '' if not recurrent else 'recurrent' if whole else 'in part'


def _shares(network, path: str) -> bool:
  """Whether the layer of a parameter has other weights too."""
  layer = path.rpartition('/')[0]
  return any(op.path != path and op.path.rpartition('/')[0] == layer for op in network.ops)


def _unseen(row: Row, plug: Plug, made: Store, call: Call) -> Row:
  """Of a model that was not run: matrices are taken for weights."""
  feedback = made.get(call.keys[row.path])
  layer = row.path.rpartition('/')[0]
  beside = any(len(w.shape) >= 2 and path.rpartition('/')[0] == layer
               for path, w in call.params.items())
  is_weight = len(row.shape) >= 2 or beside and row.path.rpartition('/')[2] == 'bias'
  rule = _name(plug.choice.rule_for(row.path)) if is_weight else 'local'
  return dataclasses.replace(row, rule=rule,
                             feedback=None if feedback is None else tuple(feedback.shape))


def _feedback(call: Call, plug: Plug, seen: bool) -> Made:
  """Shapes of the feedback, and which of it learns; hidden parameters are on backprop."""
  if plug.choice.exact or plug.choice.network is not None:
    return {}, frozenset()
  found: list[Made] = []

  def make(params, held, inputs):
    own = dataclasses.replace(call, params=params, held=held, inputs=inputs)
    draw = lambda key: redrawn(params, key)
    key = jax.random.key(0)
    found.append(plug.init(own, draw, key, check=False) if seen else
                 nnx_plug.init_without_sample(own, plug, key))
    return list(found[0][0].values())

  shapes = jax.eval_shape(make, dict(call.params), call.held, call.inputs)
  (store, learns), = found
  return dict(zip(store, shapes)), learns


def _name(rule: Any) -> str:
  return _NAMES.get(type(rule), type(rule).__name__)

