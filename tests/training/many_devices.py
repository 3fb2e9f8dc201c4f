"""Trains on one device and over meshes of virtual ones: what mesh_test looks at.

It is a program, since a process chooses its number of virtual devices before JAX starts:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python many_devices.py DIRECTORY

Each run has its directory DIRECTORY/<rule>-<mesh>; `notes.json` says where arrays lay, what the
compiled step was made of, and what XLA complained about is on stderr. Over two devices it is one
rule over one mesh.
"""
import json
import pathlib
import shutil
import sys

import flax.linen as nn
import jax
import numpy as np

from bioprop.data import Dataset, Split
from bioprop.models import MODELS
from bioprop.training import base, run
from bioprop.training.trainer import Trainer

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

RULES, MESHES = {
    2: (('fa',), (None, 'fsdp=2')),
    8: (('fa', 'dfa', 'kp'), (None, 'data=8', 'data=2,fsdp=4')),
}[jax.device_count()]
BATCH, HIDDEN = 200, 24


class Noisy(nn.Module):
  """BatchNorm over the whole batch, and dropout, which draws for each example."""
  classes: int = 10

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(HIDDEN)(x.reshape((x.shape[0], -1)))
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.classes)(x)


def make_config(rule, mesh):
  """Two epochs of six steps; neither validation (100) nor test examples fill their batches."""
  config = base()
  config.update(rule=rule, mesh=mesh, model='noisy', augment='shift_flip', validation=100, epochs=2,
                batch_size=BATCH, eval_batch_size=99, clip_norm=1.)
  return config


def interrupt_after(epoch, config, path):
  """Ctrl-C in the epoch after `epoch`."""
  plain = Trainer.epoch

  def interrupted(self, state, number, *args):
    if number > epoch:
      raise KeyboardInterrupt
    return plain(self, state, number, *args)

  Trainer.epoch = interrupted
  try:
    run(config, path, progress=False)
  except KeyboardInterrupt:
    return
  finally:
    Trainer.epoch = plain
  raise AssertionError('the run was not interrupted')


def lies(state):
  """The shape of each leaf's part on each device, by path."""
  return {jax.tree_util.keystr(path): [list(shard.data.shape) for shard in leaf.addressable_shards]
          for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def made_of(config, data=None):
  """The compiled text of two steps."""
  trainer = Trainer(config, data=data)
  return trainer._train.lower(2, trainer.init(), trainer.train_data, 1, 0).compile().as_text()


def compile_pooling():
  """LeNet under dfa, where XLA may divide signals as the feedback is; it then warns on stderr."""
  config = make_config('dfa', MESHES[-1])
  config.update(model='lenet', augment='none', validation=0, batch_size=32)
  split = Split(np.zeros((64, 28, 28, 1), np.uint8), np.zeros(64, np.int32))
  one = np.ones(1, np.float32)
  made_of(config, Dataset('black', 10, split, split, split, one, one))


def count_compilations(counts):
  """Notes, at the end of each run, how often its epochs were compiled."""
  plain = Trainer.test

  def test(self, state):
    counts.append(self._train._cache_size())
    return plain(self, state)

  Trainer.test = test


def main(directory):
  notes = {'devices': jax.device_count(), 'lies': {}, 'compiled': []}
  count_compilations(notes['compiled'])
  for rule in RULES:
    for mesh in MESHES:
      results = run(make_config(rule, mesh), directory / f'{rule}-{mesh}', progress=False)
      notes['lies'][f'{rule}-{mesh}'] = lies(results.state)
  if notes['devices'] == 8:
    notes['made_of'] = made_of(make_config('fa', MESHES[-1]))
    compile_pooling()
    interrupted(directory)
  (directory / 'notes.json').write_text(json.dumps(notes))


def interrupted(directory):
  """Ends over the mesh what began there, and on one device."""
  sharded = make_config('fa', MESHES[-1])
  interrupt_after(1, sharded, directory / 'cut')
  shutil.copytree(directory / 'cut', directory / 'moved')
  run(sharded, directory / 'cut', progress=False)
  run(make_config('fa', None), directory / 'moved', progress=False)


if __name__ == '__main__':
  MODELS['noisy'] = Noisy
  main(pathlib.Path(sys.argv[1]))
