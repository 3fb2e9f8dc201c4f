"""Sums, products and functions of the fields of hidden values."""
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from bioprop.errors import TheoryError
from bioprop.limit.expressions import Expression, applied, argument
from bioprop.theory.activations import Activation, Linear, ReLU
from bioprop.theory.fields.bilinear import independent
from bioprop.theory.fields.leaves import (
  Added,
  Atom,
  Data,
  Features,
  Field,
  Function,
  Gained,
  Gate,
  Leaf,
  Mixed,
  Moved,
  One,
  Part,
  Squared,
  Term,
  Weighted,
)
from bioprop.theory.recognise import activation_of
from bioprop.theory.slope import Slope

Operand = Field | Data | float


class Algebra:
  """Makes fields of fields; what is made twice is the same object."""

  def __init__(self):
    self._mixed: dict[Any, Mixed] = {}
    self._taken: dict[Any, Leaf] = {}
    self._functions: dict[Any, Function] = {}
    self._activations: dict[str, Activation] = {}
    self._expressions: dict[Function, Expression] = {}
    self.place = ''  # Of the equation that is read, for messages.

  def scaled(self, field: Field, factor: float | Data) -> Field:
    """A field times a number, or numbers [n, *P]."""
    if isinstance(factor, Data):
      return tuple(dataclasses.replace(term, data=(*term.data, factor)) for term in field)
    return tuple(dataclasses.replace(term, scale=term.scale * factor) for term in field)

  def constant(self, value: float | Data, sizes: tuple[int, ...]) -> Field:
    """Numbers as a field."""
    return self.scaled((Term(One(sizes)),), value)

  def plus(self, a: Field, b: Field) -> Field:
    """The sum; equal terms are added up."""
    found: dict[Any, Term] = {}
    for term in (*a, *b):
      key = (type(term.leaf) if isinstance(term.leaf, One) else term.leaf), term.data
      if key in found:
        scale = found[key].scale + term.scale
        found[key] = dataclasses.replace(term, scale=scale)
      else:
        found[key] = term
    kept = tuple(term for term in found.values() if term.scale)
    return kept or (dataclasses.replace((*a, *b)[0], scale=0.0),)

  def times(self, a: Field, b: Field) -> Field:
    """The product."""
    if a == b:
      return (Term(Squared(a[0].leaf.sizes, a)),)
    a, b = self.settled(a), self.settled(b)
    products = [self._product(s, t) for s in a for t in b]
    if all(one is not None for one in products):
      return tuple(products)
    return self.function(lambda x, y: applied('times', [x, y]), [a, b])

  def _product(self, s: Term, t: Term) -> Term | None:
    """Of terms that are independent; None if they are not."""
    scale, data = s.scale * t.scale, (*s.data, *t.data)
    for one, other in ((s.leaf, t.leaf), (t.leaf, s.leaf)):
      if isinstance(one, One):
        return Term(other, scale, data)
    ready = [self._atom((Term(leaf),)) if leaf.gaussian else leaf for leaf in (s.leaf, t.leaf)]
    pairs = [_separate(leaf) for leaf in ready]
    if None in pairs or not independent(s.leaf, t.leaf):
      return None
    atoms, count = (*pairs[0], *pairs[1]), len(pairs[0])
    left = self._expression(ready[0])
    right = self._expression(ready[1]).renamed({at: at + count for at in range(len(pairs[1]))})
    factored = lambda: tuple(phi for leaf in ready for phi in _factors(leaf))
    return Term(self._function(atoms, applied('times', [left, right]), factored), scale, data)

  def gated(self, field: Field, seen: Data) -> Field:
    """A field behind gates of its own, 1 or 0 by the sign of a frozen projection of numbers."""
    gate = Gate(field[0].leaf.sizes, seen)
    open_ = applied('step', [argument(0)])
    step = self._function((gate,), open_, lambda: (Slope(ReLU()),))
    found = [self._product(Term(step), term) for term in self.settled(field)]
    if None in found:
      raise TheoryError('a ReLU of several activities cannot be gated. Put a weight before it.')
    return tuple(found)

  def settled(self, field: Field) -> Field:
    """A field without squares that were kept for their means."""
    if not any(isinstance(term.leaf, Squared) for term in field):
      return field
    found: list[Term] = []
    for term in field:
      own = (term,)
      if isinstance(term.leaf, Squared):
        made = self.function(lambda x: applied('times', [x, x]), [term.leaf.field])
        own = tuple(Term(one.leaf, one.scale * term.scale, term.data) for one in made)
      found += own
    return tuple(found)

  def function(self, make: Callable[..., Expression], operands: Sequence[Operand]) -> Field:
    """An elementwise function of fields, numbers [n, *P] and numbers.

    Args:
      make: maps expressions of the operands (numbers as they are) to that of the result.
      operands: at least one field among them.

    Raises:
      TheoryError: if one of the fields is no function of Gaussians.
    """
    fields = [self.settled(one) for one in operands if isinstance(one, tuple)]
    atoms, data = self._atoms(fields), list(dict.fromkeys(
        one for one in (*operands, *(d for field in fields for term in field
                                     if not term.leaf.gaussian for d in term.data))
        if isinstance(one, Data)))
    for field in fields:
      for term in field:
        data += [one for one in getattr(term.leaf, 'data', ()) if one not in data]
    numbers = {one: at for at, one in enumerate((*atoms, *data))}
    rest = iter(fields)
    expressions = [self._combined(next(rest), numbers) if isinstance(one, tuple) else
                   argument(numbers[one]) if isinstance(one, Data) else one for one in operands]
    expression = make(*expressions)
    factored = lambda: None
    if len(atoms) == 1 and not data:
      factored = functools.partial(self._activation, expression, self.place)
    return (Term(self._function(tuple(atoms), expression, factored, tuple(data))),)

  def take(self, field: Field, features: tuple[int, int]) -> Field:
    """The field of some of its features."""
    return tuple(dataclasses.replace(term, leaf=self._take(term.leaf, features)) for term in field)

  def moved(self, field: Field, position_map) -> Field:
    """A field whose positions are mapped."""
    return (Term(Moved(position_map.after, field, position_map)),)

  def _take(self, leaf: Leaf, features: tuple[int, int]) -> Leaf:
    key = leaf, features
    if key not in self._taken:
      self._taken[key] = self._taken_anew(leaf, features)
    return self._taken[key]

  def _taken_anew(self, leaf: Leaf, features: tuple[int, int]) -> Leaf:
    if isinstance(leaf, Part):
      start = leaf.features[0]
      return self._take(leaf.whole, (start + features[0], start + features[1]))
    if isinstance(leaf, Mixed):
      return self._atom(self.take(leaf.field, features))
    if isinstance(leaf, Weighted | Added | Gate):
      return Part(leaf.sizes, leaf, features)
    if isinstance(leaf, Function):
      atoms = tuple(self._take(atom, features) for atom in leaf.atoms)
      return self._function(atoms, self._expressions[leaf], leaf.factored, leaf.data)
    if isinstance(leaf, Moved | Squared | Gained):
      return dataclasses.replace(leaf, field=self.take(leaf.field, features))
    if isinstance(leaf, Features):
      raise TheoryError('hidden features to which given numbers are added are split, and the '
                        'numbers are another for each. Add them after the split.')
    return leaf

  def _atom(self, field: Field) -> Atom:
    """One Gaussian for a Gaussian field."""
    if len(field) == 1 and isinstance(field[0].leaf, Atom) and field[0] == Term(field[0].leaf):
      return field[0].leaf
    if field not in self._mixed:
      self._mixed[field] = Mixed(field[0].leaf.sizes, field)
    return self._mixed[field]

  def _atoms(self, fields: Sequence[Field]) -> list[Atom]:
    """The atoms that fields are functions of, independent of each other."""
    found: dict[Atom, None] = {}
    for field in fields:
      _check_functions(field)
      gaussian = _gaussian(field)
      if gaussian:
        found[self._atom(_unscaled(gaussian))] = None
      for term in field:
        for atom in getattr(term.leaf, 'atoms', ()):
          found[atom] = None
    atoms = list(found)
    if not all(independent(u, v) for u, v in itertools.combinations(atoms, 2)):
      raise TheoryError(
          'a function is taken of several hidden activities that have some of their sums in '
          'common, as in phi(h) + psi(h + g): this has no closed form here. Put a weight between '
          'them.')
    return atoms

  def _combined(self, field: Field, numbers) -> Expression:
    """A field as an expression of atoms and data."""
    parts = []
    gaussian = _gaussian(field)
    if gaussian:
      own = argument(numbers[self._atom(_unscaled(gaussian))])
      parts.append(_scaled(own, gaussian[0].scale))
    for term in field:
      if term.leaf.gaussian:
        continue
      own = 1.0
      if isinstance(term.leaf, Function):
        inner = self._expressions[term.leaf]
        names = (*term.leaf.atoms, *term.leaf.data)
        own = inner.renamed({at: numbers[name] for at, name in enumerate(names)})
      for one in term.data:
        given = argument(numbers[one])
        own = given if own == 1.0 else applied('times', [own, given])
      parts.append(_scaled(own, term.scale) if isinstance(own, Expression) else term.scale)
    return parts[0] if len(parts) == 1 else applied('plus', parts)

  def _expression(self, leaf: Leaf) -> Expression:
    if isinstance(leaf, Function):
      return self._expressions.get(leaf, argument(0))
    return argument(0)

  def _function(self, atoms, expression, factored, data=()) -> Function:
    key = atoms, expression, data
    if key not in self._functions:
      made = Function(atoms[0].sizes, tuple(atoms), expression, factored, data)
      self._functions[key], self._expressions[made] = made, expression
    return self._functions[key]

  def _activation(self, expression: Expression, place: str) -> tuple[Activation]:
    if expression.key not in self._activations:
      try:
        self._activations[expression.key] = activation_of(expression)
      except TheoryError as error:
        raise TheoryError(f'{place}: {error}') from error
    return (self._activations[expression.key],)


