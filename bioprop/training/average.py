"""What is reported of a split: the loss, and the accuracy of classes or the fit of targets."""
from typing import NamedTuple

import numpy as np

from bioprop.training.loss import counted


class Average(NamedTuple):
  """Means over what counts: over examples, or over all positions of sequences that do.

  Attributes:
    loss: of the run.
    accuracy: share of right answers; None of targets.
    mse: mean square error of one output; None of classes.
    r2: share of the targets' variance that is explained, all outputs together: 1 - 2 loss /
      variance, 0 where all targets are equal; None of classes.
  """
  loss: float
  accuracy: float | None
  mse: float | None = None
  r2: float | None = None

  def named(self, split: str) -> dict[str, float]:
    """Returns what there is, by name: 'train_loss' and so on for the split 'train'."""
    return {f'{split}_{name}': value for name, value in self._asdict().items()
            if value is not None}


class Spread(NamedTuple):
  """Targets of a split: their number of outputs, and the sum of the outputs' variances."""
  outputs: int
  variance: float


def spread(labels: np.ndarray) -> Spread | None:
  """Returns the spread of targets float [..., outputs], None of labels, which are whole numbers."""
  if not np.issubdtype(labels.dtype, np.floating):
    return None
  there = labels[counted(labels)].astype(np.float64)
  return Spread(labels.shape[-1], float(there.var(axis=0).sum()) if len(there) else 0.0)


def average(loss: float, correct: int, number: int, targets: Spread | None) -> Average:
  """Returns what is reported.

  Args:
    loss: mean over what counts; of targets, half the squared distance.
    correct: how many answers are right.
    number: how many count.
    targets: of the split; None of classes.
  """
  if targets is None:
    return Average(loss, correct / number)
  explained = 1 - 2 * loss / targets.variance if targets.variance else 0.0
  return Average(loss, None, 2 * loss / targets.outputs, explained)
