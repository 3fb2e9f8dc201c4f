"""The table of what probes found: numbers that were put there by hand."""
import json

import numpy as np
import pytest

from bioprop.bench.report import measured, representation, runs
from bioprop.errors import WorkdirError

CONFIG = {'seed': 0, 'model': 'mlp', 'dataset': 'digits', 'rule': 'fa'}


def left(folder, probe, step, **found):
  """A measurement as a run leaves it; '__' in a name stands for a slash."""
  folder = folder / 'probes' / probe
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(folder / f'{step:08d}.npz', step=step, labels=np.array([0, 1]),
           **{name.replace('__', '/'): value for name, value in found.items()})


def row_of(folder):
  (run,) = runs.find([folder]).runs
  return representation.row(run.path, measured.read(run), run.final)


def test_a_row(tmp_path):
  """First and last of each; layers in the order of their numbers; the readout's bias counts."""
  probes = {'k': 'entk', 'f': 'features', 'a': 'angles', 'w': 'alignment'}
  config = {**CONFIG, 'probes': {name: {'type': kind} for name, kind in probes.items()}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'metrics.jsonl').write_text(
      '{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0}\n'
      '{"test_accuracy": 0.5, "test_loss": 1.0}\n')
  near, far = np.diag([1., 2., 3.]), np.array([[2., 1., 0.], [1., 2., 0.], [0., 0., 5.]])
  for step, size in ((0, 0.25), (3, 0.5), (7, 0.75)):
    left(tmp_path, 'k', step, target_alignment=size, effective_rank=2 * size,
         share__D_2__kernel=0.1, share__D_10__kernel=size / 2, share__D_10__bias=size / 4)
    left(tmp_path, 'f', step, target_alignment__D_2__kernel=0., target_alignment__D_10__kernel=size,
         phi__D_0__kernel=near, phi__D_2__kernel=near if step else far, phi__D_10__kernel=near)
    left(tmp_path, 'a', step, signals__D_0__kernel=size, signals__D_2__kernel=size / 2,
         signals__D_10__kernel=1.)
    left(tmp_path, 'w', step, cosine__D_2__kernel=size, cosine__D_10__kernel=0.)
  row = row_of(tmp_path)
  centre = np.eye(3) - 1 / 3
  one, other = centre @ far @ centre, centre @ near @ centre
  cosine = np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)
  assert list(row.values())[1:] == [
      '50.0', '0.25 -> 0.75', '0.25 -> 0.75', '0.50 -> 1.50', '0.19 -> 0.56', '0.12 -> 0.38',
      '0.19 -> 0.56', f'{(1 - cosine) / 2:.3f}']


def test_what_is_not_there(tmp_path):
  """A run without probes has no numbers; a folder without a run is no run."""
  with pytest.raises(WorkdirError, match='holds no run'):
    row_of(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
  assert set(list(row_of(tmp_path).values())[1:]) == {'-'}
