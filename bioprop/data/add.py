"""The Add task: a sum of what was seen some steps ago (Boopathy & Fiete 2022, arXiv 2106.08453).

  x_t = 0 or 1, each with probability 1/2 ,   y_t = 1/2 + x_{t-2} / 2 - x_{t-5} / 4 ,

with x_t = 0 before the beginning. (The authors' code takes the x before the beginning from the
sequence's end.) The best constant, 5/8, has the mean square 5/64.
"""
import numpy as np

from bioprop.data.split import Source, Split

VALUES = np.array([0.25, 0.5, 0.75, 1.0], np.float32)
_STEPS, _TRAIN, _TEST = 100, 300, 100


def read() -> Source:
  """Makes `add`: always the same sequences.

  Returns:
    Sequences x, uint8 [300, 100] to train on and [100, 100] to test on, with labels int32 of the
    same shape: y is VALUES[label].
  """
  # RandomState: its stream never changes.
  x = np.random.RandomState(0).randint(0, 2, (_TRAIN + _TEST, _STEPS)).astype(np.uint8)
  label = 1 + 2 * _delayed(x, 2) - _delayed(x, 5)
  return Source(len(VALUES), Split(x[:_TRAIN], label[:_TRAIN]), Split(x[_TRAIN:], label[_TRAIN:]))


def _delayed(x, steps):
  """x_{t - steps}, zero before the beginning, int32."""
  return np.pad(x, ((0, 0), (steps, 0)))[:, :x.shape[1]].astype(np.int32)
