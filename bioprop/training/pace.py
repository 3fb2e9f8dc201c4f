"""Which epochs get a checkpoint: all that stay, and of the others as many as cost little time."""
import time

import ml_collections

_SHARE = 0.1  # Of the time, what writing checkpoints that do not stay may take.


class Pace:
  """When to save runs that are trained together.

  A run keeps its last config.keep checkpoints, which are always written. Those before are dropped
  again, and are written only for a run that is killed: of these the first is always written, so
  that a disk that takes none shows at once, and then as many as their share of the time allows.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self._epochs, self._every, self._keep = config.epochs, config.checkpoint_every, config.keep
    self._next = 0.0  # time.monotonic() from which on another may be written.

  def is_due(self, epoch: int) -> bool:
    """Whether the state after an epoch is to be saved."""
    if epoch == self._epochs:
      return True
    if epoch % self._every:
      return False
    after = -(-self._epochs // self._every) - epoch // self._every
    return after < self._keep or time.monotonic() >= self._next

  def saved(self, seconds: float) -> None:
    """All runs were saved, which took so long."""
    self._next = time.monotonic() + seconds * (1 / _SHARE - 1)