def _separate(leaf: Leaf) -> tuple[Atom, ...] | None:
  """The atoms that a leaf is a product of functions of; None if it is none."""
  if isinstance(leaf, Atom):
    return (leaf,)
  if isinstance(leaf, Function) and not leaf.data and len(leaf.atoms) == 1:
    return leaf.atoms
  return leaf.atoms if isinstance(leaf, Function) and leaf.factors is not None else None


def _factors(leaf: Leaf) -> tuple[Activation, ...]:
  return (Linear(),) if isinstance(leaf, Atom) else leaf.factors


def _gaussian(field: Field) -> Field:
  return tuple(term for term in field if term.leaf.gaussian)


def _unscaled(field: Field) -> Field:
  """With its first scale taken out, so that multiples of one field are functions of one atom."""
  scale = field[0].scale
  if scale == 1 or not scale:
    return field
  return tuple(dataclasses.replace(term, scale=term.scale / scale) for term in field)


def _scaled(expression: Expression, scale: float) -> Expression:
  return expression if scale == 1 else applied('scale', [expression, scale])


def _check_functions(field: Field) -> None:
  for term in field:
    leaf = term.leaf
    if leaf.gaussian or isinstance(leaf, One | Function):
      continue
    what = {Features: 'given numbers that differ between features are added to hidden features',
            Moved: 'activities after a nonlinearity are pooled or moved',
            Gained: 'activities after a nonlinearity are multiplied by a parameter'}[type(leaf)]
    raise TheoryError(
        f'{what}, and then a nonlinearity is taken without a weight in between: at infinite width '
        f'that is a function of several positions at once, which has no closed form here. Put a '
        f'weight between them, or take the nonlinearity first.')
