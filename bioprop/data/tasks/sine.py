"""Sine generation: a periodic output from a constant input (Murray 2019, eLife 8:e43299).

  y_t = sin(2 pi t / T) + sin(4 pi t / T) / 2 + sin(8 pi t / T) / 4 ,   x_t = 1 ,   t = 0 ... T - 1

As in the author's notebook (github.com/murray-lab/rflo-learning), it is one trial, again and again:
all sequences are the same one, and an epoch is a thousand trials. A constant output leaves the mean
square (1 + 1/4 + 1/16) / 2 = 21/32.
"""
import numpy as np

from bioprop.data.split import Source, Split

STEPS = 100
_TRIALS = 1000


def read(seed: int = 0) -> Source:
  """Makes `sine`.

  Args:
    seed: of no effect: nothing is drawn.

  Returns:
    1000 trials to train on and one to test on: x float32 [n, 100, 1], y float32 [n, 100, 1].
  """
  del seed
  t = np.arange(STEPS) / STEPS
  y = sum(np.sin(2 * np.pi * k * t) / k for k in (1, 2, 4)).astype(np.float32)[None, :, None]
  x = np.ones_like(y)
  repeated = Split(*(np.repeat(array, _TRIALS, axis=0) for array in (x, y)))
  return Source(1, repeated, Split(x, y))
