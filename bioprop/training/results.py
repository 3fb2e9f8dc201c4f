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
    train_r2, validation_r2, test_r2: shares of the targets' variance that are explained, where the
      labels are targets: accuracies are None then, and these where they are not.
    test_mse: mean square error of one output, where the labels are targets.
    seconds: of all epochs, those before an interruption included.
    state: after the last step.
    workdir: the run's directory.
  """
  rule: str
  epochs: int
  train_loss: float
  train_accuracy: float | None
  validation_loss: float | None
  validation_accuracy: float | None
  test_loss: float
  test_accuracy: float | None
  seconds: float
  state: State = dataclasses.field(repr=False)
  workdir: pathlib.Path
  train_r2: float | None = None
  validation_r2: float | None = None
  test_r2: float | None = None
  test_mse: float | None = None

  def table(self) -> str:
    """Returns the numbers as a table of two lines."""
    row = {
        'rule': self.rule,
        'epochs': str(self.epochs),
        'train loss': f'{self.train_loss:.4f}',
        'test loss': f'{self.test_loss:.4f}',
        **(self._accuracies() if self.test_r2 is None else self._fits()),
        'time': f'{self.seconds:.1f} s',
    }
    widths = [max(len(name), len(value)) for name, value in row.items()]
    lines = [row.keys(), row.values()]
    return '\n'.join('  '.join(word.rjust(width) for word, width in zip(line, widths))
                     for line in lines)

  def _accuracies(self):
    percent = lambda share: '-' if share is None else f'{100 * share:.2f} %'
    return {'validation accuracy': percent(self.validation_accuracy),
            'test accuracy': percent(self.test_accuracy),
            'test error': percent(1 - self.test_accuracy)}

  def _fits(self):
    number = lambda share: '-' if share is None else f'{share:.4f}'
    return {'validation R^2': number(self.validation_r2), 'test R^2': number(self.test_r2),
            'test MSE': f'{self.test_mse:.3g}'}
