"""All that is to be known of one accelerator, in a given time: `bioprop speed --suite=gpu`.

  steps      ratios of every rule to plain Flax backprop, of the models that `bioprop speed` times,
             with batches that fill a card; rules in the order of their names in RULES, bp, fa, dfa,
             usf and kp first, until this part's share of the time is spent
  ntk        `ntk` and `entk` of an MLP and a convolutional network, and for the MLP the share of
             the card's matrix peak: that of a large float32 product, measured beside them
  replicas   eight seeds in one program beside the same one after the other
  training   CIFAR-10, ResNet-20, under bp, fa, dfa, usf and kp, seeds and learning rates as
             replicas, for as many epochs as fit into what is left; the rate by validation

Each part prints what it has found at once, so that a run that is cut has told the most.
"""
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from bioprop.bench import ntk_speed, replicas, steps
from bioprop.bench.sweep import plan, table, work
from bioprop.errors import BiopropError
from bioprop.rules import OF_TIME, RULES
from bioprop.training import together
from bioprop.training.trainer import Trainer

_FIRST = ('bp', 'fa', 'dfa', 'usf', 'kp')
# Examples of a step that fill a card.
_BATCH = {'mlp': 1024, 'lenet': 1024, 'resnet18': 256, 'transformer': 256}
_SHARES = {'steps': .4, 'ntk': .5, 'replicas': .6}  # Of all time, when each part ends.
_SEEDS, _RATES = (0, 1, 2), (.1, .03, .01)
_WRITING = .05  # Seconds that an epoch's lines take, of one replica.

Measure = Callable[[str, list[str], int, float], list[dict]]


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large everything is; the small one tries the suite on any machine."""
  models: Sequence[str] = tuple(_BATCH)
  rounds: int = 7
  seconds: float = .3
  ntk_samples: tuple[int, int] = (512, 64)
  peak: int = 8192
  replicas: Sequence[str] = ('digits_mlp', 'lenet', 'resnet20')
  seeds: Sequence[int] = _SEEDS
  rates: Sequence[float] = _RATES
  rules: Sequence[str] = _FIRST
  config: str = 'cifar10_resnet20'


SMALL = Scale(models=('mlp',), rounds=2, seconds=.01, ntk_samples=(8, 4), peak=256,
              replicas=('digits_mlp',), seeds=(0, 1), rates=(.05, .02), rules=('bp', 'fa'),
              config='digits_mlp')


def run(measure: Measure, show: Callable[[list[dict], list[str]], None], minutes: float,
        root: pathlib.Path, data_dir: str | None, scale: Scale = Scale()) -> list[dict]:
  """Runs the suite.

  Args:
    measure: times a model's steps, as `bench.speed.measure`.
    show: prints some columns of rows.
    minutes: for all.
    root: folder of the training runs.
    data_dir: folder of prepared datasets.
    scale: how large everything is.

  Returns:
    All rows that were printed, each with its 'part'.
  """
  began = time.perf_counter()
  ends = lambda part: began + 60 * minutes * _SHARES[part]
  found: list[dict] = []

  def tell(part: str, rows: Iterable[dict], columns: list[str]) -> None:
    for row in rows:
      found.append({'part': part, **row})
      show([row], columns)

  tell('steps', _steps(measure, scale, ends('steps')),
       ['model', 'rule', 'step_ms', 'ratio', 'peak_mb'])
  tell('ntk', _ntk(scale, ends('ntk')), ['network', 'n', 'kernel', 'what', 'ms', 'of_peak'])
  for name in scale.replicas:
    if time.perf_counter() < ends('replicas'):
      tell('replicas', replicas.measure(name, 'fa', 8, scale.rounds),
           ['model', 'replicas', 'how', 'epoch_s', 'ratio', 'together'])
  left = began + 60 * minutes - time.perf_counter()
  try:
    tell('training', _training(scale, left, root, data_dir),
         ['rule', 'epochs', 'test accuracy in %'])
  except BiopropError as error:  # Data that are not there: what was measured stays.
    print(f'training was left out: {error}')
  print(f'{(time.perf_counter() - began) / 60:.1f} minutes')
  return found


def _steps(measure, scale, end):
  """Rows of each model, rule by rule, so that time decides where to stop."""
  usual = {name: steps.CASES[name] for name in scale.models}
  rules = [*_FIRST, *(name for name in RULES if name not in (*_FIRST, *OF_TIME))]
  if scale is not SMALL:
    for name, case in usual.items():
      steps.CASES[name] = case._replace(inputs=(_BATCH[name], *case.inputs[1:]))
  try:
    for at, name in enumerate(usual):
      share = time.perf_counter() + (end - time.perf_counter()) / (len(usual) - at)
      plain = True
      for group in (rules[:len(_FIRST)], *([rule] for rule in rules[len(_FIRST):])):
        if time.perf_counter() > share and not plain:
          print(f'{name}: no time for {", ".join(rules[rules.index(group[0]):])}')
          break
        try:
          rows = measure(name, group, scale.rounds, scale.seconds)
        except BiopropError as error:
          print(f'{name}: {group[0]} does not act on it: {error}')
          continue
        yield from rows if plain else rows[1:]
        plain = False
  finally:
    steps.CASES.update(usual)


def _ntk(scale, end):
  """Rows of the kernels, and of the largest product's speed."""
  size = scale.peak
  x = jax.random.normal(jax.random.key(0), (size, size))
  product = jax.jit(lambda x: x @ x.T)
  seconds = _time(lambda: product(x), scale.rounds)
  peak = 2 * size**3 / seconds
  yield {'network': f'product of {size}', 'n': size, 'kernel': '-', 'what': 'peak',
         'ms': round(1e3 * seconds, 3), 'of_peak': f'{peak / 1e12:.3g} TFLOP/s'}
  for network, n in zip(('mlp', 'cnn'), scale.ntk_samples):
    for trace in (False, True):
      if time.perf_counter() > end:
        return
      for row in ntk_speed.measured(network, n, trace, scale.rounds, None):
        share = '-'
        if network == 'mlp':  # What no kernel can do without; that of a rule takes it twice.
          outputs = 10 if not trace else 1
          width = sum(ntk_speed._HIDDEN[network]) * (1 if not trace else 10)
          flops = 2 * (n * outputs)**2 * width
          share = f'{flops / (row["ms"] / 1e3) / peak:.2f}' if row['ms'] else '-'
        yield {**row, 'of_peak': share}


