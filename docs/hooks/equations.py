r"""Typesets equations as MathML when the site is built: no network, no JavaScript.

`$ ... $` and `$$ ... $$` of pages and docstrings arrive here as what pymdownx.arithmatex makes of
them; notebooks.py has those of tutorials. What latex2mathml cannot read stops the build.
"""
import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def mathml(tex: str, display: bool, where: str) -> str:
  r"""MathML of an equation.

  Args:
    tex: LaTeX, without dollars.
    display: whether it stands on a line of its own.
    where: the page, for the message.

  Raises:
    PluginError: if it is not LaTeX, or uses a command that is not known.
  """
  try:
    made = convert(tex.strip(), display='block' if display else 'inline')
  except Exception as error:  # Its errors have no common class.
    raise PluginError(f'{where}: latex2mathml cannot read ${tex}$: {error!r}.') from error
  unknown = re.findall(r'\\[A-Za-z]+', made)
  if unknown:
    raise PluginError(f'{where}: latex2mathml does not know {", ".join(unknown)} in ${tex}$. Write '
                      f'it in other words, as \\operatorname{{...}} or \\mathrm{{...}}.')
  return made.replace('<mi>&#x0007E;</mi>', '<mo>&#x0223C;</mo>')  # \sim is an operator.


def on_page_content(content, page, config, files):
  """Replaces the equations of one page by MathML."""
  del config, files
  where = page.file.src_uri
  return _MARKED.sub(lambda m: mathml(html.unescape(m[3]), m[2] == '[', where), content)
