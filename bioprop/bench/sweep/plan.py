"""Which runs a sweep is made of, and where each is."""
import ast
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from bioprop.errors import ConfigError
from bioprop.rules import RULES, make
from bioprop.training import config as config_lib
from bioprop.training import configs as configs_lib

_NOT_FIELDS = ('seed', 'rule', 'probes')
LOCK = '.sweep.lock'  # Held by who writes a file of the whole sweep.

Fields = Mapping[str, Sequence[Any]]  # Values by field.


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    column: the configuration, as it was named.
    rule: the rule, with its options.
    path: the run's directory.
    config: its configuration.
    over: the values of --over that it has, by field.
    tuned: the values of --tune that it has, by field.
  """
  column: str
  rule: str
  path: pathlib.Path
  config: ml_collections.ConfigDict
  over: Mapping[str, Any] = {}
  tuned: Mapping[str, Any] = {}

  @property
  def place(self) -> str:
    """The configuration with the values of --over: a column of the table."""
    return ' '.join([self.column, *_settings(self.over)])

  @property
  def title(self) -> str:
    """All that tells it from the other runs, in words."""
    return ' '.join([self.place, self.rule, *_settings(self.tuned), f'seed {self.config.seed}'])


def plan(root: str | os.PathLike, configs: Sequence[str], rules: Sequence[str],
         seeds: Sequence[int], over: Fields | None = None, tune: Fields | None = None
         ) -> list[Run]:
  """Returns the runs of a sweep, seed by seed, so that a part of it is a table already.

  Args:
    root: directory for all of them.
    configs: files or names, perhaps with an argument after a colon.
    rules: names, perhaps with options in brackets.
    seeds: of the runs.
    over: fields of the configurations and their values: all combinations are run.
    tune: the same, of which the best is chosen for each rule and combination; options of a rule
      that another lacks are not tuned for that one.

  Raises:
    ConfigError: if a configuration, a rule or a field cannot be read, two runs have one directory,
      there is nothing to choose by, or what is to be tuned is an option of none of the rules.
    UnknownRuleError, RuleOptionError: if there is no such rule, or it has no such option.
  """
  root, over, tune = pathlib.Path(root).expanduser(), over or {}, tune or {}
  for field in {*over, *tune}:
    if field in over and field in tune or field.split('.')[0] in _NOT_FIELDS:
      raise ConfigError(f'{field} can be no field of --over{" and --tune" * (field in tune)}: '
                        f'{"give it to one of them" if field in over and field in tune else ""}'
                        f'{_INSTEAD.get(field.split(".")[0], "")}.')
  runs: dict[pathlib.Path, Run] = {}
  for seed, name, values, rule in itertools.product(
      dict.fromkeys(seeds), dict.fromkeys(configs), _combinations(over), dict.fromkeys(rules)):
    column = _column(name)
    for tuned in _combinations(_tunable(tune, rule)):
      config = configs_lib.load(name)
      config_lib.check_kind(config)
      for field, value in {**values, **tuned}.items():
        set_field(config, field, value)
      config = with_rule(config, rule)
      config.seed = seed
      config_lib.check(config)
      if tuned and not config.validation:
        raise ConfigError(f'--tune chooses by the validation split, and {name} has none. Type '
                          '--over=validation:5000 for one.')
      path = pathlib.Path(root, '-'.join([column, *map(_file_name, _settings(values))]), '-'.join(
          [_file_name(rule), *map(_file_name, _settings(tuned)), f'seed{seed}']))
      if path in runs:
        raise ConfigError(f'{name} under {rule} and another of the runs would both be written to '
                          f'{path}. Give their files other names, or sweep them apart.')
      runs[path] = Run(column, rule, path, config, values, tuned)
  for field in tune:
    if not any(field in one.tuned for one in runs.values()):
      set_field(configs_lib.load(configs[0]), field, tune[field][0])  # Says what is misspelt.
      raise ConfigError(f'--tune has {field}, which is to be chosen for none of the rules '
                        f'{", ".join(rules)}: they have no such option, or are named with its '
                        'value. Leave it out, or add a rule that has it, such as --rules=fa for '
                        '--tune=rule_options.rho:0,1.')
  return list(runs.values())


_INSTEAD = {'seed': 'seeds are --seeds=0,1,2', 'rule': 'rules are --rules=bp,fa',
            'probes': 'probes are said in the configuration'}


def parse_fields(texts: Iterable[str], flag: str) -> dict[str, list[Any]]:
  """Reads ['learning_rate:.3,.1', ...], as a flag gives them.

  Raises:
    ConfigError: if one of them is of another form, or a field is there twice.
  """
  found: dict[str, list[Any]] = {}
  for text in texts:
    field, colon, values = text.partition(':')
    field = field.strip().removeprefix('config.')
    parts = re.split(r',(?![^(\[]*[)\]])', values)
    if not colon or not field or field in found or not all(part.strip() for part in parts):
      raise ConfigError(f'--{flag} is {text!r}, and must be a field of the configuration and its '
                        f'values, each field once: --{flag}=learning_rate:.3,.1,.03.')
    found[field] = list(dict.fromkeys(_tuples(_value(part.strip())) for part in parts))
  return found


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
  """Sets model_options.width and the like.

  Raises:
    ConfigError: if there is no such field, it is a group of them, or it takes no such value.
  """
  *nodes, last = field.split('.')
  node = config
  for part in (*nodes, last):
    if not isinstance(node, ml_collections.ConfigDict) or part not in node:
      valid = list(node) if isinstance(node, ml_collections.ConfigDict) else []
      close = config_lib.nearest(part, valid)
      raise ConfigError(f'there is no field {field!r} in the configuration.'
                        f'{f" Did you mean {close!r} in place of {part!r}?" if close else ""} '
                        f'Valid: {", ".join(valid) or "none"}.')
    parent, node = node, node[part]
  if isinstance(node, ml_collections.ConfigDict):
    one = next(iter(node), '...')
    raise ConfigError(f'{field} is a group of settings, and cannot be {value!r}. Type one, '
                      f'such as {field}.{one} with values. Valid: {", ".join(node) or "none"}.')
  try:
    parent[last] = value
  except TypeError as error:
    usual = parent[last]
    why = error if usual is None else f'it takes values such as {usual!r}'
    raise ConfigError(f'{field} cannot be {value!r}: {why}.') from error


def parse_rules(text: str) -> list[str]:
  """Splits 'bp,fa(rho=0.5,scale=1)' at the commas outside of brackets."""
  return [rule.strip() for rule in re.split(r',(?![^(]*\))', text)]


def parse_rule(rule: str) -> tuple[str, dict[str, object]]:
  """Splits 'fa(rho=0.5,scale=1)' into the rule's name and its options.

  Raises:
    ConfigError: if it is written otherwise.
  """
  match = re.fullmatch(r'(\w+)(?:\((.*)\))?', rule)
  try:
    pairs = [pair.split('=') for pair in match[2].split(',')] if match[2] else []
    options = {name.strip(): _value(value.strip()) for name, value in pairs}
    if len(options) < len(pairs):
      raise ValueError('an option twice')
    return match[1], options
  except (TypeError, ValueError):
    raise ConfigError(f'--rules has {rule!r}, which is no rule: type a name, or a name with '
                      'options, such as \'fa(rho=0.5,scale=1)\'.') from None


def with_rule(config: ml_collections.ConfigDict, rule: str) -> ml_collections.ConfigDict:
  """Puts a configuration under a rule, perhaps with options in brackets, and returns it.

  Raises:
    ConfigError, UnknownRuleError, RuleOptionError: as `plan`.
  """
  config.rule, options = parse_rule(rule)
  for option, value in options.items():
    if option not in config.rule_options:
      near = config_lib.nearest(option, config.rule_options)
      raise ConfigError(f'--rules has {rule!r}, and no rule has an option {option!r}.'
                        f'{f" Did you mean {near!r}?" if near else ""} Valid: '
                        f'{", ".join(config.rule_options)}.')
    try:
      config.rule_options[option] = value
    except TypeError as error:
      raise ConfigError(f'--rules has {rule!r}, and {option} cannot be {value!r}: {error}.') from (
          error)
  make(config.rule, **config_lib.rule_options(config))
  return config


def _tunable(tune: Fields, rule: str) -> Fields:
  """Less the options that a rule lacks, or is named with."""
  name, options = parse_rule(rule)
  has = config_lib.fields(RULES[name]) if name in RULES else {}
  return {field: values for field, values in tune.items()
          if not field.startswith('rule_options.')
          or (option := field.split('.')[1]) in has and option not in options}


def _combinations(fields: Fields) -> list[dict[str, Any]]:
  return [dict(zip(fields, values)) for values in itertools.product(*fields.values())]


def _settings(values: Mapping[str, Any]) -> list[str]:
  """['width=64'] of {'model_options.width': 64}."""
  return [f'{field.rpartition(".")[2]}={value}' for field, value in values.items()]


def _column(name):
  file, *argument = name.split(':', 1)
  return '-'.join([pathlib.Path(file).stem, *map(_file_name, argument)])


def _file_name(text):
  return re.sub(r'[^\w.=+-]+', '-', text).strip('-')


def _value(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _tuples(value):
  """Lists as tuples, which are what fields hold; what can be no value of a field, as text."""
  if isinstance(value, list | tuple):
    return tuple(map(_tuples, value))
  return repr(value) if isinstance(value, dict | set) else value
