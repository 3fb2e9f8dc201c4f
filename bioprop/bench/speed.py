"""Step time, memory, tracing and compiling of each rule beside plain Flax backprop.

    bioprop speed [--models=mlp,lenet,...] [--rules=bp,fa,...] [--json=FILE]
    bioprop speed --loop    # the training loop (--rules=bp) beside a bare scan
    bioprop speed --probes  # 500 steps with all probes beside 500 without
    bioprop speed --models=rnn [--steps=100,1000,10000]  # offline, and online
    bioprop speed --replicas=8    # seeds in one program beside the same one after the other
    bioprop speed --imports       # import bioprop, and first use, beside import flax
    bioprop speed --suite=gpu --data_dir=...    # all of one card, in 12 minutes

Models: mlp, lenet, resnet20, resnet18 and transformer (four layers) in linen, nnx_mlp and nnx_cnn
in NNX; rnn, a GRU on sequences, beside backprop through time under rules of time (tbptt: 5 steps).
Everything is measured in one run. All steps of a model are compiled first, and timed at that; then,
round after round, each is run for a while in turn, so that a machine that speeds up or slows down
does so for all. A ratio is the median over rounds of a rule's time over the plain step's time of
the same round.
"""
import json
import pathlib
import statistics
import time

import jax
from absl import app, flags, logging

from bioprop.bench import epochs, gpu, imports, nnx_steps, probed, replicas, steps, streamed
from bioprop.rules import OF_TIME, RULES
from bioprop.training import cli, together

CASES = {**steps.CASES, **nnx_steps.CASES}
_RNN = 'rnn'
PROGRAM = cli.Program(rules=True, arguments=False)
_OF_LAYERS = [rule for rule in RULES if rule not in OF_TIME]


def measure(name: str, rules: list[str], rounds: int, seconds: float) -> list[dict]:
  """Times one model's step under each rule.

  Args:
    name: a key of `CASES`.
    rules: keys of `RULES`.
    rounds: how many times each step gets its turn.
    seconds: how long a turn of the plain step takes; others run as many steps.

  Returns:
    A row for the plain step ('plain') and each rule: model, rule, step_ms (median over rounds),
    ratio (median over rounds of the time over the plain time of the same round), peak_mb, and
    trace_s, compile_s and build_ratio, the sum of these two over the plain step's.
  """
  package = nnx_steps if name in nnx_steps.CASES else steps
  made = {rule: package.make_step(package.CASES[name], None if rule == 'plain' else rule)
          for rule in ['plain', *rules]}
  states = {rule: step.state for rule, step in made.items()}
  for rule in made:
    states[rule], warm = _turn(made[rule], states[rule], 2)
    if rule == 'plain':
      count = max(1, round(seconds / warm))
  times = {rule: [] for rule in made}
  order = list(made)
  for number in range(rounds):
    # The order rotates, so that no rule always follows the same one.
    for rule in order[number % len(order):] + order[:number % len(order)]:
      states[rule], elapsed = _turn(made[rule], states[rule], count)
      times[rule].append(elapsed)
  return [{'model': name, 'rule': rule,
           'step_ms': round(1e3 * statistics.median(times[rule]), 3),
           'ratio': round(statistics.median(
               own / plain for own, plain in zip(times[rule], times['plain'])), 3),
           'peak_mb': round(made[rule].peak_mb, 1),
           'trace_s': round(made[rule].trace_s, 2), 'compile_s': round(made[rule].compile_s, 2),
           'build_ratio': round(_build(made[rule]) / _build(made['plain']), 2)} for rule in made]


def _build(step) -> float:
  return step.trace_s + step.compile_s


def _turn(step, state, count):
  """Runs `count` steps; the state after them, and seconds a step."""
  began = time.perf_counter()
  for _ in range(count):
    state, loss = step.run(state, step.batch)
  jax.block_until_ready((state, loss))
  return state, (time.perf_counter() - began) / count


