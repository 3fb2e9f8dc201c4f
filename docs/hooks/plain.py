"""Docstrings are written to be read in a terminal; here they become Markdown that reads the same.

Indented lines between blank ones become blocks of code, class attributes a list, and characters
that mean something to Markdown are escaped, but in code and equations.
"""
import re

import griffe

_LEFT_ALONE = re.compile(r'(```.*?```|`[^`]+`|\$\$.*?\$\$|\$[^$\n]+\$)', re.DOTALL)
_MARKUP = re.compile(r'(?<!\*)\*(?!\*|\w+:)|<')
_SECTION = re.compile(r'[A-Z][\w ]*:$')


def plain(text: str) -> str:
  """Markdown of a docstring."""
  done, section = [], False
  for paragraph in re.split(r'\n\s*\n', text):
    lines = paragraph.split('\n')
    if _SECTION.match(lines[0]):
      section = True
    indented = all(line.startswith('  ') for line in lines)
    section = section and (indented or _SECTION.match(lines[0]) is not None)
    if indented and not section and '```' not in text:
      done.append('\n'.join(['```', *(line[2:] for line in lines), '```']))
    else:
      done.append(_items(paragraph) if lines[0] == 'Class attributes:' else paragraph)
  pieces = _LEFT_ALONE.split('\n\n'.join(done))
  escaped = lambda match: {'*': r'\*', '<': '&lt;'}[match[0]]
  return ''.join(piece if i % 2 else _MARKUP.sub(escaped, piece) for i, piece in enumerate(pieces))


def _items(section: str) -> str:
  """A list of what griffe has no name for."""
  return re.sub(r'(?m)^  ([\w, ]+):', r'  - **\1**:', section)


class Plain(griffe.Extension):
  """Makes `plain` of all docstrings."""

  def on_instance(self, *, node, obj, agent, **kwargs):
    """See `griffe.Extension.on_instance`."""
    del node, agent, kwargs
    if obj.docstring:
      obj.docstring.value = plain(obj.docstring.value)