def _time(call, rounds):
  jax.block_until_ready(call())
  times = []
  for _ in range(rounds):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return sorted(times)[len(times) // 2]


def _training(scale, seconds, root, data_dir):
  """Rows of rules, each with as many epochs as fit into the time."""
  deadline = time.perf_counter() + .95 * seconds
  root = root / f'{time.strftime("%Y%m%d-%H%M%S")}'
  planned = lambda epochs: plan.plan(
      root, [scale.config], scale.rules, scale.seeds,
      {'epochs': [epochs], 'checkpoint_every': [10**6], 'warmup_epochs': [min(1., epochs / 4)]},
      {'learning_rate': list(scale.rates)})
  spent = _epoch_seconds([one for one in planned(4) if one.rule == scale.rules[0]], data_dir)
  compile_, epoch = spent
  # Besides, lines of metrics are written for each replica.
  epoch = 1.1 * epoch + _WRITING * len(scale.seeds) * len(scale.rates)
  rules = len(scale.rules)
  epochs = int((deadline - time.perf_counter() - rules * compile_) / (rules * epoch))
  if epochs < 1:
    print(f'no time for training: an epoch of all replicas of a rule takes {epoch:.1f} s, and '
          f'compiling {compile_:.1f} s')
    return
  runs = planned(epochs)
  for rule in scale.rules:
    own = [one for one in runs if one.rule == rule]
    if time.perf_counter() + compile_ + epochs * epoch > deadline + .05 * seconds:
      print(f'{rule}: no time')
      continue
    for where, reason in work.train(own, data_dir).items():
      print(f'{where} failed: {reason}')
    text = table.table(own).splitlines()[-1].split('|')[2].strip()
    yield {'rule': rule, 'epochs': epochs, 'test accuracy in %': text}


def _epoch_seconds(runs, data_dir):
  """Seconds that compiling and an epoch of all these runs take."""
  began = time.perf_counter()
  trainers: list[Trainer] = []
  for one in runs:
    trainers.append(Trainer(one.config, data_dir, like=trainers[0] if trainers else None))
  engines: list[Any] = list(together.within_memory(trainers))
  groups = [engine.stack([trainer.init() for trainer in engine.trainers]) for engine in engines]
  times = []
  for epoch in (1, 2):
    for at, engine in enumerate(engines):
      groups[at], _ = engine.epoch(groups[at], epoch, lambda steps: None, lambda *found: None)
      engine.validate(groups[at])
    jax.block_until_ready(groups)
    times.append(time.perf_counter() - began)
    began = time.perf_counter()
  jax.clear_caches()
  return max(times[0] - times[1], 0.), times[1]
