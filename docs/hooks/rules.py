"""A page for each rule, made of its docstring; the table of all rules; the list of their papers."""
import dataclasses

import curves
from docstrings import described, papers, table
from mkdocs.structure.files import File

from bioprop.rules import OF_TIME, RULES
from bioprop.rules.citation import citation, entries

_COST = ('Time of a step and memory are over those of plain Flax\'s backprop step, measured on two '
         'CPU cores (with what, and when: [Speed](../how-it-works.md#speed)).')


def page_of(name: str) -> str:
  """The page of a rule, in Markdown."""
  rule, said = RULES[name], described(name)
  source = rule.__module__.rpartition('.')[2] + '.py'
  lines = [f'---\ntitle: {name}\n---\n# {said.title}', '',
           f'`bioprop.make(\'{name}\')`: {said.does}. {papers(rule, links=True)}.', '',
           said.text, '', '## Example', '', said.sections.pop('Example'), '', '## Options', '']
  fields = dataclasses.fields(rule)
  if fields:
    lines += ['| option | default | |', '|---|---|---|']
    lines += [f'| `{field.name}` | `{field.default!r}` | {said.options[field.name]} |'
              for field in fields]
  else:
    lines.append('None.')
  lines += ['', '## On a small task', '', curves.figure(name), '']
  for title, text in said.sections.items():
    lines += [f'## {title}', '', *([_COST, ''] if title == 'Cost' else []), text, '']
  kind = 'recurrent networks' if name in OF_TIME else 'any network'
  lines += ['## Cite', '', f'For {kind}; source: [{source}](../../../bioprop/rules/{source}).', '',
            '```bibtex', citation(name), '```', '']
  return '\n'.join(lines)


def on_files(files, config):
  """Adds the pages."""
  for name in RULES:
    files.append(File.generated(config, f'rules/{name}.md', content=page_of(name)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Puts the table of rules and the papers where pages ask for them."""
  del page, config, files
  return (markdown
          .replace('<!-- table of rules -->', table('{}.md', '../../../bioprop/rules/{}'))
          .replace('<!-- papers -->', '```bibtex\n' + '\n\n'.join(entries().values()) + '\n```'))
