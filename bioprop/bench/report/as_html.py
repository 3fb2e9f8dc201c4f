"""A report as one HTML file, which needs nothing beside it and no network."""
import base64
import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from bioprop.bench.report.blocks import Block, Heading, Picture, Table, Text

_STYLE = '''
:root { color-scheme: light; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; overflow-wrap: anywhere;
  background: #fff; color: #1a1a1a; font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .75rem; }
h1 { margin-top: 0; }
h2 { border-bottom: 2px solid #1a1a1a; padding-bottom: .25rem; }
a { color: #005a9c; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; }
nav a { display: inline-block; padding: .4rem 0; }
/* A shade at a side tells of what is beyond it; at an end, white hides it. */
.scroll { margin: 1rem 0; overflow-x: auto;
  background: linear-gradient(to right, #fff 30%, #fff0) left / 2rem 100% no-repeat local,
    linear-gradient(to left, #fff 30%, #fff0) right / 2rem 100% no-repeat local,
    linear-gradient(to right, #0004, #0000) left / .75rem 100% no-repeat scroll,
    linear-gradient(to left, #0004, #0000) right / .75rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid #005a9c; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { caption-side: top; font-weight: 600; padding-bottom: .25rem; text-align: left; }
th, td { border-bottom: 1px solid #c8c8c8; padding: .35rem .75rem .35rem 0; text-align: left;
  vertical-align: top; white-space: nowrap; }
td.long { max-width: 44rem; min-width: 18rem; white-space: normal; }
thead th { border-bottom: 2px solid #1a1a1a; }
tbody tr:nth-child(even) { background: #0000000a; }
.note { color: #444; font-size: .875rem; margin: .25rem 0; max-width: 60rem; }
.figures { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; height: auto; max-width: 100%; width: 26rem; }
figure.wide .scroll img { max-width: none; width: auto; }
figcaption { color: #444; font-size: .875rem; }
@media print {
  @page { margin: 15mm; }
  body { font-size: 9pt; max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { background: none; overflow: visible; }
  table { font-size: 7pt; }
  th, td { padding-right: .4rem; white-space: normal; }
  td.long { min-width: 0; }
  .figures { gap: 4mm; grid-template-columns: 1fr 1fr; }
  figure { break-inside: avoid; }
  figure img, figure.wide .scroll img { max-width: 100%; width: 100%; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
}
'''
_LONG = 60  # Characters from which a cell may be broken into lines.
_WIDE = 5.0  # Inches from which a figure keeps its width, and is scrolled on a phone.


def html(blocks: Sequence[Block], svg: Callable[[Picture], bytes]) -> bytes:
  """Returns the page.

  Args:
    blocks: of the report, the first of which is its title.
    svg: gives a figure's file.
  """
  root = ElementTree.Element('html', lang='en')
  head = _in(root, 'head')
  _in(head, 'meta', charset='utf-8')
  _in(head, 'meta', name='viewport', content='width=device-width, initial-scale=1')
  _in(head, 'title', blocks[0].text)
  _in(head, 'style', _STYLE)
  body = _in(root, 'body')
  header = _in(body, 'header')
  _in(header, 'h1', blocks[0].text)
  titles = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
  entries = _in(_in(header, 'nav', **{'aria-label': 'Sections'}), 'ul')
  for at, title in enumerate(titles):
    _in(_in(entries, 'li'), 'a', title.text, href=f'#{_anchor(at, title.text)}')
  main = _in(body, 'main')
  at, figures = 0, None
  for block in blocks[1:]:
    if isinstance(block, Picture):
      figures = _in(main, 'div', **{'class': 'figures'}) if figures is None else figures
      _figure(figures, block, svg(block))
      continue
    figures = None
    if isinstance(block, Heading):
      anchor = {'id': _anchor(at, block.text)} if block.level == 2 else {}
      at += block.level == 2
      _in(main, f'h{block.level}', block.text, **anchor)
    elif isinstance(block, Text):
      _in(main, 'p', block.text)
    else:
      _table(main, block)
  return b'<!doctype html>\n' + ElementTree.tostring(root, 'utf-8', method='html') + b'\n'


def _in(parent, tag, text=None, **attributes):
  child = ElementTree.SubElement(parent, tag, attributes)
  child.text = text
  return child


def _anchor(number, text):
  """Unlike all others, whatever the titles are."""
  return f's{number}-{re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")}'


def _scroll(parent, label):
  """What is wider than the page is scrolled by itself, by keys too."""
  return _in(parent, 'div', **{'class': 'scroll', 'tabindex': '0', 'role': 'region',
                               'aria-label': label})


def _table(parent, block: Table):
  table = _in(_scroll(parent, block.title), 'table')
  _in(table, 'caption', block.title)
  head, *rows = block.rows
  line = _in(_in(table, 'thead'), 'tr')
  for name in head:
    _in(line, 'th', name, scope='col')
  body = _in(table, 'tbody')
  for row in rows:
    line = _in(body, 'tr')
    for cell in row:
      _in(line, 'td', cell, **({'class': 'long'} if len(cell) > _LONG else {}))
  for note in block.notes:
    _in(parent, 'p', note, **{'class': 'note'})


def _figure(parent, block: Picture, svg: bytes):
  width, height = (round(96 * size) for size in block.figure.get_size_inches())
  wide = width > 96 * _WIDE
  figure = _in(parent, 'figure', **({'class': 'wide'} if wide else {}))
  source = f'data:image/svg+xml;base64,{base64.b64encode(svg).decode()}'
  _in(_scroll(figure, block.title) if wide else figure, 'img', src=source, alt=block.text,
      width=str(width), height=str(height))
  _in(figure, 'figcaption', block.title)
