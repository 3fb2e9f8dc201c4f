"""The effective neural tangent kernel of a configuration's network at its start, rule by rule.

    bioprop ntk --config=mnist_mlp --rules=bp,fa,dfa --batch=64 --seeds=0,1,2 --data_dir=DIR

K(x, x'), how the error at x' moves the output at x, mean over outputs, on examples of which as many
are of each class. Mean ± standard deviation over seeds of

    trace        over the number of examples: how fast one learns from itself
    alignment    with the targets, both centred, where labels are classes
    rank         effective rank: exp of the entropy of the singular values
    asymmetry    |K - K^T| / |K|
    to bp        |K - K_bp| / |K_bp|, backprop's of the same weights
    to infinite  |K - K'| / |K'|, that of infinite width, where the network has one

OUT.npz gets kernel/<rule> [seeds, n, n] and infinite/<rule> [n, n], OUT.png shows them. Rules and
their options are listed by bioprop sweep --help.
"""
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import tqdm
from absl import flags, logging
from matplotlib.figure import Figure
from ml_collections import config_flags

from bioprop import data as data_lib
from bioprop import measure
from bioprop.bench import pictures, plots, statistics
from bioprop.bench.sweep import asked, plan
from bioprop.bench.sweep.table import markdown
from bioprop.errors import ConfigError, TheoryError, WorkdirError
from bioprop.probes import Probe, find_lazy
from bioprop.probes.point import Batch
from bioprop.training import cli, files, probing, untrained
from bioprop.training import config as config_lib

PROGRAM = cli.TRAIN._replace(rules=False)
COLUMNS = ('trace', 'alignment', 'rank', 'asymmetry', 'to bp', 'to infinite')
_BACKPROP = 'bp'


class Kernels(NamedTuple):
  """Kernels of several rules.

  Attributes:
    labels: of the examples, [n]; ascending where they are classes.
    seeds: [seeds].
    found: by rule, as it was typed, [seeds, n, n]; backprop's are among them.
    infinite: of infinite width, [n, n], of the rules that have such a limit.
    without: why others have none.
  """
  labels: np.ndarray
  seeds: np.ndarray
  found: dict[str, np.ndarray]
  infinite: dict[str, np.ndarray]
  without: dict[str, str]


def kernels(config: ml_collections.ConfigDict, rules: Sequence[str], seeds: Sequence[int],
            batch: int, data_dir: str | None = None, infinite: bool = True,
            block: int | None = None, progress: bool = False) -> Kernels:
  """Finds the kernels of a configuration's network before training.

  Args:
    config: of a run; its rule is not used.
    rules: names, perhaps with options in brackets.
    seeds: of weights and feedback.
    batch: training examples.
    data_dir: folder of prepared datasets.
    infinite: whether to find the limits of infinite width too.
    block: at most so many samples' derivatives are held at once; None: all.
    progress: whether to show a progress bar.

  Raises:
    ConfigError: also if there are not as many examples, or seeds are negative.
    UnknownRuleError, RuleOptionError, DataError, MeasureError: as a run with a probe.
  """
  typed = {rule: _under(config, rule) for rule in dict.fromkeys((_BACKPROP, *rules))}
  for one in typed.values():
    for seed in seeds:
      one.seed = seed
      config_lib.check(one)
  data = data_lib.load(config.dataset, data_dir, validation=config.validation)
  if config.examples is not None:
    data = data_lib.choose(data, config.examples, config.seed)
  count = len(data.train.labels)
  if batch > count:
    raise ConfigError(f'--batch is {batch}, and there are {count} training examples of '
                      f'{config.dataset}. Type --batch={min(64, count)}.')
  chosen = probing.balanced(data.train.labels, batch, config.seed, 'entk')
  result = Kernels(data.train.labels[chosen], np.array(seeds), {}, {}, {})
  for rule, one in tqdm.tqdm(typed.items(), unit='rule', disable=not progress):
    result.found[rule] = np.stack(list(_of_seeds(one, seeds, data, chosen, block)))
    if infinite and rule in rules:
      try:
        result.infinite[rule] = _limit(one, data, chosen, block)
      except TheoryError as error:
        result.without[rule] = str(error)
  return result


def measures(kernels: Kernels, rule: str) -> dict[str, np.ndarray]:
  """Returns what COLUMNS name of each seed, [seeds]; what there is not is left out."""
  found = {name: [] for name in COLUMNS}
  for kernel, exact in zip(kernels.found[rule], kernels.found[_BACKPROP]):
    norm = np.linalg.norm(kernel)
    found['trace'].append(np.trace(kernel) / len(kernel))
    if kernels.labels.ndim == 1 and np.issubdtype(kernels.labels.dtype, np.integer):
      same = (kernels.labels[:, None] == kernels.labels).astype(kernel.dtype)
      found['alignment'].append(float(measure.centred_alignment(kernel, same)))
    found['rank'].append(float(measure.effective_rank(kernel)))
    found['asymmetry'].append(np.linalg.norm(kernel - kernel.T) / norm if norm else 0.)
    found['to bp'].append(np.linalg.norm(kernel - exact) / np.linalg.norm(exact))
    if rule in kernels.infinite:
      limit = kernels.infinite[rule]
      found['to infinite'].append(np.linalg.norm(kernel - limit) / np.linalg.norm(limit))
  return {name: np.array(values) for name, values in found.items() if values}


