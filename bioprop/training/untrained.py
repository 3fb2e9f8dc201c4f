"""What a configuration makes before anything is trained: its task and first state, on few examples.

Of a run, only what decides these is kept: the model, its rule, the seed, and how inputs are
normalised.
"""
import dataclasses

import ml_collections
import numpy as np

from bioprop.data import Dataset, Split
from bioprop.training.trainer import Trainer


def on(config: ml_collections.ConfigDict, data: Dataset,
       chosen: np.ndarray | None = None) -> Trainer:
  """Returns a trainer whose training examples are these, on one device and without probes.

  Args:
    config: of the run.
    data: whose statistics inputs are normalised by.
    chosen: which training examples; None: the first.

  Raises:
    ConfigError, UnknownRuleError, RuleOptionError: as `Trainer`.
  """
  few = Split(*(leaf[[0] if chosen is None else chosen] for leaf in data.train))
  plain = ml_collections.ConfigDict(config.to_dict())
  plain.update(batch_size=1, validation=0, examples=None, mesh=None, distributed=None)
  plain.probes = ml_collections.ConfigDict()
  return Trainer(plain, data=dataclasses.replace(data, train=few, validation=few, test=few))
