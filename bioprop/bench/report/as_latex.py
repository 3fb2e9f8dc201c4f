"""A report as a LaTeX document whose tables can be copied into a paper."""
from collections.abc import Callable, Sequence

from bioprop.bench.report.blocks import Block, Heading, Picture, Table

_HEAD = r'''\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\setlength{\parindent}{0pt}
% A table that is wider than the page is made as wide as it.
\newcommand{\fitted}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}
\begin{document}
'''
_TITLES = {1: 'section*', 2: 'section', 3: 'subsection'}
_SIGNS = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '_': r'\_', '%': r'\%', '&': r'\&',
    '#': r'\#', '$': r'\$', '^': r'\textasciicircum{}', '~': r'\textasciitilde{}',
    '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '"': "''",
    '±': r'$\pm$', '−': r'$-$', '×': r'$\times$', '²': r'$^2$', 'Φ': r'$\Phi$',
    '–': r'\textendash{}', '→': r'$\to$', '°': r'$^\circ$',
    '[': '{[}', ']': '{]}',  # After \\, a bracket is an option.
}
_COLUMN = 4.0  # Inches from which a figure needs the whole page.
_GAP = '\\vspace{2ex}'
_ROWS = 40  # Of a table on one page.
_LONG = 60  # Characters from which a cell is broken into lines.


def latex(blocks: Sequence[Block], path: Callable[[Picture], str]) -> bytes:
  """Returns the document.

  Args:
    blocks: of the report.
    path: gives where a figure's file is, seen from this one.
  """
  parts = [_HEAD, *(_block(block, path) for block in blocks), '\\end{document}\n']
  return '\n'.join(parts).encode()


def _block(block, path):
  if isinstance(block, Heading):
    return f'\\{_TITLES[block.level]}{{{escaped(block.text)}}}\n'
  if isinstance(block, Picture):
    width, _ = block.figure.get_size_inches()
    # Two beside each other, as wide as they were drawn; or as wide as the page.
    room = width > _COLUMN
    return (f'\\begin{{minipage}}[t]{{{1 if room else 0.49}\\linewidth}}\n'
            f'\\includegraphics[width={"" if room else 0.98}\\linewidth]{{{path(block)}}}\n\n'
            f'\\footnotesize {escaped(block.title)}\n\\end{{minipage}}\\hfill{_GAP}')
  if isinstance(block, Table):
    return _table(block)
  return f'{escaped(block.text)}\n'


def _table(block):
  columns = ''.join('p{0.8\\linewidth}' if max(map(len, column)) > _LONG else 'l'
                    for column in zip(*block.rows))
  head, *rows = [' & '.join(map(escaped, row)) + r' \\' for row in block.rows]
  parts = [rows[at:at + _ROWS] for at in range(0, len(rows), _ROWS)] or [[]]
  tables = [_part(block.title, columns, head, part, block.notes if part is parts[-1] else ())
            for part in parts]
  return ''.join(tables)


def _part(title, columns, head, rows, notes):
  notes = ''.join(f'\n\\par\\smallskip\\footnotesize {escaped(note)}' for note in notes)
  body = '\n'.join(rows)
  return (f'\n\\begin{{minipage}}{{\\linewidth}}\n{escaped(title)}\n\n\\medskip\n'
          f'\\fitted{{\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n'
          f'\\bottomrule\n\\end{{tabular}}}}{notes}\n\\end{{minipage}}\n\n\\bigskip\n')


def escaped(text: str) -> str:
  """Returns text that LaTeX sets as it stands; signs that it has no font for as their code."""
  signs = (_SIGNS.get(sign, sign if sign.isascii() or sign.isalpha() and ord(sign) < 0x180
                      else f'U+{ord(sign):04X}') for sign in text)
  return ''.join(signs).replace('--', '-{}-')  # A flag's, which would become one dash.
