"""The site: built strictly, from nothing but itself; links, equations, figures and names."""
import html.parser
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

import bioprop
from bioprop.rules import RULES

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDED = ('mkdocs', 'material', 'mkdocstrings', 'mkdocs_jupyter', 'latex2mathml')
LOADS = {'script': ('src',), 'img': ('src', 'srcset'), 'iframe': ('src',),
         'source': ('src', 'srcset'), 'video': ('src', 'poster'), 'audio': ('src',),
         'object': ('data',), 'embed': ('src',),
         'image': ('href', 'xlink:href'), 'use': ('href', 'xlink:href')}
LINKS = ('stylesheet', 'preload', 'preconnect', 'icon', 'modulepreload', 'dns-prefetch', 'manifest')


class Page(html.parser.HTMLParser):
  """What a page loads, what it links to, and what can be linked to in it."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.loads, self.links, self.anchors, self.tags, self.classes = [], [], set(), [], set()
    self._inside = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = {name: value or '' for name, value in attrs}
    self.tags.append(tag)
    self._inside = tag
    self.classes.update(attrs.get('class', '').split())
    self.anchors.update(attrs[name] for name in ('id', 'name') if name in attrs)
    self.loads += [attrs[name] for name in LOADS.get(tag, ()) if name in attrs]
    if tag == 'link' and set(attrs.get('rel', '').split()) & set(LINKS):
      self.loads.append(attrs.get('href', ''))
    if tag == 'a' and 'href' in attrs:
      self.links.append(attrs['href'])
    self._style(attrs.get('style', ''))

  def handle_data(self, data):
    if self._inside == 'style':
      self._style(data)
    if self._inside == 'script':  # What it could import or fetch.
      self.loads += re.findall(r'https?://[^\s"\'<>]+\.(?:m?js|css|json|wasm)\b', data)

  def _style(self, text):
    self.loads += styled(text)


def styled(css: str) -> list[str]:
  """What a style sheet loads."""
  return re.findall(r'url\(\s*["\']?([^"\')]+)', css) + re.findall(r'@import\s+["\']([^"\']+)', css)


def from_elsewhere(loads: list[str]) -> list[str]:
  """Those that a network would be needed for."""
  return [load for load in loads if re.match(r'\s*(https?:)?//', load)]


def dead(pages: dict[str, Page], files: set[str]) -> list[str]:
  """Links within the site that lead nowhere, of pages by path."""
  found = []
  for path, page in pages.items():
    for link in page.links:
      target = urllib.parse.urlsplit(link)
      if target.scheme or target.netloc:
        continue
      to = os.path.normpath(os.path.join(os.path.dirname(path), urllib.parse.unquote(target.path))
                            ) if target.path else path
      anchor = urllib.parse.unquote(target.fragment)
      if to not in files or (anchor and to in pages and anchor not in pages[to].anchors):
        found.append(f'{path}: {link}')
  return found


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The built site's directory."""
  missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
  if missing:
    pytest.skip(f'{", ".join(missing)} not installed: pip install -e \'.[docs]\'')
  out = tmp_path_factory.mktemp('site')
  done = subprocess.run(
      [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-f', str(ROOT / 'docs' / 'mkdocs.yml'),
       '-d', str(out)], capture_output=True, text=True, cwd=ROOT,
      env={**os.environ, 'BIOPROP_EXECUTE': 'false', 'PYTHONPATH': str(ROOT),
           'NO_MKDOCS_2_WARNING': '1'})
  assert done.returncode == 0, done.stderr[-3000:]
  return out


@pytest.fixture(scope='module')
def pages(site):
  """Pages by path; that of what is not found is written for a server's root."""
  return {path.relative_to(site).as_posix(): Page(path.read_text())
          for path in site.rglob('*.html') if path.name != '404.html'}


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site, pages):
  found = {path: from_elsewhere(page.loads) for path, page in pages.items()}
  found |= {str(path): from_elsewhere(styled(path.read_text())) for path in site.rglob('*.css')}
  assert not {path: loads for path, loads in found.items() if loads}
  assert len(pages) > 40
  # The theme's script fetches a library from elsewhere where it meets a diagram of this class.
  assert not [path for path, page in pages.items() if 'mermaid' in page.classes]


@pytest.mark.slow
def test_links_lead_somewhere(site, pages):
  files = {path.relative_to(site).as_posix() for path in site.rglob('*') if path.is_file()}
  assert not dead(pages, files)
  assert sum(len(page.links) for page in pages.values()) > 1000


@pytest.mark.slow
@pytest.mark.parametrize('name', RULES)
def test_each_rule_has_a_page(pages, name):
  """With equations, a curve, and what to cite."""
  page = pages[f'rules/{name}.html']
  assert {'math', 'svg', 'figure', 'figcaption'} <= set(page.tags)
  assert {'when-it-works', 'cost', 'example', 'options', 'cite'} <= page.anchors
  assert f'{name}.html' in [link.rpartition('/')[2] for link in pages['rules/index.html'].links]


@pytest.mark.slow
def test_every_public_name_is_in_the_api(pages):
  found = set().union(*(page.anchors for path, page in pages.items() if path.startswith('api/')))
  names = {f'{module.__name__}.{name}' for module in (bioprop, bioprop.measure, bioprop.theory)
           for name in module.__all__}
  names |= {f'bioprop.errors.{name}' for name, value in vars(bioprop.errors).items()
            if isinstance(value, type) and issubclass(value, bioprop.errors.BiopropError)}
  # Pages of their own, and names of what bioprop.rules has.
  names -= {f'bioprop.{name}' for name in ('RULES', 'Rule', 'errors', 'flags', 'measure', 'rules',
                                           'theory')}
  assert names | {'bioprop.rules.Rule', 'bioprop.flags.define', 'bioprop.flags.plug'} <= found


@pytest.mark.slow
def test_equations_are_typeset(site):
  """No dollar, no arithmatex, no LaTeX is left in a page; code and citations aside."""
  for path in [*site.glob('*.html'), *site.glob('rules/*.html'), *site.glob('api/*.html')]:
    text = re.sub(r'(?s)<(pre|code|script|style)\b.*?</\1>', '', path.read_text())
    assert not re.findall(r'\$\$|arithmatex|\\(?:frac|top|sqrt|operatorname|mathrm)\b', text), path


@pytest.mark.parametrize('text', [
    '<script src="https://cdn.example/x.js"></script>', '<img src="//cdn.example/x.png">',
    '<link rel="stylesheet" href="https://fonts.example/css">', '<style>@import "http://x/y";</style>',
    '<p style="background: url(https://x/y.png)">', '<style>a { src: url("//x/y.woff2") }</style>',
    '<script>import("https://cdn.example/x.mjs")</script>'])
def test_loads_are_seen(text):
  """The check itself can fail."""
  assert len(from_elsewhere(Page(text).loads)) == 1


def test_local_loads_pass():
  text = ('<script src="../a.js"></script><img src="data:image/png;base64,AA"><a href="https://x/">'
          '</a><link rel="canonical" href="https://x/"><style>a { src: url(b.woff) }</style>')
  assert not from_elsewhere(Page(text).loads)


def test_dead_links_are_seen():
  pages = {'a.html': Page('<a href="b/c.html#x"></a><a href="b/c.html#y"></a><a href="#z"></a>'),
           'b/c.html': Page('<h1 id="x"></h1><a href="../a.html"></a><a href="../d.html"></a>')}
  assert dead(pages, set(pages)) == ['a.html: b/c.html#y', 'a.html: #z', 'b/c.html: ../d.html']
