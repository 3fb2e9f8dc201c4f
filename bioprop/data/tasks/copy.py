"""Copy: say again what was said (Hochreiter & Schmidhuber 1997; Arjovsky, Shah & Bengio 2016).

  steps   0-4: symbols, each one of 8    5-13: nothing    14: the cue    15-19: the symbols again

Channel k < 8 is one while symbol k is shown, channel 8 is one at the cue. Labels are those of the
last five steps; all other steps have -1 and do not count. Who remembers nothing says one in eight.
"""
import numpy as np

from bioprop.data.split import Source, Split

SYMBOLS, LENGTH, DELAY = 8, 5, 10
STEPS = 2 * LENGTH + DELAY
_TRAIN, _TEST = 5000, 500


def read(seed: int = 0) -> Source:
  """Makes `copy`: with one seed, always the same sequences.

  Args:
    seed: of the symbols, 0 <= seed < 2**32.

  Returns:
    5000 sequences to train on and 500 to test on: x float32 [n, 20, 9], labels int32 [n, 20].
  """
  symbols = np.random.RandomState(seed).randint(SYMBOLS, size=(_TRAIN + _TEST, LENGTH))
  x = np.zeros((len(symbols), STEPS, SYMBOLS + 1), np.float32)
  x[:, :LENGTH, :SYMBOLS] = np.eye(SYMBOLS)[symbols]
  x[:, LENGTH + DELAY - 1, SYMBOLS] = 1
  labels = np.full((len(symbols), STEPS), -1, np.int32)
  labels[:, -LENGTH:] = symbols
  return Source(SYMBOLS, Split(x[:_TRAIN], labels[:_TRAIN]), Split(x[_TRAIN:], labels[_TRAIN:]))