def _print(rows, columns):
  cells = [columns] + [[str(row[column]) for column in columns] for row in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
  for row in cells:
    print('  '.join(cell.rjust(width) for cell, width in zip(row, widths)), flush=True)


def _check(name, given, valid):
  for value in given:
    if value not in valid:
      raise app.UsageError(f'--{name} has {value!r}; choose from {", ".join(valid)}.')


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_list('models', list(CASES), f'Models to time, and {_RNN}; without: all but that.')
  flags.DEFINE_list('rules', None, 'Rules to time; without: all that can act on the model.')
  flags.DEFINE_string('json', None, 'File for the rows, a list of objects.')
  flags.DEFINE_integer('rounds', 15, 'Rounds of each model.', lower_bound=1)
  flags.DEFINE_float('seconds', 0.5, 'Time of the plain step in one round.', 0.0)
  flags.DEFINE_list('steps', ['100', '1000', '10000'], f'Lengths of the sequences of {_RNN}.')
  flags.DEFINE_boolean('probes', False, 'Time epochs with and without probes instead.')
  flags.DEFINE_boolean('loop', False, 'Time epochs of the training loop instead.')
  flags.DEFINE_boolean('imports', False, 'Time import bioprop and its first use instead.')
  flags.DEFINE_integer('replicas', None, 'Time so many seeds in one program beside the same one '
                       f'after the other instead; models: {", ".join(replicas.CASES)}.', 1)
  flags.DEFINE_enum('suite', None, ['gpu', 'small'], 'Time everything of one card; small: of '
                    'everything a little, to try it anywhere.')
  flags.DEFINE_float('minutes', 12.0, 'For --suite.', 0.0)
  flags.DEFINE_string('data_dir', None, 'Folder of prepared datasets (TFDS), for --suite.')
  flags.DEFINE_string('workdir', 'runs/suite', 'Where --suite trains.')


def main(argv):
  """Prints a table for each model, and writes all rows as JSON where asked to."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)  # app.run raises it, and jax tells of absent backends.
  if flags.FLAGS.replicas or flags.FLAGS.suite:
    together.use_all_cores()
  models = flags.FLAGS.models
  if flags.FLAGS.replicas and not flags.FLAGS['models'].present:
    models = list(replicas.CASES)
  _check('models', models, list(replicas.CASES) if flags.FLAGS.replicas else [*CASES, _RNN])
  _check('rules', flags.FLAGS.rules or [], RULES)
  for value in flags.FLAGS.steps:
    if not value.isdigit() or int(value) < 1:
      raise app.UsageError(f'--steps has {value!r}; give whole numbers, such as 100,1000.')
  print(f'{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}')
  rows = []
  if flags.FLAGS.suite:
    scale = gpu.SMALL if flags.FLAGS.suite == 'small' else gpu.Scale()
    rows, models = gpu.run(measure, _print, flags.FLAGS.minutes,
                           pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.data_dir, scale), []
  if flags.FLAGS.imports:
    rows, models = imports.measure(flags.FLAGS.rounds), []
    _print(rows, ['what', 'seconds', 'ratio'])
  for name in models:
    if flags.FLAGS.replicas:
      for rule in flags.FLAGS.rules or ['fa']:
        rows += (new := replicas.measure(name, rule, flags.FLAGS.replicas, flags.FLAGS.rounds))
        _print(new, ['model', 'rule', 'replicas', 'how', 'epoch_s', 'ratio', 'together'])
    elif name == _RNN:
      rows += (new := streamed.measure(flags.FLAGS.rules or list(streamed.RULES),
                                       list(map(int, flags.FLAGS.steps)), flags.FLAGS.rounds))
      _print(new, ['model', 'rule', 'form', 'steps', 'step_ms', 'ratio', 'peak_mb'])
    elif flags.FLAGS.probes:
      for rule in (flags.FLAGS.rules or _OF_LAYERS) if name in probed.CASES else ():
        rows += (new := probed.measure(name, rule, flags.FLAGS.rounds))
        _print(new, ['model', 'rule', 'probes', 'epoch_s', 'ratio'])
    elif flags.FLAGS.loop:
      if name in epochs.CASES:
        rows += (new := epochs.measure(name, flags.FLAGS.rounds, flags.FLAGS.rules or ['bp']))
        _print(new, ['model', 'loop', 'rule', 'epoch_s', 'ratio'])
    else:
      rows += (new := measure(name, flags.FLAGS.rules or _OF_LAYERS, flags.FLAGS.rounds,
                             flags.FLAGS.seconds))
      plain = new[0]['peak_mb']
      _print([{**row, 'peak_ratio': f'{row["peak_mb"] / plain:.2f}'} for row in new],
             ['model', 'rule', 'step_ms', 'ratio', 'peak_mb', 'peak_ratio', 'trace_s', 'compile_s',
              'build_ratio'])
  if flags.FLAGS.json:
    pathlib.Path(flags.FLAGS.json).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
