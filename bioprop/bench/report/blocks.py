"""What a report is made of, before it is HTML, Markdown or LaTeX."""
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure


class Heading(NamedTuple):
  """A title; level 1 is that of the report."""
  level: int
  text: str


class Text(NamedTuple):
  """A paragraph."""
  text: str


class Table(NamedTuple):
  """Rows of cells, of which the first is the head, and what has to be said of them."""
  title: str
  rows: Sequence[Sequence[str]]
  notes: Sequence[str] = ()


class Picture(NamedTuple):
  """A figure.

  Attributes:
    name: of its files, without ending.
    title: what stands below it.
    text: what is to be seen, for those who do not see it.
    figure: of matplotlib.
  """
  name: str
  title: str
  text: str
  figure: Figure


Block = Heading | Text | Table | Picture
