"""What a run gives back."""
import dataclasses
import pathlib

from bioprop.training.state import State


@dataclasses.dataclass(frozen=True)
class Results:
  """The final numbers of a run, its state, and where it lies.

  Attributes:
    rule: name of the learning rule.
    epochs: epochs trained.
    train_loss, train_accuracy: means over the last epoch, taken while training.
    validation_loss, validation_accuracy: after the last epoch; None without a validation split.
    test_loss, test_accuracy: of the last state, the one time that it saw the test split.
    seconds: of all epochs, those before an interruption included.
    state: after the last step.
    workdir: the run's directory.
  """
  rule: str
  epochs: int
  train_loss: float
  train_accuracy: float
  validation_loss: float | None
  validation_accuracy: float | None
  test_loss: float
  test_accuracy: float
  seconds: float
  state: State = dataclasses.field(repr=False)
  workdir: pathlib.Path

  def table(self) -> str:
    """Returns the numbers as a table of two lines."""
    percent = lambda share: '-' if share is None else f'{100 * share:.2f} %'
    row = {
        'rule': self.rule,
        'epochs': str(self.epochs),
        'train loss': f'{self.train_loss:.4f}',
        'test loss': f'{self.test_loss:.4f}',
        'validation accuracy': percent(self.validation_accuracy),
        'test accuracy': percent(self.test_accuracy),
        'test error': percent(1 - self.test_accuracy),
        'time': f'{self.seconds:.1f} s',
    }
    widths = [max(len(name), len(value)) for name, value in row.items()]
    lines = [row.keys(), row.values()]
    return '\n'.join('  '.join(word.rjust(width) for word, width in zip(line, widths))
                     for line in lines)
