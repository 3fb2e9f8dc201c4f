"""A name of the navigation that ends in a slash stands for the pages of that folder.

Its index comes first, then pages in the order in which other hooks made them, or by name.
"""


def on_files(files, config):
  """Writes out the folders of the navigation."""
  pages = [file.src_uri for file in files.documentation_pages()]
  index = lambda uri: not uri.endswith('/index.md')
  for row in config.nav:
    (title, target), = row.items()
    if isinstance(target, str) and target.endswith('/'):
      row[title] = sorted((uri for uri in pages if uri.startswith(target)), key=index)
  return files
