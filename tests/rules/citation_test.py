"""What is to be cited, read by a parser of BibTeX that was written for this test alone."""
import dataclasses
import pathlib
import re

import pytest

import bioprop
from bioprop.errors import UnknownRuleError
from bioprop.rules import RULES
from bioprop.rules.backprop import Backprop

REQUIRED = {'article': {'author', 'title', 'journal', 'year'},
            'inproceedings': {'author', 'title', 'booktitle', 'year'},
            'misc': {'author', 'title', 'year'}, 'software': {'author', 'title', 'year'}}


def parse(text: str) -> dict[str, dict[str, str]]:
  """Entries by key, each a dictionary of fields, and 'type'; ValueError where it is no BibTeX."""
  entries, at = {}, 0
  while at < len(text):
    if text[at].isspace():
      at += 1
      continue
    head = re.compile(r'@(\w+)\{([\w:-]+),').match(text, at)
    if not head or head[2] in entries:
      raise ValueError(f'no entry, or its second: {text[at:at + 40]!r}')
    fields, at = {'type': head[1]}, head.end()
    while not (end := re.compile(r'\s*\}').match(text, at)):
      name = re.compile(r'\s*(\w+) = \{').match(text, at)
      if not name or name[1] in fields:
        raise ValueError(f'no field, or its second: {text[at:at + 40]!r}')
      depth, at = 1, name.end()
      start = at
      while depth:
        if at == len(text):
          raise ValueError('a brace is left open')
        depth += {'{': 1, '}': -1}.get(text[at], 0)
        at += 1
      fields[name[1]] = ' '.join(text[start:at - 1].split())
      comma = re.compile(r'\s*,').match(text, at)
      if not comma:
        raise ValueError(f'no comma after {name[1]}')
      at = comma.end()
    entries[head[2]], at = fields, end.end()
  return entries


@pytest.mark.parametrize('name', RULES)
def test_every_rule_has_a_citation(name):
  found = parse(bioprop.citation(name))
  assert list(found) == ['bioprop', *RULES[name].papers] and RULES[name].papers
  for fields in found.values():
    assert REQUIRED[fields['type']] <= set(fields)
    assert 1980 <= int(fields['year']) <= 2026
    assert all(', ' in author for author in fields['author'].split(' and ')
               ) or fields['author'][0] == '{'
    assert re.fullmatch(r'10\.\d{4,}/\S+', fields.get('doi', '10.1234/x'))
    assert re.fullmatch(r'\d{4}\.\d{4,5}', fields.get('eprint', '1234.5678'))
    assert ('eprint' in fields) == (fields.get('archiveprefix') == 'arXiv')


def test_no_entry_is_unused():
  held = parse((pathlib.Path(bioprop.__file__).parent / 'rules/papers.bib').read_text())
  assert set(held) == {'bioprop'}.union(*(rule.papers for rule in RULES.values()))


def test_papers():
  """Known from the papers themselves."""
  found = parse(bioprop.citation('fa'))
  assert found['lillicrap2016random']['doi'] == '10.1038/ncomms13276'
  assert found['bordelon2023influence']['eprint'] == '2210.02157'


def test_instances_and_mappings():
  """Each entry once, in order."""
  mixed = bioprop.citation({'Conv_*': bioprop.make('fa', rho=0.5), 'a': 'hebb', '*': 'dfa'})
  assert list(parse(mixed)) == ['bioprop', 'lillicrap2016random', 'bordelon2023influence',
                                'nokland2016direct']


def test_a_rule_of_your_own():
  @dataclasses.dataclass(frozen=True)
  class Own(Backprop):
    papers = ()

  @dataclasses.dataclass(frozen=True)
  class Wrong(Backprop):
    papers = ('nobody1900nothing',)

  assert list(parse(bioprop.citation(Own()))) == ['bioprop']
  with pytest.raises(UnknownRuleError, match='nobody1900nothing.*papers = \\(\\)'):
    bioprop.citation(Wrong())


@pytest.mark.parametrize('rule, says', [
    ('ffa', "there is no rule 'ffa'. Did you mean 'fa'"), (3, '3 is not a learning rule'),
    ({'*': None}, 'None is not a learning rule'), ({}, 'the mapping .* is empty')])
def test_what_is_no_rule(rule, says):
  with pytest.raises(UnknownRuleError, match=says):
    bioprop.citation(rule)


@pytest.mark.parametrize('text', [
    '@misc{a, title = {x}', '@misc{a,\n title = {x},\n}\n@misc{a,\n}', '@misc{a,\n title = x,\n}',
    'misc{a,\n}', '@misc{a,\n t = {x}\n}'])
def test_the_parser_refuses(text):
  with pytest.raises(ValueError):
    parse(text)


def test_a_prompt_shows_lines():
  """No \\n in quotation marks."""
  found = bioprop.citation('fa')
  assert repr(found) == found == str(found) and found.count('\n') > 10
