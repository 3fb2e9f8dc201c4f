r"""What the hidden values of an infinitely wide network are made of.

At infinite width the features of a layer are independent, and alike: a hidden value is one random
field v(sample, position), of which every feature is a copy (Yang 2019, arXiv 1910.12478). A `Field`
is a sum of terms

  SUM_k scale_k data_k(sample, position) leaf_k ,

whose leaves are Gaussian fields of mean 0 (`Atom`: what a weight makes of its input, an added
parameter, sums of such), functions of these (`Function`), and what moves positions about (`Moved`)
or is multiplied by a parameter (`Gained`). Products with different weights are independent of each
other, and so are fields that have no `roots` in common.
"""
import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from bioprop.theory.activations import Activation
from bioprop.theory.fields.positions import Contraction, PositionMap
from bioprop.typing import Array

Sizes = tuple[int, ...]
Roots = frozenset[Any]


class Data(abc.ABC):
  """Numbers that samples determine, one array for each of the two sets of samples."""

  @abc.abstractmethod
  def array(self, of: Any, side: int) -> Array:
    """The numbers of the samples of a side, 0 or 1; `of` holds what was given and computed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Data):
  """What is given from outside, by its number."""
  number: int

  def array(self, of, side):
    return of.given[side][self.number]


@dataclasses.dataclass(frozen=True, eq=False)
class Applied(Data):
  """A function of other data."""
  function: Callable[..., Array]
  parents: tuple[Data, ...]

  def array(self, of, side):
    return self.function(*(of.data(parent, side) for parent in self.parents))


@dataclasses.dataclass(frozen=True, eq=False)
class Expected(Data):
  """The mean of a field over features, or of its square, [n, *sizes].

  At infinite width it is a number that does not depend on the weights: what normalisations over
  features divide by. Its own derivative in the parameters vanishes against a feature's.
  """
  field: 'Field'
  square: bool = False

  def array(self, of, side):
    return of.square(self.field, side) if self.square else of.mean(self.field, side)


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf(abc.ABC):
  """A field of a term, compared by identity.

  Attributes:
    sizes: of its position axes.
  """
  sizes: Sizes

  @functools.cached_property
  def roots(self) -> Roots:
    """What it is random by: fields without common roots are independent."""
    return frozenset().union(*(roots_of(field) for field in self.parts()))

  @functools.cached_property
  def bases(self) -> Roots:
    """The roots, of which parts are taken for the whole."""
    return frozenset(map(base_of, self.roots))

  def parts(self) -> 'tuple[Field, ...]':
    """The fields that it is made of."""
    return ()

  @property
  def gaussian(self) -> bool:
    """Whether it is a Gaussian field of mean 0."""
    return False


@dataclasses.dataclass(frozen=True)
class Term:
  """scale times data, [n, *sizes] each, times a leaf."""
  leaf: Leaf
  scale: float = 1.0
  data: tuple[Data, ...] = ()


Field = tuple[Term, ...]


def base_of(root: Any) -> Any:
  """A root, or that of which it is a part."""
  return root[0] if isinstance(root, tuple) else root


def roots_of(field: Field) -> Roots:
  """The roots of all terms."""
  return frozenset().union(*(term.leaf.roots for term in field))


def is_gaussian(field: Field) -> bool:
  """Whether a field is Gaussian of mean 0."""
  return all(term.leaf.gaussian for term in field)


@dataclasses.dataclass(frozen=True, eq=False)
class One(Leaf):
  """The number 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Features(Leaf):
  """Features that are given: data [n, *sizes, features], over which moments are means."""
  values: Data


