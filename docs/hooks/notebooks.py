"""Pages of tutorials, which mkdocs-jupyter makes: their equations, and nothing from the network."""
import html
import re

from equations import mathml

_CODE = re.compile(r'(<(pre|code|script|style|textarea|svg)\b.*?</\2>)', re.DOTALL)
_DOLLARS = re.compile(r'\$\$(.+?)\$\$|(?<![\\$\w])\$(?! )([^$<\n]+?)(?<! )\$(?!\w)', re.DOTALL)
# It draws diagrams by a script from elsewhere; what is not there cannot be asked for.
_DIAGRAMS = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid.*?</script>', re.DOTALL)


def on_page_content(content, page, config, files):
  """Replaces the equations of one tutorial by MathML."""
  del config, files
  where = page.file.src_uri
  if where.endswith('.md'):
    return content
  found = lambda m: mathml(html.unescape(m[1] or m[2]), bool(m[1]), where)
  pieces = _CODE.split(_DIAGRAMS.sub('', content))  # Text, code, the code's tag, and so on.
  return ''.join(_DOLLARS.sub(found, piece) if i % 3 == 0 else piece
                 for i, piece in enumerate(pieces) if i % 3 != 2)
