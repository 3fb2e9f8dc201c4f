"""Reads a network's jaxpr as fields of infinite width."""
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bioprop.errors import TheoryError
from bioprop.limit.algebra import Algebra
from bioprop.limit.expressions import ELEMENTWISE, applied
from bioprop.limit.moves import Moves, reason
from bioprop.limit.parameters import Uses, entries_of, follow, uniform
from bioprop.limit.places import place_of
from bioprop.limit.products import Products
from bioprop.limit.values import (
  Factor,
  Gain,
  Hidden,
  Known,
  Param,
  Plain,
  Value,
  arranged,
  only,
  refuse,
)
from bioprop.network import axes as network_axes
from bioprop.network.layout import (
  CALLS,
  REMATS,
  Body,
  bind,
  body_of,
  branches_of,
  constant,
  scan_of,
)
from bioprop.theory.fields.leaves import (
  Added,
  Applied,
  Features,
  Field,
  Gained,
  Given,
  Term,
  Weighted,
)

_CUSTOM = ('custom_jvp_call', 'custom_vjp_call')
_SAME = frozenset('convert_element_type reduce_precision copy copy_p name sharding_constraint'.split())


class Reader:
  """Reads one network.

  Attributes:
    ops: the products of weights with data, in the order in which they run.
    uses: the parameters that it uses.
  """

  def __init__(self, uses: Uses):
    self.uses, self._algebra = uses, Algebra()
    self._products, self._moves = Products(uses, self._algebra), Moves(self._algebra)

  @property
  def ops(self) -> list[Weighted]:
    """The products with weights."""
    return self._products.ops

  def read(self, closed: core.ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
    """Reads a jaxpr; returns its outputs.

    Raises:
      TheoryError: if something in it has no limit of infinite width; the message says where.
    """
    return self._run(Body(closed.jaxpr, closed.consts), arguments)

  def _run(self, body: Body, arguments: Sequence[Value]) -> list[Value]:
    known: dict[Any, Value] = dict(zip(body.jaxpr.invars, arguments))
    known.update((var, Known(const)) for var, const in zip(body.jaxpr.constvars, body.consts))
    read = lambda atom: Known(constant(atom)) if isinstance(atom, core.Literal) else known[atom]
    for eqn in body.jaxpr.eqns:
      known.update(zip(eqn.outvars, self._equation(eqn, [read(atom) for atom in eqn.invars])))
    return [read(atom) for atom in body.jaxpr.outvars]

  def _equation(self, eqn, ins: list[Value]) -> list[Value]:
    if all(isinstance(one, Known) for one in ins):
      return [Known(value) for value in bind(eqn, [one.value for one in ins])]
    if all(isinstance(one, Known | Plain) for one in ins):
      return _plain(eqn, ins)
    name = eqn.primitive.name
    if name in CALLS or name in REMATS:
      return self._run(body_of(eqn), ins)
    if name in _CUSTOM:
      return self._custom(eqn, ins)
    if name == 'scan':
      return self._scan(eqn, ins)
    if name == 'cond' and isinstance(ins[0], Known):
      branches = branches_of(eqn)
      return self._run(branches[min(max(int(ins[0].value), 0), len(branches) - 1)], ins[1:])
    if all(isinstance(one, Known | Param) for one in ins):
      return follow(eqn, ins)
    try:
      found = self._met(eqn, ins, place_of(eqn))
    except TheoryError as error:
      if str(error).startswith("'"):
        raise
      raise TheoryError(f'{place_of(eqn)}: {error}') from error
    return found if isinstance(found, list) else [found]

  def _met(self, eqn, ins: list[Value], place: str) -> Value | list[Value]:
    """An equation of which at least one input is hidden, or is a parameter beside data."""
    name = eqn.primitive.name
    hidden = any(isinstance(one, Hidden | Gain) for one in ins)
    params = [one for one in ins if isinstance(one, Param)]
    if name == 'dot_general' and params:
      return self._products.dot_general(eqn, ins, place)
    if name == 'conv_general_dilated' and (params or hidden):
      return self._products.convolution(eqn, ins, place)
    if name == 'gather' and isinstance(ins[0], Param):
      return self._products.lookup(eqn, ins, place)
    if name == 'stop_gradient':
      raise refuse(place, 'a stopped gradient', 'what is below would not learn', 'Leave it out.')
    if name in _SAME and len(ins) == 1:
      return ins[0]
    if isinstance(ins[0], Gain) and name in ('broadcast_in_dim', 'reshape', 'squeeze'):
      plain, = _plain(eqn, [ins[0].plain, *ins[1:]])
      param, = follow(eqn, [ins[0].param, *ins[1:]])
      return Gain(plain, param)
    if params and not any(isinstance(one, Hidden) for one in ins):
      return self._gain(eqn, ins, place)
    if name in self._moves.known:
      return self._moves.known[name](eqn, ins, place)
    if name == 'concatenate':
      return self._moves.joined(eqn, ins, place)
    if name in ELEMENTWISE:
      return self._elementwise(eqn, ins, place)
    what = reason(name) or (f'{name!r} of hidden values', 'it is none of the functions that are '
                            'known', 'Write it in elementwise functions, sums, moves and products.')
    raise refuse(place, *what)

  def _custom(self, eqn, ins: list[Value]) -> list[Value]:
    """A function with a derivative of its own, which is to be that of what it computes."""
    body = body_of(eqn)
    if any(isinstance(one, Hidden) for one in ins) and not _has_true_derivative(eqn, body):
      raise refuse(place_of(eqn), 'a function with a derivative of its own',
                   'its derivative is another than that of what it computes', 'Write the function '
                   'without it.')
    return self._run(body, ins)

  def _scan(self, eqn, ins: list[Value]) -> list[Value]:
    """Step by step: layers that are stacked have each their own weights."""
    scan, place = scan_of(eqn), place_of(eqn)
    consts, carry = ins[:scan.consts], ins[scan.consts:scan.consts + scan.carried]
    slices, stacked = ins[scan.consts + scan.carried:], []
    steps = range(scan.length)
    for step in reversed(steps) if scan.options['reverse'] else steps:
      own = [_step_of(one, step, place) for one in slices]
      outs = self._run(scan.body, [*consts, *carry, *own])
      carry = outs[:scan.carried]
      stacked.append(outs[scan.carried:])
    if stacked and stacked[0]:
      raise refuse(place, 'what a loop collects from its steps', 'it is not followed',
                   'Return the last value only, or write the loop out.')
    return carry

  def _gain(self, eqn, ins: list[Value], place: str) -> Value:
    """A parameter with numbers that inputs determine."""
    at = next(i for i, one in enumerate(ins) if isinstance(one, Param))
    ins = [self._grown(one, eqn.outvars[0].aval.shape, place) for one in ins]
    others = [one for i, one in enumerate(ins) if i != at]
    if eqn.primitive.name != 'mul' or len(others) != 1 or not isinstance(others[0], Plain):
      raise refuse(place, f'the parameter {ins[at].paths[0]!r} beside inputs',
                   'it is neither a product with a weight nor a norm\'s scale',
                   'Give the inputs a weight first (a dense layer, a convolution, an embedding).')
    return Gain(others[0], ins[at])

  def _elementwise(self, eqn, ins: list[Value], place: str) -> Hidden:
    name = eqn.primitive.name
    hidden = [one for one in ins if isinstance(one, Hidden)]
    if not hidden:
      raise refuse(place, 'a parameter beside inputs', 'it is no product with a weight',
                   'Give the inputs a weight first.')
    shape = eqn.outvars[0].aval.shape
    ins = [self._grown(one, shape, place) for one in ins]
    hidden = [one for one in ins if isinstance(one, Hidden)]
    operands = [_operand(one) for one in ins]
    if name in ('add', 'add_any', 'sub') or name == 'neg':
      signs = (1, -1) if name == 'sub' else (1, 1)
      signs = (-1,) if name == 'neg' else signs
      return self._sum(operands, signs, hidden[0], place)
    if name in ('mul', 'div'):
      found = self._scaled(name, operands, ins, hidden[0], place)
      if found is not None:
        return found
    if name == 'mul':
      a, b = (self._as_hidden(one, hidden[0], place) for one in operands)
      return self._moves.together(a, b, self._algebra.times, place)
    if name == 'square' or name == 'integer_pow' and eqn.params['y'] == 2:
      return hidden[0].each(lambda field: self._algebra.times(field, field))
    if name == 'select_n' and isinstance(operands[0], Plain) and len(operands) == 3:
      return self._selected(operands, hidden[0], place)
    return self._function(eqn, operands, hidden, place)

  def _grown(self, one: Value, shape, place: str) -> Value:
    """An operand whose axes of one entry are as long as the result's."""
    if isinstance(one, Known):
      uniform_or_whole = np.ndim(one.value) == 0 or np.shape(one.value) == shape
      return one if uniform_or_whole else Known(np.broadcast_to(one.value, shape))
    if isinstance(one, Param):
      index = None if one.index is None else np.broadcast_to(one.index, shape)
      return dataclasses.replace(one, value=np.broadcast_to(one.value, shape), index=index)
    if isinstance(one, Gain):
      return Gain(self._grown(one.plain, shape, place), self._grown(one.param, shape, place))
    if isinstance(one, Plain):
      if one.shape == shape:
        return one
      lead = len(shape) - len(one.shape)
      grown = Applied(lambda a: jnp.broadcast_to(a, shape), (one.data,))
      flat = {lead + at for at, size in enumerate(one.shape) if size == 1 or at in one.flat}
      axis = None if one.axis is None else one.axis + lead
      return Plain(grown, shape, axis, frozenset(flat | set(range(lead))))
    return self._moves.grown(one, shape, place)

  def _sum(self, operands, signs, like: Hidden, place: str) -> Hidden:
    total = None
    for one, sign in zip(operands, signs):
      own = self._as_hidden(one, like, place).each(
          lambda field, sign=sign: self._algebra.scaled(field, sign))
      total = own if total is None else self._moves.added(total, own, place)
    return total

  def _as_hidden(self, one, like: Hidden, place: str) -> Hidden:
    """What is added to, or multiplied by, a hidden value, as one."""
    if isinstance(one, Hidden):
      return one
    if isinstance(one, Param):
      return like.each(lambda _: self._added(one, like, place))
    if isinstance(one, Gain):
      raise refuse(place, f'the parameter {one.param.paths[0]!r} times inputs, that is added',
                   'it is no product with a weight', 'Give the inputs a weight first.')
    if isinstance(one, Plain):
      if self._alike(one, like):
        return like.each(lambda _: self._algebra.constant(
            arranged(one.data, like.axes, False), like.sizes))
      values = arranged(one.data, like.axes, True)
      if len(like.parts) > 1:
        raise refuse(place, 'numbers that are added to features of several kinds',
                     'they are another for each', 'Add them before the features are joined.')
      return like.each(lambda _: (Term(Features(like.sizes, values)),))
    return like.each(lambda _: self._algebra.constant(float(one), like.sizes))

  def _added(self, param: Param, like: Hidden, place: str) -> Field:
    """A bias, or an embedding of positions."""
    pattern = entries_of(param, like.axes, place)
    parameter = self.uses.use(param, place)
    mean = uniform(param)
    beside = next((term.leaf for _, field in like.parts for term in field
                   if isinstance(term.leaf, Weighted)), None) if len(like.parts) == 1 and len(
                       like.parts[0][1]) == 1 else None
    own: Field = (Term(Added(like.sizes, parameter, pattern, beside)),)
    if mean:
      own = self._algebra.plus(own, self._algebra.constant(mean, like.sizes))
    return own

  def _alike(self, one: Plain, like: Hidden) -> bool:
    """Whether numbers are alike for all features."""
    return all(at in one.flat or not any(f.kind == 'w' and f.size > 1 for f in axis)
               for at, axis in enumerate(like.axes))

  def _scaled(self, name, operands, ins, like: Hidden, place: str) -> Hidden | None:
    """A hidden value times a number, numbers, or a parameter; None if it is something else."""
    if not isinstance(operands[0], Hidden):
      if name == 'div':
        return None
      operands = operands[::-1]
    x, factor = operands
    if isinstance(factor, Hidden):
      return None
    if isinstance(factor, Param | Gain):
      return self._gained(x, factor, place) if name == 'mul' else None
    if isinstance(factor, Plain):
      if not self._alike(factor, like):
        raise refuse(place, 'hidden features times numbers that differ between features',
                     'the features would no longer be alike (dropout, or statistics of training)',
                     'Call the model for evaluation, at its initial statistics.')
      data = arranged(factor.data, like.axes, False)
      inverse = Applied(lambda a: 1 / a, (data,)) if name == 'div' else data
      return x.each(lambda field: self._algebra.scaled(field, inverse))
    number = 1 / factor if name == 'div' else factor
    return x.each(lambda field: self._algebra.scaled(field, float(number)))

  def _gained(self, x: Hidden, factor: Param | Gain, place: str) -> Hidden:
    param = factor if isinstance(factor, Param) else factor.param
    value, pattern = uniform(param), entries_of(param, x.axes, place)
    if value is None:
      raise refuse(place, f'the parameter {param.paths[0]!r}, which multiplies features and does '
                   f'not start as one number', 'a feature times a random number is not Gaussian',
                   'Begin it as a constant (nn.initializers.ones).')
    if isinstance(factor, Gain):
      if not self._alike(factor.plain, x):
        raise refuse(place, f'the parameter {param.paths[0]!r} times numbers that differ between '
                     f'features', 'the features would no longer be alike', 'Begin them alike.')
      data = arranged(factor.plain.data, x.axes, False)
      x = x.each(lambda field: self._algebra.scaled(field, data))
    parameter = self.uses.use(param, place)
    return x.each(lambda field: (Term(Gained(x.sizes, field, parameter, value, pattern)),))

  def _selected(self, operands, like: Hidden, place: str) -> Hidden:
    """A choice that inputs make: a mask of positions."""
    which = operands[0]
    if not self._alike(which, like):
      raise refuse(place, 'a mask that differs between features', 'the features would no longer be '
                   'alike', 'Mask positions only.')
    mask = arranged(which.data, like.axes, False)
    chosen = []
    for one, turn in zip(operands[1:], (True, False)):
      weights = Applied(lambda m, turn=turn: jnp.where(m.astype(bool), 0.0 if turn else 1.0,
                                                       1.0 if turn else 0.0), (mask,))
      own = self._as_hidden(one, like, place)
      chosen.append(own.each(lambda field, weights=weights: self._algebra.scaled(field, weights)))
    return self._moves.added(*chosen, place)

  def _function(self, eqn, operands, hidden, place: str) -> Hidden:
    """Any other elementwise function."""
    like = hidden[0]
    ends = [one.parts for one in hidden]
    if any(len(parts) > 1 for parts in ends) and len(hidden) > 1:
      raise refuse(place, 'a function of several hidden values whose features are of several kinds',
                   'it is not followed', 'Take it before the features are joined.')
    ready = []
    for one in operands:
      if isinstance(one, Param | Gain):
        raise refuse(place, 'a parameter inside a nonlinear function',
                     'its own kernel is not followed', 'Add it, or multiply by it, before.')
      if isinstance(one, Plain):
        if not self._alike(one, like):
          raise refuse(place, 'a function of features and of numbers that differ between them',
                       'the features would no longer be alike', 'Add numbers before a weight.')
        one = arranged(one.data, like.axes, False)
      ready.append(one)

    def of_part(at):
      own = [one.parts[at if len(one.parts) > 1 else 0][1] if isinstance(one, Hidden) else one
             for one in ready]
      return self._algebra.function(lambda *parts: applied(eqn, list(parts)), own)

    longest = max(hidden, key=lambda one: len(one.parts))
    return Hidden(like.axes, tuple((count, of_part(at))
                                   for at, (count, _) in enumerate(longest.parts)))


def _operand(one: Value) -> Value | float:
  """A constant as a number, or as numbers that inputs might have determined."""
  if not isinstance(one, Known):
    return one
  number = one.uniform
  if number is not None:
    return number
  shape = np.shape(one.value)
  flat = frozenset(at for at in range(len(shape)) if _is_flat(one.value, at))
  return Plain(Applied(lambda: jnp.asarray(one.value), ()), shape, None, flat)


def inputs_of(leaves: Sequence[Any]) -> list[Plain]:
  """The inputs of a network; the samples' axis is the first of those that are as long as it."""
  shapes = [tuple(leaf.shape) for leaf in leaves]
  count = next((shape[0] for shape in shapes if shape), None)
  return [Plain(Given(at), shape, 0 if shape and shape[0] == count else None)
          for at, shape in enumerate(shapes)]


def _plain(eqn, ins: Sequence[Known | Plain]) -> list[Value]:
  """An equation of inputs and constants."""
  where = network_axes.moved(eqn, [one.axis if isinstance(one, Plain) else None for one in ins])
  plain = [one for one in ins if isinstance(one, Plain)]
  values = [one.value if isinstance(one, Known) else None for one in ins]

  def run(*arrays):
    rest = iter(arrays)
    return bind(eqn, [next(rest) if value is None else value for value in values])

  shared = Applied(run, tuple(one.data for one in plain))
  return [Plain(Applied(lambda outs, at=at: outs[at], (shared,)), tuple(var.aval.shape), axis,
                _flat(eqn, ins, tuple(var.aval.shape)))
          for at, (var, axis) in enumerate(zip(eqn.outvars, where))]


def _flat(eqn, ins, shape) -> frozenset[int]:
  """Axes along which an output is known to be equal everywhere."""
  name = eqn.primitive.name
  if name in ELEMENTWISE:
    own = []
    for one in ins:
      if isinstance(one, Plain):
        own.append(one.flat)
      elif np.ndim(one.value) and one.uniform is None:
        own.append(frozenset(at for at in range(np.ndim(one.value)) if _is_flat(one.value, at)))
    return frozenset(range(len(shape))).intersection(*own)
  first = ins[0]
  if not isinstance(first, Plain):
    return frozenset()
  if name == 'broadcast_in_dim':
    where = eqn.params['broadcast_dimensions']
    return frozenset(at for at in range(len(shape)) if at not in where or (
        where.index(at) in first.flat or first.shape[where.index(at)] == 1))
  if name in ('reshape', 'squeeze', 'expand_dims'):  # Of axes of one entry that come and go.
    old = [at for at, size in enumerate(first.shape) if size > 1]
    new = [at for at, size in enumerate(shape) if size > 1]
    if [first.shape[at] for at in old] == [shape[at] for at in new]:
      return frozenset(b for a, b in zip(old, new) if a in first.flat)
  if name == 'transpose':
    return frozenset(at for at, own in enumerate(eqn.params['permutation']) if own in first.flat)
  return frozenset()


def _is_flat(value, at: int) -> bool:
  own = np.asarray(value)
  return bool(np.all(own == np.take(own, [0], at)))


def _step_of(value: Value, step: int, place: str) -> Value:
  """A slice of what a scan runs over."""
  if isinstance(value, Known):
    return Known(value.value[step])
  if isinstance(value, Param):
    index = None if value.index is None else value.index[step]
    return dataclasses.replace(value, value=value.value[step], index=index)
  if isinstance(value, Plain) and value.axis != 0:
    return Plain(Applied(lambda a: a[step], (value.data,)), value.shape[1:],
                 None if value.axis is None else value.axis - 1,
                 frozenset(at - 1 for at in value.flat if at))
  raise refuse(place, 'a loop over hidden values, or over samples', 'its steps share weights, or '
               'samples meet', 'Scan over layers, whose weights are stacked.')


def _has_true_derivative(eqn, body: Body) -> bool:
  """Whether a function's own derivative is that of its jaxpr, on numbers of both signs."""
  avals = [var.aval for var in eqn.invars]
  floating = [at for at, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.floating)]
  numbers = np.linspace(-3.1, 3.3, 97)
  with jax.ensure_compile_time_eval():
    arguments = [jnp.asarray(np.resize(numbers if at in floating else np.zeros(1), aval.shape),
                             aval.dtype) for at, aval in enumerate(avals)]
    slopes = []
    for run in (lambda *own: bind(eqn, own), lambda *own: core.jaxpr_as_fun(
        core.ClosedJaxpr(body.jaxpr, list(body.consts)))(*own)):
      def of(*own, run=run):
        full = list(arguments)
        for at, one in zip(floating, own):
          full[at] = one
        return sum(jnp.sum(out) for out in run(*full) if jnp.issubdtype(out.dtype, jnp.floating))
      slopes.append(jax.grad(of, tuple(range(len(floating))))(*(arguments[at] for at in floating)))
  close = lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-5)
  return all(close(a, b) for a, b in zip(*slopes))


def output_field(value: Value, place: str) -> Field:
  """The output's field.

  Raises:
    TheoryError: if it is no sum of hidden activities by a last weight.
  """
  if not isinstance(value, Hidden) or len(value.parts) != 1:
    raise TheoryError(f'{place} returns what no weight has made, or joins several outputs: it has '
                      f'no kernel. Return one array of outputs [n, classes].')
  return value.parts[0][1]
