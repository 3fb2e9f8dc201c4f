"""Runs as training leaves them, without training."""
import json
import pathlib

import numpy as np
import pytest

from bioprop.bench.report import __main__ as report
from bioprop.training import base, probing, workdir

LABELS = np.array([0, 0, 1, 1, 2, 2])
LAYERS = ('Dense_0', 'Dense_1', 'Dense_2')
ENVIRONMENT = {
    'versions': {'bioprop': '0.1.0', 'jax': '0.10.2'}, 'started': '2026-01-02T03:04:05+00:00',
    'device': {'platform': 'gpu', 'kind': 'NVIDIA H100', 'count': 1},
    'host': {'system': 'Linux', 'cpu': 'EPYC', 'cores': 16},
    'git': {'revision': 'a1b2c3d4e5f6a7b8', 'dirty': True}, 'parameters': 81_700,
    'batch_size': 64, 'steps_per_epoch': 10, 'flops': {'forward': 8.16e6, 'backward': 1.44e7}}


@pytest.fixture(scope='session')
def leave():
  """leave(path, ...) makes the directory of a run, and returns it."""

  def make(path: pathlib.Path, rule='fa', seed=0, test=0.5, epochs=2, validation=0.4,
           diverged=None, environment=None, probes=(), fit=False, **values):
    """Finished with a test accuracy (or R^2) of `test`, unless it is None; loss 4 / epoch."""
    config = base()
    config.rule, config.seed, config.epochs = rule, seed, epochs
    options = values.pop('rule_options', {})
    config.update(values)
    config.rule_options.update(options)
    if config.dataset == 'characters':
      config.validation = 300  # There are some 3000 windows.
    for kind in probes:
      config.probes[f'my_{kind}'] = {'type': kind, 'every': 5, 'batch': len(LABELS)}
    path.mkdir(parents=True)
    (path / 'config.json').write_text(json.dumps(workdir.as_json(config)))
    score = 'r2' if fit else 'accuracy'
    records = [] if diverged else [
        {'epoch': n, 'train_loss': 4 / n, f'train_{score}': 0.3, 'seconds': 1.5,
         **({} if validation is None else {'validation_loss': 2 / n,
                                           f'validation_{score}': validation})}
        for n in range(1, epochs + 1 if test is not None else epochs)]
    if test is not None and not diverged:
      records.append({'test_loss': 1 - test, f'test_{score}': test,
                      **({'test_mse': 2.0} if fit else {})})
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in records))
    if diverged:
      (path / 'diverged.txt').write_text(f'{diverged}\n')
    if environment:
      (path / 'environment.json').write_text(json.dumps(environment))
    for kind in probes:
      for step in (0, 5, 10):
        probing.write(path, probing.Measured(f'my_{kind}', step, LABELS, found(kind, seed, step)))
    return path

  return make


def found(kind, seed, step):
  """What a probe gives of three layers; numbers are of seed, step and place, so that all differ."""
  random = np.random.RandomState([seed, step])
  kernel = lambda: np.cov(random.randn(6, 9))
  number = lambda at: np.asarray(0.01 * step + 0.1 * seed + 0.2 * at)
  weights = [f'{layer}/kernel' for layer in LAYERS]
  if kind == 'entk':
    return {'kernel': kernel(), 'target_alignment': number(1), 'effective_rank': number(9),
            'share/Dense_0/bias': number(0.5), **{
                f'share/{path}': number(at) for at, path in enumerate(weights)}}
  if kind == 'features':
    return {f'{name}/{path}': make(at) for at, path in enumerate(weights) for name, make in (
        ('phi', lambda at: kernel()), ('target_alignment', number), ('effective_rank', number))}
  if kind == 'angles':
    return {'cosine': number(3), 'ratio': number(4), 'samples': np.ones(6), **{
        f'{name}/{path}': number(at) for at, path in enumerate(weights)
        for name in ('cosine', 'ratio', 'signals')}}
  if kind == 'theory':
    return {'kernel': kernel(), 'infinite_kernel': kernel(), 'target_alignment': number(1),
            'infinite_target_alignment': number(2), 'loss': number(3), 'infinite_loss': number(4),
            'distance': number(5)}
  return {f'direct/{layer}': number(at) for at, layer in enumerate(LAYERS[:-1])}


@pytest.fixture(scope='session')
def sweep_of():
  """sweep_of(root, entries) writes the plan of a sweep."""

  def write(root, entries, metric='test_accuracy', version=1):
    usual = {'column': 'small', 'over': {}, 'tuned': {}}
    runs = [{**usual, **entry} for entry in entries]
    (root / 'sweep.json').write_text(json.dumps(
        {'version': version, 'metric': metric, 'runs': runs}))

  return write


@pytest.fixture(scope='package')
def sweep(tmp_path_factory, leave, sweep_of):
  """Two widths of a rule with an awkward name, tuned, beside bp: with seeds that did not finish."""
  root, entries = tmp_path_factory.mktemp('sweep') / 'my_runs', []
  for width in (8, 64):
    for rule, tuned in (('bp', 0.1), ('fa(rho=0.5)', 0.1), ('fa(rho=0.5)', 3.0)):
      for seed in range(3):
        path = f'{rule[:2]}-{tuned}-{width}-{seed}'
        gone = 'nan & 100 % <b>|</b> of_it' if (tuned, seed, width) == (3.0, 2, 64) else None
        leave(root / path, 'fa', seed, test=(width + seed) / 100 + 0.1 * (rule == 'bp'),
              validation=0.5 if tuned == 0.1 else 0.4, diverged=gone, environment=ENVIRONMENT,
              probes=('angles',) if width == 8 else ())
        entries.append({'path': path, 'column': 'digits_mlp', 'rule': rule, 'seed': seed,
                        'over': {'model_options.width': width}, 'tuned': {'learning_rate': tuned}})
  entries.append({**entries[0], 'path': 'none', 'seed': 3})
  sweep_of(root, entries)
  return root


@pytest.fixture(scope='package')
def made(sweep):
  """The files of its report."""
  return report.make([sweep], None)
