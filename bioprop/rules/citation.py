"""BibTeX of the papers behind rules, read from papers.bib."""
import re
from collections.abc import Mapping
from importlib import resources

from bioprop.errors import UnknownRuleError
from bioprop.rules import AnyRule, as_rule


def entries() -> dict[str, str]:
  """All entries of papers.bib, BibTeX by key; 'bioprop' is the library's own."""
  text = resources.files('bioprop.rules').joinpath('papers.bib').read_text(encoding='utf-8')
  return {re.match(r'@\w+{([^,]+),', entry)[1]: entry for entry in text.strip().split('\n\n')}


class BibTeX(str):
  """BibTeX that a prompt shows as it stands in a file."""

  def __repr__(self) -> str:
    return str(self)


def citation(rule: 'AnyRule | str | Mapping[str, AnyRule | str]') -> BibTeX:
  """What to cite where a rule was used: BibTeX of bioprop and of the papers behind the rule.

  Args:
    rule: a rule, its name, or a mapping from path patterns to either, as for `plug`.

  Returns:
    A string of entries with blank lines between; a rule of your own adds those that its `papers`
    names.

  Raises:
    UnknownRuleError: if a name is not in `RULES`, something is no rule, there is none, or a rule
      names a paper that papers.bib does not have.
  """
  rules = [as_rule(one) for one in (rule.values() if isinstance(rule, Mapping) else [rule])]
  if not rules:
    raise UnknownRuleError('the mapping from path patterns to rules is empty, so there is nothing '
                           'to cite. For instance bioprop.citation({\'Conv_*\': \'fa\', \'*\': '
                           '\'dfa\'}).')
  known = entries()
  keys = dict.fromkeys(['bioprop', *(key for one in rules for key in one.papers)])
  for key in keys:
    if key not in known:
      raise UnknownRuleError(
          f'a rule names the paper {key!r}, which bioprop/rules/papers.bib does not have. Leave '
          f'it out of the rule\'s `papers`, and cite it yourself: papers = ().')
  return BibTeX('\n\n'.join(known[key] for key in keys))
