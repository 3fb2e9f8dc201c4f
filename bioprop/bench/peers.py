r"""Training steps beside BioTorch's, on PyTorch: the same networks, batches and optimiser.

    python -m bioprop.bench.peers --biotorch=PYTHON [--models=mlp,lenet,...] [--rules=bp,fa,dfa]

All steps of a model are compiled first; then, round after round, each library takes its turn with
each rule. Times are medians over rounds, and ratios medians of ratios within a round: what other
programs take from the machine, they take from both. `ours` is the step of `bioprop.bench.speed`,
which for bp is that of the plain Flax model.

BioTorch brings PyTorch, and so runs in a process and an environment of its own:

    python3.11 -m venv peer
    peer/bin/pip install torch biotorch
    python -m bioprop.bench.peers --biotorch=peer/bin/python

docs/pages/results/peers.md holds what it printed.
"""
import json
import os
import pathlib
import statistics
import time

import jax
from absl import app, flags, logging

from bioprop.bench import steps
from bioprop.bench.peer import Peer
from bioprop.training import cli

MODELS = ('mlp', 'lenet', 'resnet20')
RULES = ('bp', 'fa', 'dfa')
_PROGRAM = pathlib.Path(__file__).with_name('biotorch_peer.py')
_NEEDS = 'does it have torch and biotorch? See the top of bioprop/bench/peers.py.'


def measure(name: str, rules: list[str], rounds: int, seconds: float, peer: Peer) -> list[dict]:
  """Times one model's step in both libraries.

  Args:
    name: of `MODELS`.
    rules: of `RULES`.
    rounds: how many times each gets its turn.
    seconds: how long a turn takes, roughly.
    peer: BioTorch.

  Returns:
    A row for each rule: model, rule, batch, ours_ms, theirs_ms (medians over rounds), and ratio,
    the median over rounds of our time over theirs in the same round.
  """
  case = steps.CASES[name]
  made = {rule: steps.make_step(case, None if rule == 'bp' else rule) for rule in rules}
  states = {rule: step.state for rule, step in made.items()}
  batch = case.inputs[0]

  def ours(rule, count):
    began = time.perf_counter()
    for _ in range(count):
      states[rule], loss = made[rule].run(states[rule], made[rule].batch)
    jax.block_until_ready((states[rule], loss))
    return (time.perf_counter() - began) / count

  def theirs(rule, count):
    return peer.ask(model=name, rule=rule, batch=batch, steps=count)['seconds']

  counts = {}
  for rule in rules:  # The first steps of both fill caches, and say how many fit into a turn.
    counts[rule] = max(1, round(seconds / max(ours(rule, 2), theirs(rule, 2))))
  times = {rule: [] for rule in rules}
  for number in range(rounds):
    for rule in rules[number % len(rules):] + rules[:number % len(rules)]:
      times[rule].append((ours(rule, counts[rule]), theirs(rule, counts[rule])))
  median = statistics.median
  return [{'model': name, 'rule': rule, 'batch': batch,
           'ours_ms': round(1e3 * median(a for a, _ in times[rule]), 2),
           'theirs_ms': round(1e3 * median(b for _, b in times[rule]), 2),
           'ratio': round(median(a / b for a, b in times[rule]), 2)} for rule in rules]


def define_flags() -> None:
  """Defines --biotorch, --models, --rules, --json, --rounds, --seconds."""
  flags.DEFINE_string('biotorch', None, 'Python of an environment with torch and biotorch.')
  flags.DEFINE_list('models', list(MODELS), 'Models to time.')
  flags.DEFINE_list('rules', list(RULES), 'Rules to time.')
  flags.DEFINE_string('json', None, 'File for the rows, a list of objects.')
  flags.DEFINE_integer('rounds', 15, 'Rounds of each model.', lower_bound=1)
  flags.DEFINE_float('seconds', 0.5, 'Time of one turn.', 0.0)


def main(argv):
  """Prints a table, and writes the rows as JSON where asked to."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  for flag, valid in (('models', MODELS), ('rules', RULES)):
    for value in getattr(flags.FLAGS, flag):
      if value not in valid:
        raise app.UsageError(f'--{flag} has {value!r}; choose from {", ".join(valid)}.')
  if not flags.FLAGS.biotorch:
    raise app.UsageError('--biotorch names no Python; give that of an environment with torch and '
                         'biotorch, such as --biotorch=peer/bin/python: see the top of '
                         'bioprop/bench/peers.py.')
  peer = Peer(flags.FLAGS.biotorch, _PROGRAM, _NEEDS)
  load = lambda: ', '.join(f'{value:.1f}' for value in os.getloadavg())
  print(f'{jax.devices()[0].device_kind}, {os.cpu_count()} core(s), jax {jax.__version__}, '
        f'load before {load()}')
  rows = []
  print(f'{"model":>9}{"rule":>5}{"batch":>6}{"ours ms":>10}{"theirs ms":>11}{"ratio":>7}')
  for name in flags.FLAGS.models:
    for row in measure(name, flags.FLAGS.rules, flags.FLAGS.rounds, flags.FLAGS.seconds, peer):
      rows.append(row)
      print('{model:>9}{rule:>5}{batch:>6}{ours_ms:>10}{theirs_ms:>11}{ratio:>7}'.format(**row),
            flush=True)
  print(f'load after {load()}')
  peer.close()
  if flags.FLAGS.json:
    pathlib.Path(flags.FLAGS.json).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  define_flags()
  cli.start(main, cli.Program(arguments=False))
