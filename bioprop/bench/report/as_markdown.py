"""A report as Markdown, with figures beside it."""
import re
from collections.abc import Callable, Sequence

from bioprop.bench.report.blocks import Block, Heading, Picture, Table
from bioprop.bench.sweep.table import markdown as table_of


def markdown(blocks: Sequence[Block], path: Callable[[Picture], str]) -> bytes:
  """Returns the text.

  Args:
    blocks: of the report.
    path: gives where a figure's file is, seen from this one.
  """
  return ('\n\n'.join(_block(block, path) for block in blocks) + '\n').encode()


def _block(block, path):
  if isinstance(block, Heading):
    return f'{"#" * block.level} {_plain(block.text)}'
  if isinstance(block, Picture):
    return f'![{_plain(block.text)}]({path(block)})\n\n*{_plain(block.title)}*'
  if isinstance(block, Table):
    rows = [[_plain(cell).replace('|', r'\|') for cell in row] for row in block.rows]
    return '\n\n'.join([f'**{_plain(block.title)}**', table_of(rows), *map(_plain, block.notes)])
  return _plain(block.text)


def _plain(text):
  """What Markdown would take for its own signs, escaped."""
  return re.sub(r'([\\`*_\[\]<>#])', r'\\\1', text)
