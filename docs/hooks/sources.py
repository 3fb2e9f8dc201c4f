"""Pages of the sources that other pages link to, so that the site needs no other place.

A link that leads out of the pages, as [digits_mlp](../../configs/digits_mlp.py), works where the
Markdown lies in the repository; in the site it leads to a page that shows the file.
"""
import os
import pathlib
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LINK = re.compile(r'\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)')
_LANGUAGES = {'.py': 'python', '.cfg': 'ini', '.bib': 'bibtex', '.md': 'markdown'}


def source_of(target: str, src_uri: str) -> pathlib.Path | None:
  """The file outside of the pages that a link leads to; None if it stays inside.

  Raises:
    PluginError: if there is no such file.
  """
  pages = ROOT / 'docs' / 'pages'
  path = pathlib.Path(os.path.normpath(pages / pathlib.PurePosixPath(src_uri).parent / target))
  if path.is_relative_to(pages):
    return None
  if not path.is_relative_to(ROOT) or not path.is_file():
    raise PluginError(f'{src_uri} links to {target}, and there is no such file in the repository.')
  return path.relative_to(ROOT)


def page_of(path: pathlib.Path) -> str:
  """Where the page of a source lies: MkDocs leaves out what begins with a dot."""
  return f'source/{path.as_posix().lstrip(".")}.md'


def on_files(files, config):
  """Adds a page for each source that a page links to."""
  for file in list(files.documentation_pages()):
    if file.src_uri.endswith('.md'):
      for target, _ in _LINK.findall(file.content_string):
        path = source_of(target, file.src_uri)
        if path is not None and files.get_file_from_path(page_of(path)) is None:
          language = _LANGUAGES.get(path.suffix, 'text')
          text = (ROOT / path).read_text()
          files.append(File.generated(
              config, page_of(path),
              content=f'---\ntitle: {path}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n'
                      f'# {path.name}\n\n`{path}`\n\n~~~~{language}\n{text}\n~~~~\n'))
  return files


def on_page_markdown(markdown, page, config, files):
  """Leads links to sources to their pages."""
  del config, files
  src_uri = page.file.src_uri
  if src_uri.startswith('source/'):
    return markdown

  def led(match):
    path = source_of(match[1], src_uri)
    if path is None:
      return match[0]
    here = pathlib.PurePosixPath(src_uri).parent.as_posix()
    return f']({os.path.relpath(page_of(path), here)})'

  return _LINK.sub(led, markdown)
