"""What `bioprop sweep` cannot do, or has not done, is told, and nothing is lost."""
import pytest

from bioprop.bench.sweep import plan
from bioprop.errors import ConfigError

CONFIG = '''
from bioprop.training import base


def get_config():
  config = base()
  config.model_options.hidden = (8,)
  config.epochs = 1
  return config
'''


@pytest.fixture
def file(tmp_path):
  """The path of a configuration's file: digits, a small MLP."""
  (tmp_path / 'small.py').write_text(CONFIG)
  return str(tmp_path / 'small.py')


@pytest.mark.parametrize('rules, option, words', [
    (['bp', 'fa'], 'roh', "no field 'rule_options.roh'.* mean 'rho' in place of 'roh'"),
    (['bp'], 'rho', '--tune has rule_options.rho, which .* none of the rules bp'),
    (['fa(rho=0.5)'], 'rho', r'none of the rules fa.rho=0.5.:')])
def test_an_option_that_is_tuned_for_no_rule_is_told(file, tmp_path, rules, option, words):
  """Misspelt, of other rules, or given already; with a rule that takes it, it is tuned there."""
  tune = {f'rule_options.{option}': [.25, 1]}
  with pytest.raises(ConfigError, match=words):
    plan.plan(tmp_path / 'runs', [file], rules, [0], tune=tune)
  runs = plan.plan(tmp_path / 'runs', [file], [*rules, 'fa'], [0],
                   tune={'rule_options.rho': [.25, 1]})
  assert [one.tuned for one in runs if one.rule == 'fa'] == [
      {'rule_options.rho': .25}, {'rule_options.rho': 1}]