def table(kernels: Kernels, rules: Sequence[str]) -> str:
  """Returns a Markdown table, a row for each rule, and why rules have no infinite width."""
  rows, notes = [['rule', *COLUMNS]], []
  for rule in dict.fromkeys(rules):
    found = measures(kernels, rule)
    cells = [str(statistics.summary(found[name])) if name in found else '-' for name in COLUMNS]
    if rule in kernels.without:
      reason = kernels.without[rule]
      if reason not in notes:
        notes.append(reason)
      cells[-1] = f'[{notes.index(reason) + 1}]'
    rows.append([rule, *cells])
  return '\n'.join([markdown(rows), *(
      f'\n[{number}] {" ".join(reason.split())}' for number, reason in enumerate(notes, 1))])


def save(kernels: Kernels, path: str | os.PathLike) -> None:
  """Writes the arrays as .npz."""
  named = lambda name, arrays: {f'{name}/{rule}': array for rule, array in arrays.items()}
  with files.replacing(path) as file:
    np.savez(file, labels=kernels.labels, seeds=kernels.seeds,
             **named('kernel', kernels.found), **named('infinite', kernels.infinite))


def draw(kernels: Kernels, rules: Sequence[str], path: str | os.PathLike, title: str) -> None:
  """Draws the kernels of the first seed and, below, those of infinite width; each has own colours.

  Raises:
    WorkdirError: if the picture cannot be written.
  """
  rules, rows = list(dict.fromkeys(rules)), 2 if kernels.infinite else 1
  figure = Figure(figsize=(2.8 * len(rules), 3 * rows + 0.4), layout='constrained')
  grid = figure.subplots(rows, len(rules), squeeze=False)
  for rule, column in zip(rules, grid.T):
    drawn = [(f'{rule}, seed {kernels.seeds[0]}', kernels.found[rule][0]),
             (f'{rule}, infinite width', kernels.infinite.get(rule))]
    for axes, (name, kernel) in zip(column, drawn):
      if kernel is None:
        axes.set_axis_off()
      else:
        pictures.show_kernel(axes, kernel, kernels.labels,
                             f'{name}, up to {np.abs(kernel).max():.3g}')
  figure.suptitle(title)
  plots.save(figure, path)


def _under(config, rule):
  return plan.with_rule(ml_collections.ConfigDict(config.to_dict()), rule)


def _of_seeds(config, seeds, data, chosen, block):
  """The kernel of each seed."""
  probe = None
  for seed in seeds:
    config.seed = seed
    trainer = untrained.on(config, data, chosen)
    state, task = trainer.init(), trainer.task
    batch = task.normalise(trainer.train_data.images), trainer.train_data.labels
    if probe is None:
      probe = Probe(task.model, None, batch, types=('entk',), loss=task.loss,
                    block=block, rngs={'feedback': task.key('step')}, train=False)
    yield probe.measure({'params': state.params, **state.model_state})['kernel']


def _limit(config, data, chosen, block):
  trainer = untrained.on(config, data, chosen)
  batch = Batch(trainer.task.normalise(trainer.train_data.images), trainer.train_data.labels)
  return np.asarray(find_lazy(trainer.task.model, batch, trainer.task.loss, block=block,
                              train=True).kernels.entk)


def define_flags() -> None:
  """Defines --config, --data_dir, --rules, --seeds, --batch, --block, and what is written."""
  cli.define_config('digits_mlp', 'The network and its data, by name or as a file; '
                    '--config.<name>=<value> changes it.')
  asked.define_runs()
  flags.DEFINE_integer('batch', 64, 'Training examples, as many of each class.', 1)
  flags.DEFINE_integer('block', None, 'So many derivatives are held at once; without: all.', 1)
  flags.DEFINE_bool('infinite', True, 'Find the kernels of infinite width too.')
  flags.DEFINE_string('out', 'ntk.npz', 'File of the kernels; the picture lies beside it.')
  flags.DEFINE_bool('overwrite', False, 'Replace results that are there.')


def main(argv):
  """Prints the table, and writes the kernels and their picture."""
  del argv  # Parsed.
  logging.set_verbosity(logging.WARNING)
  out = pathlib.Path(flags.FLAGS.out)
  picture = out.with_suffix('.png')
  with cli.reported(resumes=False):
    if out.suffix != '.npz':
      raise WorkdirError(f'--out is {out}, and is to be a file of arrays. Type for instance '
                         f'--out={out.with_suffix(".npz")}.')
    for file in (out, picture):
      if file.exists() and not flags.FLAGS.overwrite:
        raise WorkdirError(f'{file} exists. Say --overwrite to replace what is there, or '
                           '--out=FILE for another place.')
    if rule := config_flags.get_override_values(flags.FLAGS['config']).get('rule'):
      raise ConfigError(f'--config.rule is {rule}, and of kernels there may be several. Type '
                        f'--rules={rule}.')
    rules, seeds = asked.rules_and_seeds()
    found = kernels(flags.FLAGS.config, rules, seeds, flags.FLAGS.batch, flags.FLAGS.data_dir,
                    flags.FLAGS.infinite, flags.FLAGS.block, progress=True)
    print(table(found, rules))
    out.parent.mkdir(parents=True, exist_ok=True)
    save(found, out)
    draw(found, rules, picture, cli.config_name())
  print(f'in {out} and {picture}')


if __name__ == '__main__':
  define_flags()
  cli.start(main, PROGRAM)
