"""The learning rules by name."""
import dataclasses
import difflib
from typing import Any

from bioprop.errors import RuleOptionError, UnknownRuleError
from bioprop.rules.align import AlignAda, AlignProp, AlignZero
from bioprop.rules.backprop import Backprop
from bioprop.rules.base import Credit, Op, Rule, SendingRule, Site, check_choice, check_range
from bioprop.rules.direct import DirectFeedbackAlignment
from bioprop.rules.direct_kolen_pollack import DirectKolenPollack
from bioprop.rules.eprop import EProp
from bioprop.rules.feedback import FeedbackAlignment
from bioprop.rules.gated import GatedLinear
from bioprop.rules.hebb import Hebb
from bioprop.rules.kolen_pollack import KolenPollack
from bioprop.rules.last_layer import LastLayer
from bioprop.rules.mirror import WeightMirror
from bioprop.rules.network import Network, NetworkRule
from bioprop.rules.product import ProductFeedbackAlignment
from bioprop.rules.rflo import RFLO
from bioprop.rules.sign_batch import BatchSign
from bioprop.rules.sign_fixed import FixedSign
from bioprop.rules.sign_uniform import UniformSign
from bioprop.rules.target import DirectRandomTargetProjection
from bioprop.rules.tbptt import TruncatedBackprop

AnyRule = Rule | NetworkRule

RULES: dict[str, type[AnyRule]] = {
    'bp': Backprop,
    'fa': FeedbackAlignment,
    'dfa': DirectFeedbackAlignment,
    'usf': UniformSign,
    'brsf': BatchSign,
    'frsf': FixedSign,
    'kp': KolenPollack,
    'dkp': DirectKolenPollack,
    'pfa': ProductFeedbackAlignment,
    'mirror': WeightMirror,
    'hebb': Hebb,
    'drtp': DirectRandomTargetProjection,
    'last_layer': LastLayer,
    'align_prop': AlignProp,
    'align_ada': AlignAda,
    'align_zero': AlignZero,
    'gln': GatedLinear,
    'rflo': RFLO,
    'eprop': EProp,
    'tbptt': TruncatedBackprop,
}
# Those that act on recurrent networks only.
OF_TIME: tuple[str, ...] = tuple(n for n, cls in RULES.items() if getattr(cls, 'needs_time', False))


def make(name: str, **options: Any) -> AnyRule:
  """Makes a rule by name: make('fa', rho=0.5).

  Args:
    name: a key of `RULES`.
    **options: fields of that rule's dataclass.

  Raises:
    UnknownRuleError: if there is no such rule.
    RuleOptionError: if the rule has no such option, or its value is out of range.
  """
  if name not in RULES:  # A paper's name, such as 'kolen_pollack', is the class's.
    spelled = {cls.__name__.lower(): short for short, cls in RULES.items()} | {n: n for n in RULES}
    raise UnknownRuleError(
        f'there is no rule {name!r}.{_guess(name, spelled)} The rules are: {", ".join(RULES)}. '
        f'Type for instance bioprop.make(\'fa\'), or --config.rule=fa.')
  cls = RULES[name]
  valid = [field.name for field in dataclasses.fields(cls)]
  for option in options:
    if option not in valid:
      raise RuleOptionError(
          f'rule {name!r} has no option {option!r} (given as {options[option]!r}).'
          f'{_guess(option, {n: n for n in valid})} Its options are: {", ".join(valid) or "none"}.')
  return cls(**options)


def as_rule(value: AnyRule | str) -> AnyRule:
  """Reads a rule or the name of one.

  Raises:
    UnknownRuleError: if there is no rule of that name, or it is no rule at all.
  """
  if isinstance(value, Rule | NetworkRule):
    return value
  if isinstance(value, str):
    return make(value)
  raise UnknownRuleError(
      f'{value!r} is not a learning rule: give a name ({", ".join(RULES)}) or a rule, '
      f'such as bioprop.make(\'fa\', rho=0.5).')


def _guess(word, words):
  close = difflib.get_close_matches(str(word).lower().replace('_', ''), words, n=1)
  return f' Did you mean {words[close[0]]!r}?' if close else ''


__all__ = ['OF_TIME', 'RULES', 'AnyRule', 'Credit', 'Network', 'NetworkRule', 'Op', 'Rule',
           'SendingRule', 'Site', 'as_rule', 'check_choice', 'check_range', 'make']
