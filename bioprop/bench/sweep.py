r"""Rules side by side: every rule on every configuration with every seed, and one table.

    python -m bioprop.bench.sweep RUNS CONFIG ... --rules=bp,fa,dfa --seeds=0,1,2 --data_dir=...

    python -m bioprop.bench.sweep runs/widths configs/mnist_align_mlp.py:32 \
        configs/mnist_align_mlp.py:128 --rules=bp,fa,align_ada --seeds=0,1,2 --data_dir=...

RUNS is a directory for the runs, RUNS/<config>/<rule>-seed<seed>, each as train.py makes it. The
same command goes on where it was interrupted, trains nothing twice, and prints the table of what is
there. What stands after a colon is given to the configuration's own get_config. Rules may carry
options: --rules='fa,fa(rho=0.5,scale=1)'. Of several seeds the table has mean and standard
deviation (that of a sample, with n - 1); runs that diverged are counted beside the mean of the
others.
"""
import ast
import os
import pathlib
import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags, logging

from bioprop.errors import ConfigError, DivergedError, WorkdirError
from bioprop.rules import make
from bioprop.training import cli, files, metrics, run, usage, workdir
from bioprop.training import config as config_lib

METRICS = ('test_accuracy', 'test_error', 'test_loss', 'test_r2', 'test_mse')
_FILE = 'diverged.txt'  # In the directory of a run that diverged: what it said.


def define_flags() -> None:
  """Defines --rules, --seeds and --data_dir."""
  flags.DEFINE_string('rules', 'bp,fa,dfa', 'Names, perhaps with options in brackets.')
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS).')


