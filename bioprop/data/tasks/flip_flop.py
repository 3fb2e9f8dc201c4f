"""Flip-flop: three bits, each to be held till it is set anew (Sussillo & Barak 2013).

At each of 50 steps, each of three channels gives a pulse with probability 1/10, +1 or -1 as likely.
Output k is the sign of channel k's last pulse (this step's included), 0 before the first.
"""
import numpy as np

from bioprop.data.split import Source, Split

BITS, STEPS, RATE = 3, 50, 0.1
_TRAIN, _TEST = 2000, 500


def read(seed: int = 0) -> Source:
  """Makes `flip_flop`: with one seed, always the same sequences.

  Args:
    seed: of the pulses, 0 <= seed < 2**32.

  Returns:
    2000 sequences to train on and 500 to test on: x float32 [n, 50, 3], y float32 [n, 50, 3].
  """
  random = np.random.RandomState(seed)
  shape = (_TRAIN + _TEST, STEPS, BITS)
  x = np.where(random.rand(*shape) < RATE, 2 * random.randint(2, size=shape) - 1, 0)
  y = x.copy()
  for step in range(1, STEPS):
    y[:, step] = np.where(x[:, step] == 0, y[:, step - 1], x[:, step])
  x, y = x.astype(np.float32), y.astype(np.float32)
  return Source(BITS, Split(x[:_TRAIN], y[:_TRAIN]), Split(x[_TRAIN:], y[_TRAIN:]))