@dataclasses.dataclass(frozen=True, eq=False)
class Atom(Leaf):
  """A Gaussian field of mean 0."""

  @property
  def gaussian(self):
    return True


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter at the start of training.

  Attributes:
    name: its path, by which its variance is looked up.
    slope: by what its own change is multiplied where it is used.
  """
  name: str
  slope: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(Atom):
  """What a weight makes of its input.

  Attributes:
    weight: the weight; its variance is that of one entry.
    inputs: fields of the features that each of its outputs sums over, and how many of each there
      are; or data [n, *positions, features], as which inputs come.
    contraction: how positions of the input become its own.
    number: which of the ops it is.
    fan_in: over how many numbers each output is a sum.
  """
  weight: Parameter
  inputs: tuple[tuple[int, 'Field | Data'], ...]
  contraction: Contraction
  number: int
  fan_in: int

  @functools.cached_property
  def roots(self):
    return frozenset([self])


@dataclasses.dataclass(frozen=True, eq=False)
class Added(Atom):
  """A parameter that is added: a bias, or the embedding of a position.

  Attributes:
    parameter: the parameter.
    pattern: which positions share an entry: numbers [*sizes]; None: all do.
    beside: the op whose bias it is, if it is one's.
  """
  parameter: Parameter
  pattern: Any = None
  beside: Weighted | None = None

  @functools.cached_property
  def roots(self):
    return frozenset([self])


@dataclasses.dataclass(frozen=True, eq=False)
class Gate(Atom):
  """A frozen projection of data [n, *sizes, k], which the gates of linear units are made of."""
  seen: Data

  @functools.cached_property
  def roots(self):
    return frozenset([self])


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed(Atom):
  """A sum of Gaussian fields, of which a function is to be taken."""
  field: Field

  def parts(self):
    return (self.field,)


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Atom):
  """Some of an atom's features: a field like all of them, and independent of the others."""
  whole: Atom
  features: tuple[int, int]

  @functools.cached_property
  def roots(self):
    return frozenset((root, self.features) for root in self.whole.roots)


@dataclasses.dataclass(frozen=True, eq=False)
class Function(Leaf):
  """A function of independent atoms, and perhaps of data, entry by entry.

  Attributes:
    atoms: Gaussian fields without common roots.
    function: maps arrays of the atoms' values, then of the data's, to an array.
    factored: gives `factors`, once they are asked for.
    data: [n, *sizes] each.
  """
  atoms: tuple[Atom, ...]
  function: Callable[..., Array]
  factored: Callable[[], tuple[Activation, ...] | None]
  data: tuple[Data, ...] = ()

  @functools.cached_property
  def factors(self) -> tuple[Activation, ...] | None:
    """If it is a product of functions of one atom each, these; then data are none."""
    return self.factored()

  def parts(self):
    return tuple((Term(atom),) for atom in self.atoms)


@dataclasses.dataclass(frozen=True, eq=False)
class Image(Leaf):
  """What a linear map makes of a field: Gaussian if the field is."""
  field: Field

  def parts(self):
    return (self.field,)

  @property
  def gaussian(self):
    return is_gaussian(self.field)


@dataclasses.dataclass(frozen=True, eq=False)
class Moved(Image):
  """A linear map of the positions of a field."""
  map: PositionMap


@dataclasses.dataclass(frozen=True, eq=False)
class Gained(Image):
  """A field that is multiplied, feature by feature, by a parameter that starts as a constant.

  Attributes:
    field: the field.
    parameter: the parameter.
    value: what it starts as, times its slope.
    pattern: as in `Added`.
  """
  parameter: Parameter
  value: float
  pattern: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Squared(Leaf):
  """The square of a field, of which the mean may be asked, and nothing else."""
  field: Field

  def parts(self):
    return (self.field,)


def leaves(field: Field) -> list[Leaf]:
  """All leaves that a field is made of, through its weights too, each once, inputs first."""
  found: dict[Leaf, None] = {}

  def visit(leaf: Leaf) -> None:
    if leaf in found:
      return
    below = leaf.parts()
    if isinstance(leaf, Weighted):
      below = tuple(one for _, one in leaf.inputs if not isinstance(one, Data))
    if isinstance(leaf, Part):
      below = ((Term(leaf.whole),),)
    for one in below:
      for term in one:
        for data in term.data:
          visit_data(data)
        visit(term.leaf)
    found[leaf] = None

  def visit_data(data: Data) -> None:
    if isinstance(data, Applied):
      for parent in data.parents:
        visit_data(parent)
    if isinstance(data, Expected):
      for term in data.field:
        visit(term.leaf)

  for term in field:
    for data in term.data:
      visit_data(data)
    visit(term.leaf)
  return list(found)
