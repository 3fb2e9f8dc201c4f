"""What the rules' docstrings and papers.bib say, for their pages and for the table of all rules.

`python docs/hooks/docstrings.py` prints the table for README.md.
"""
import dataclasses
import inspect
import re

from bioprop.rules import RULES
from bioprop.rules.citation import entries

_NEEDED = ('Cost', 'When it works', 'Example')
_SECTION = re.compile(r'^([A-Z][\w ]*):\n((?:  .*\n|\n)+)', re.MULTILINE)
_OPTION = re.compile(r'^(\w+): (.*(?:\n  .*)*)', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Described:
  """What a rule's docstring says.

  Attributes:
    title: the rule's name in words.
    does: what it does, in a line.
    text: the rest of the first part.
    options: what each field of the dataclass means.
    sections: the others, by title.
  """
  title: str
  does: str
  text: str
  options: dict[str, str]
  sections: dict[str, str]


def described(name: str) -> Described:
  """Reads the docstring of a rule.

  Raises:
    ValueError: if it is not one that a page can be made of.
  """
  rule = RULES[name]
  summary, _, rest = (inspect.getdoc(rule) + '\n').partition('\n')
  title, colon, does = summary.partition(': ')
  sections = {section: inspect.cleandoc(text) for section, text in _SECTION.findall(rest)}
  options = {option: ' '.join(text.split())
             for option, text in _OPTION.findall(sections.pop('Attributes', ''))}
  fields = [field.name for field in dataclasses.fields(rule)]
  if not colon or sorted(options) != sorted(fields) or any(x not in sections for x in _NEEDED):
    raise ValueError(
        f'the docstring of {rule.__name__} must begin with \'Title: what it does.\', name under '
        f'Attributes what its options are ({fields}; it has {sorted(options)}), and have the '
        f'sections {", ".join(_NEEDED)} (it has {", ".join(sections)}).')
  return Described(title, does.removesuffix('.'), _SECTION.sub('', rest).strip(), options, sections)


def papers(rule, links: bool = False) -> str:
  """'Lillicrap et al. 2016; Bordelon & Pehlevan 2023', with links to them if wanted."""
  known, said = entries(), []
  for key in rule.papers:
    entry = known[key]
    names = re.search(r'author = \{(.*?)\},\n', entry, re.DOTALL)[1].replace('{\\o}', 'ø')
    last = [author.split(',')[0].strip() for author in re.split(r'\s+and\s+', names)]
    last = [last[0] + ' et al.'] if len(last) > 3 else last
    year = re.search(r'year = \{(\d+)\}', entry)[1]
    said.append(f'{" & ".join(", ".join(last).rsplit(", ", 1))} {year}')
    if links:
      said[-1] = f'[{said[-1]}]({_address(entry)})'
  return '; '.join(said)


def table(page: str, file: str) -> str:
  """The table of all rules, in Markdown.

  Args:
    page: where a rule's page is, with its name for '{}'.
    file: where a file of bioprop/rules is, likewise.
  """
  rows = ['| name | what it does | paper | file |', '|---|---|---|---|']
  for name, rule in RULES.items():
    source = rule.__module__.rpartition('.')[2] + '.py'
    link = f'[`{name}`]({page.format(name)})' if page else f'`{name}`'
    rows.append(f'| {link} | {described(name).does} | {papers(rule)} | '
                f'[{source}]({file.format(source)}) |')
  return '\n'.join(rows)


def _address(entry: str) -> str:
  field = dict(re.findall(r'(doi|eprint|url) = \{(.*?)\}', entry))
  if 'doi' in field:
    return f'https://doi.org/{field["doi"]}'
  return f'https://arxiv.org/abs/{field["eprint"]}' if 'eprint' in field else field['url']


if __name__ == '__main__':
  print(table('', 'bioprop/rules/{}'))