def planned(root: str | os.PathLike, configs: Sequence[str]) -> list['Run']:
  """The runs that the flags ask for; see `plan`.

  Raises:
    ConfigError: also if --seeds are no numbers.
  """
  rules = [rule.strip() for rule in re.split(r',(?![^(]*\))', flags.FLAGS.rules)]
  try:
    seeds = [int(seed) for seed in flags.FLAGS.seeds]
  except ValueError:
    raise ConfigError(f'--seeds is {",".join(flags.FLAGS.seeds)}, and must be whole numbers, such '
                      'as --seeds=0,1,2.') from None
  return plan(root, configs, rules, seeds)


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    column: the configuration, as it was named.
    rule: the rule, with its options.
    path: the run's directory.
    config: its configuration.
  """
  column: str
  rule: str
  path: pathlib.Path
  config: ml_collections.ConfigDict


def plan(root: str | os.PathLike, configs: Sequence[str], rules: Sequence[str],
         seeds: Sequence[int]) -> list[Run]:
  """Returns the runs of a sweep, seed by seed, so that a part of it is a table already.

  Args:
    root: directory for all of them.
    configs: files, perhaps with an argument after a colon.
    rules: names, perhaps with options in brackets.
    seeds: of the runs.

  Raises:
    ConfigError: if a configuration or a rule cannot be read, or two runs have one directory.
    UnknownRuleError, RuleOptionError: if there is no such rule, or it has no such option.
  """
  runs: dict[pathlib.Path, Run] = {}
  for seed in dict.fromkeys(seeds):
    for name in dict.fromkeys(configs):
      column = _column(name)
      for rule in dict.fromkeys(rules):
        one = Run(column, rule, pathlib.Path(root, column, f'{_file_name(rule)}-seed{seed}'),
                  _with_rule(load(name), rule))
        one.config.seed = seed
        if one.path in runs:
          raise ConfigError(f'{name} under {rule} and another of the runs would both be written to '
                            f'{one.path}. Give their files other names, or sweep them apart.')
        runs[one.path] = one
  return list(runs.values())


def _column(name):
  file, *argument = name.split(':', 1)
  return '-'.join([pathlib.Path(file).stem, *map(_file_name, argument)])


def _file_name(text):
  return re.sub(r'[^\w.=+-]+', '-', text).strip('-')


def _with_rule(config, rule):
  """The configuration under a rule with options, which exist."""
  config.rule, options = parse(rule)
  for option, value in options.items():
    if option not in config.rule_options:
      raise ConfigError(f'--rules has {rule!r}, and no rule has an option {option!r}. Valid: '
                        f'{", ".join(config.rule_options)}.')
    try:
      config.rule_options[option] = value
    except TypeError as error:
      raise ConfigError(f'--rules has {rule!r}, and {option} cannot be {value!r}: {error}.') from (
          error)
  make(config.rule, **config_lib.rule_options(config))
  return config


def load(name: str) -> ml_collections.ConfigDict:
  """Runs the configuration of a file; what follows a colon is given to its get_config.

  Raises:
    ConfigError: if there is no such file, or it cannot be run.
  """
  file, *argument = name.split(':', 1)
  try:
    return runpy.run_path(file)['get_config'](*argument)
  except FileNotFoundError:
    raise ConfigError(usage.no_configuration(file)) from None
  except Exception as error:  # Whatever a file of the user's raises.
    raise ConfigError(f'the configuration {name} cannot be loaded: {type(error).__name__}: '
                      f'{error}') from error


def parse(rule: str) -> tuple[str, dict[str, object]]:
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


def train(runs: Iterable[Run], data_dir: str | None) -> None:
  """Trains what is not there yet; the errors of `bioprop.training.run`, but for divergence.

  A run that diverged is noted in its directory's diverged.txt and not tried again; delete the file
  to do so.

  Raises:
    WorkdirError: also if a directory holds a run of another configuration.
  """
  for one in runs:
    if _is_done(one):
      continue
    print(f'{one.column} {one.rule} seed {one.config.seed}', flush=True)
    try:
      run(one.config, one.path, data_dir)
    except DivergedError as error:
      print(error, flush=True)
      with files.replacing(one.path / _FILE) as file:
        file.write(f'{error}\n'.encode())
    jax.clear_caches()  # The next run is of another shape.


def table(runs: Sequence[Run], metric: str = 'test_accuracy') -> str:
  """Returns a Markdown table, a row for each rule and a column for each configuration.

  Args:
    runs: those of a sweep, trained or not.
    metric: 'test_accuracy' or 'test_error', in %, or 'test_loss', or of runs on targets 'test_r2'
      or 'test_mse'.

  Raises:
    WorkdirError: if the record of a finished run is damaged, or has no such number.
  """
  columns = list(dict.fromkeys(one.column for one in runs))
  rows = [['rule', *columns]]
  for rule in dict.fromkeys(one.rule for one in runs):
    rows.append([rule, *(_cell([one for one in runs if (one.column, one.rule) == (column, rule)],
                               metric) for column in columns)])
  return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table; the first row is its head."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def summary(values: Sequence[float]) -> str:
  """Mean ± standard deviation; the mean alone of one value."""
  mean = f'{np.mean(values):.4g}'
  return f'{mean} ± {np.std(values, ddof=1):.2g}' if len(values) > 1 else mean


def _cell(runs, metric):
  values = [_number(one.path, _final(one), metric) for one in runs if metrics.is_finished(one.path)]
  diverged = sum((one.path / _FILE).exists() for one in runs)
  parts = [summary(values)] if values else []
  return ', '.join(parts + ([f'{diverged} diverged'] if diverged else [])) or 'not run'


def _final(one) -> Mapping[str, float]:
  return metrics.read(one.path, one.config.epochs)[-1]


def _number(path, record, metric):
  name = 'test_accuracy' if metric == 'test_error' else metric
  if name not in record:
    other, labels = (('test_r2', 'numbers') if 'test_r2' in record else
                     ('test_accuracy', 'classes'))
    raise WorkdirError(f'{path} has no {metric}: what it was to predict are {labels}. The runs are '
                       f'trained; to see them, type the same command with --metric={other}.')
  if metric == 'test_error':
    return 100 - 100 * record[name]
  return 100 * record[name] if metric == 'test_accuracy' else record[name]


def _is_done(one):
  """Whether there is nothing to train: finished or diverged, by this very configuration."""
  done = metrics.is_finished(one.path) or (one.path / _FILE).exists()
  present = workdir.read_config(one.path) if done else None
  return present is not None and not workdir.differences(present, workdir.as_json(one.config))


def _value(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def main(argv):
  """Trains, and prints the table."""
  logging.set_verbosity(logging.WARNING)
  with cli.reported():
    if len(argv) < 3:
      raise ConfigError('there is nothing to compare. Type for instance: python -m '
                        'bioprop.bench.sweep runs/sweep configs/digits_mlp.py --rules=bp,fa')
    runs = planned(argv[1], argv[2:])
    train(runs, flags.FLAGS.data_dir)
    print(table(runs, flags.FLAGS.metric))


if __name__ == '__main__':
  define_flags()
  flags.DEFINE_enum('metric', 'test_accuracy', METRICS, 'What the table shows.')
  cli.start(main, cli.Program(cli.TRAIN.configs, rules=True))
