"""Names and options of rules: what is refused, and with which words."""
import dataclasses
import math

import pytest

import bioprop
from bioprop import errors

SCALED = [name for name, cls in bioprop.RULES.items()
          if 'scale' in {field.name for field in dataclasses.fields(cls)}]


def test_unknown_rule_suggests_one():
  """The message lists the rules and guesses."""
  with pytest.raises(errors.UnknownRuleError, match="'hebbb'.*Did you mean 'hebb'"):
    bioprop.make('hebbb')


@pytest.mark.parametrize('name, short', [
    ('backprop', 'bp'), ('feedback_alignment', 'fa'), ('FeedbackAlignment', 'fa'), ('DFA', 'dfa'),
    ('direct_feedback_alignment', 'dfa'), ('kolen_pollack', 'kp'), ('weight_mirror', 'mirror'),
    ('lastlayer', 'last_layer'), ('uniform_sign', 'usf'), ('align_adaa', 'align_ada')])
def test_names_of_papers_suggest_the_short_one(name, short):
  """Whoever knows a rule by its long name is told the one to type."""
  with pytest.raises(errors.UnknownRuleError, match=f"{name!r}. Did you mean {short!r}"):
    bioprop.make(name)


@pytest.mark.parametrize('name, options, words', [
    ('fa', {'rho': 1.5}, r'rho=1\.5.*\[0, 1\]'),
    ('fa', {'rho': -0.1}, r'rho=-0\.1'),
    ('fa', {'rho': math.nan}, 'rho=nan'),
    ('fa', {'rho': True}, 'rho=True'),
    ('fa', {'rho': '0.5'}, "rho='0.5'"),
    ('fa', {'rho': None}, 'rho=None'),
    ('fa', {'rh': 0.5}, "no option 'rh'.*Did you mean 'rho'"),
    ('bp', {'scale': 1.0}, 'options are: none'),
    ('hebb', {'reduction': 'median'}, "reduction='median'.*mean, sum"),
    ('hebb', {'reduction': 1}, 'reduction=1'),
    ('hebb', {'activation': 'tan'}, "activation='tan'"),
    *((name, {'scale': scale}, 'scale=') for name in SCALED
      for scale in (-1.0, math.inf, math.nan, True, '1', [1.0])),
])
def test_bad_options(name, options, words):
  """Each is refused when the rule is made, not when it runs."""
  with pytest.raises(errors.RuleOptionError, match=words):
    bioprop.make(name, **options)


@pytest.mark.parametrize('name', SCALED)
@pytest.mark.parametrize('scale', [0, 1, 2.5])
def test_good_scales(name, scale):
  """Whole numbers are numbers."""
  assert bioprop.make(name, scale=scale).scale == scale
