"""The embedded text: a novel in windows of characters, and how well counting predicts it.

The text is persuasion.txt: volume one (chapters 1 to 12) of Jane Austen's Persuasion, first printed
in 1818. It is in the public domain everywhere: its author died in 1817. Title page and notes of the
transcription are left out, and runs of spaces are single ones; nothing else is changed.
"""
from importlib import resources

import numpy as np

from bioprop.data.split import Source, Split

WINDOW = 64
_TEST_WINDOWS = 334  # A tenth.


def read() -> Source:
  """Reads `characters`; no download.

  The text is cut into windows of `WINDOW` characters, one after the other; a character's label is
  the next character of the text. So every character but the first is the label of one position, and
  no label is in two splits. The test split is the end of the text: a passage that was not read.

  Returns:
    Train and test windows in the order of the text, uint8 [n, 64], with labels int32 [n, 64]. Ids
    are ranks in the sorted alphabet of the whole text. What does not fill a window is left out.
  """
  text = resources.files(__package__).joinpath('persuasion.txt').read_text('ascii')
  # A line ends where the page did, which says nothing: a paragraph becomes one line.
  text = '\n'.join(' '.join(paragraph.split()) for paragraph in text.split('\n\n'))
  alphabet, ids = np.unique(np.frombuffer(text.encode(), np.uint8), return_inverse=True)
  windows = (len(ids) - 1) // WINDOW
  cut = lambda start: ids[start:start + windows * WINDOW].reshape(windows, WINDOW)
  inputs, labels = cut(0).astype(np.uint8), cut(1).astype(np.int32)
  train = windows - _TEST_WINDOWS
  return Source(len(alphabet), Split(inputs[:train], labels[:train]),
                Split(inputs[train:], labels[train:]))


def unigram_entropy(split: Split) -> float:
  """Entropy of a text's characters, in nats: the least loss of a constant prediction.

  Args:
    split: windows of characters, with labels [n, T].
  """
  return _entropy(np.bincount(split.labels.ravel()))


def bigram_entropy(split: Split) -> float:
  """Entropy of a character given the one before it, in nats per character.

  It is the least loss, on this very text, of a prediction by the last character alone.

  Args:
    split: windows of characters [n, T], with labels [n, T].
  """
  size = int(split.labels.max()) + 1
  pairs = split.images.ravel().astype(np.int64) * size + split.labels.ravel()
  return _entropy(np.bincount(pairs)) - _entropy(np.bincount(split.images.ravel()))


def _entropy(counts: np.ndarray) -> float:
  """Entropy in nats of the distribution with these counts."""
  shares = counts[counts > 0] / counts.sum()
  return float(-np.sum(shares * np.log(shares)))
