"""The linear teacher: the outputs of another linear recurrent network (arXiv 2606.00243).

  h_t = W h_{t-1} + B x_t ,   y_t = A h_t ,   h_{-1} = 0 ,   x_t ~ N(0, I)

Williams, Payeur & Lajoie study how bptt, truncated bptt and rflo learn this. Here the state has 4
numbers, W = Q diag(0.9, 0.7, 0.5, 0.3) Q^T with a random rotation Q, A and B have independent
entries of N(0, 1/4), and the error counts at every step, as in their appendix H. What a student
with 4 or more linear units cannot do, it did not learn: there is no noise.
"""
from typing import NamedTuple

import numpy as np

from bioprop.data.split import Source, Split

INPUTS, OUTPUTS, STEPS = 4, 2, 20
MODES = (0.9, 0.7, 0.5, 0.3)
_TRAIN, _TEST = 2000, 500


class Teacher(NamedTuple):
  """A linear recurrent network: float64 [state, inputs], [state, state] and [outputs, state]."""
  b: np.ndarray
  w: np.ndarray
  a: np.ndarray


def teacher(seed: int = 0) -> Teacher:
  """Returns the teacher of a seed, 0 <= seed < 2**32."""
  random = np.random.RandomState(seed)
  n = len(MODES)
  rotation, _ = np.linalg.qr(random.randn(n, n))
  return Teacher(random.randn(n, INPUTS) / 2, rotation * MODES @ rotation.T,
                 random.randn(OUTPUTS, n) / 2)


def read(seed: int = 0) -> Source:
  """Makes `linear_teacher`: with one seed, always the same teacher and the same sequences.

  Args:
    seed: of the teacher and of the inputs, 0 <= seed < 2**32.

  Returns:
    2000 sequences to train on and 500 to test on: x float32 [n, 20, 4], y float32 [n, 20, 2].
  """
  b, w, a = teacher(seed)
  random = np.random.RandomState([seed, 1])  # Another stream than the teacher's.
  x = random.randn(_TRAIN + _TEST, STEPS, INPUTS).astype(np.float32)
  state, y = np.zeros((len(x), len(w))), []
  for step in range(STEPS):
    state = state @ w.T + x[:, step] @ b.T
    y.append(state @ a.T)
  y = np.stack(y, 1).astype(np.float32)
  return Source(OUTPUTS, Split(x[:_TRAIN], y[:_TRAIN]), Split(x[_TRAIN:], y[_TRAIN:]))
