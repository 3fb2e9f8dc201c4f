"""Elementwise equations of hidden values, with numbers, parameters and each other."""
import dataclasses

import jax.numpy as jnp
import numpy as np

from bioprop.limit.algebra import Algebra
from bioprop.limit.expressions import applied
from bioprop.limit.inputs import operand
from bioprop.limit.moves import Moves
from bioprop.limit.parameters import Uses, entries_of
from bioprop.limit.values import Gain, Hidden, Known, Param, Plain, Value, arranged, refuse
from bioprop.theory.fields.leaves import Added, Applied, Features, Field, Gained, Term, Weighted


class Pointwise:
  """Makes hidden values of hidden values, entry by entry."""

  def __init__(self, uses: Uses, algebra: Algebra, moves: Moves):
    self._uses, self._algebra, self._moves = uses, algebra, moves

  def gain(self, eqn, ins: list[Value], place: str) -> Value:
    """A parameter with numbers that inputs determine."""
    at = next(i for i, one in enumerate(ins) if isinstance(one, Param))
    ins = [self._grown(one, eqn.outvars[0].aval.shape, place) for one in ins]
    others = [one for i, one in enumerate(ins) if i != at]
    if eqn.primitive.name != 'mul' or len(others) != 1 or not isinstance(others[0], Plain):
      raise refuse(place, f'the parameter {ins[at].paths[0]!r} beside inputs',
                   'it is neither a product with a weight nor a norm\'s scale',
                   'Give the inputs a weight first (a dense layer, a convolution, an embedding).')
    return Gain(others[0], ins[at])

  def elementwise(self, eqn, ins: list[Value], place: str) -> Hidden:
    name = eqn.primitive.name
    hidden = [one for one in ins if isinstance(one, Hidden)]
    if not hidden:
      raise refuse(place, 'a parameter beside inputs', 'it is no product with a weight',
                   'Give the inputs a weight first.')
    shape = eqn.outvars[0].aval.shape
    ins = [self._grown(one, shape, place) for one in ins]
    hidden = [one for one in ins if isinstance(one, Hidden)]
    operands = [operand(one) for one in ins]
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
      return self._by_part(self._added(one, like, place), like)
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

  def _by_part(self, field: Field, like: Hidden) -> Hidden:
    """One field for all features, of which each part has its own."""
    if len(like.parts) == 1:
      return like.each(lambda _: field)
    parts, start = [], 0
    for count, _ in like.parts:
      parts.append((count, self._algebra.take(field, (start, start + count))))
      start += count
    return Hidden(like.axes, tuple(parts))

  def _added(self, param: Param, like: Hidden, place: str) -> Field:
    """A bias, or an embedding of positions."""
    pattern = entries_of(param, like.axes, place)
    parameter = self._uses.use(param, place)
    mean = self._uses.uniform(param)
    fields = [field for _, field in like.parts]
    bare = all(len(field) == 1 and isinstance(field[0].leaf, Weighted) for field in fields)
    beside = fields[0][0].leaf if bare else None
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
    value, pattern = self._uses.uniform(param), entries_of(param, x.axes, place)
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
    parameter = self._uses.use(param, place)
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
