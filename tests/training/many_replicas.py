"""Trains three runs over two devices of the CPU, and each alone: what replicas_test looks at."""
import contextlib
import json
import pathlib
import sys

import jax

from bioprop.training import base, loop, run, together, workdir
from bioprop.training.trainer import Trainer


def main(directory):
  configs = []
  for seed in range(3):
    config = base()
    config.model_options.hidden = (16,)
    config.update(validation=100, epochs=2, batch_size=200, seed=seed)
    configs.append(config)
  trainers = [Trainer(config) for config in configs]
  paths = [directory / 'both' / str(seed) for seed in range(3)]
  with contextlib.ExitStack() as stack:
    for config, path in zip(configs, paths):
      stack.enter_context(workdir.opened(path, config))
    loop.run_held(trainers, paths, loop.Progress())
  for config in configs:
    run(config, directory / 'alone' / str(config.seed), progress=False)
  engine, = together.together(trainers)
  states = engine.stack([trainer.init() for trainer in trainers])
  leaf = jax.tree.leaves(states.params)[0]
  print(json.dumps({'devices': jax.device_count(),
                    'lies': [shard.data.shape[0] for shard in leaf.addressable_shards]}))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
