"""`load`: from a name to train, validation and test arrays, with the pixel statistics of train."""
import dataclasses
from collections.abc import Callable

import numpy as np

from bioprop import errors
from bioprop.data import add, characters, digits, neurogym_source, split, tfds_source
from bioprop.data.tasks import TASKS

_ROWS = '_rows'


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Images with classes, a text with its next characters, or sequences with labels, split.

  Attributes:
    name: as it was given to `load`.
    num_classes: labels are smaller than this; of targets, the number of outputs.
    train: what is left of the published train split.
    validation: held out of the published train split; for every choice that a run makes.
    test: the published test split; for the number that is reported, and for no choice.
    mean: float32 [channels], of the train images in raw pixel units, [1] for images by rows; None
      for a text and for numbers.
    std: as `mean`, the standard deviation, 1 for a constant channel.
    values: float32 [num_classes], the quantity that each label stands for; None where labels are
      classes.
  """
  name: str
  num_classes: int
  train: split.Split
  validation: split.Split
  test: split.Split
  mean: np.ndarray | None
  std: np.ndarray | None
  values: np.ndarray | None = None

  @property
  def is_sequence(self) -> bool:
    """Whether an example has a label at each of its positions."""
    return self.train.labels.ndim > 1

  @property
  def is_text(self) -> bool:
    """Whether inputs are characters."""
    return self.train.images.ndim == 2 and self.values is None

  @property
  def has_targets(self) -> bool:
    """Whether labels are numbers that the outputs are to be, and no classes."""
    return np.issubdtype(self.train.labels.dtype, np.floating)


def load(name: str, data_dir: str | None = None, validation: int = 5000,
         seed: int = 0) -> Dataset:
  """Loads a dataset: images to classify, or a text whose next characters are to be predicted.

  `digits` (8x8 images, pixel values 0 to 16) and `characters` (a novel, in windows of 64
  characters) are embedded and ignore `data_dir`, as does `add` (sequences of 100 bits, and at each
  position a sum of earlier bits to predict) and the tasks of recurrent networks `copy`,
  `cue_accumulation`, `delayed_match`, `flip_flop`, `linear_teacher` and `sine` (each in a file of
  bioprop/data/tasks). `neurogym:<name>`, for instance `neurogym:PerceptualDecisionMaking-v0`, is a
  task of the package neurogym.

  Any other name is an image classification of TFDS (`mnist`, `cifar10`, `kmnist`,
  `emnist/balanced`, ...): its prepared files are decoded on first use and read from a cache
  afterwards (`$BIOPROP_CACHE`, else `$XDG_CACHE_HOME/bioprop`, else `~/.cache/bioprop`). Files that
  are not there yet are downloaded and prepared where TensorFlow is installed. `<name>_rows`, for
  instance `mnist_rows` and `digits_rows`, is such images row by row: their class is asked for after
  the last row.

  Args:
    name: the dataset, with its config after a slash where it has several.
    data_dir: folder that holds `<name>/<version>/`; None is `$TFDS_DATA_DIR`, else
      `~/tensorflow_datasets`.
    validation: how many examples to move from train to validation, at least 0 and less than the
      train split has.
    seed: of the choice of validation examples, 0 <= seed < 2**32; nothing else depends on it. A
      text is held out from its end, whatever the seed.

  Returns:
    The dataset: images uint8 [n, height, width, channels], labels int32 [n]; or sequences uint8
    [n, T] (characters, bits) or float32 [n, T, channels] (uint8: rows of pixels), labels int32
    [n, T] or targets float32 [n, T, outputs].

  Raises:
    DataError: no dataset has this name, or it is not prepared and cannot be, or it has no integer
      classes or no fixed image size, or `validation` or `seed` is out of range, or neurogym is
      not installed or has no such task.
    CacheError: the cache of decoded images is damaged.
  """
  if not isinstance(name, str):
    raise errors.DataError(
        f'The name of a dataset is a string, and this is {name!r}. Type for instance '
        f'data.load(\'digits\') or data.load(\'mnist\', data_dir=<folder>).')
  if name == 'characters':
    source = characters.read()
    train, held = split.hold_out_last(name, source.train, validation)
    return Dataset(name, source.num_classes, train, held, source.test, None, None)
  if name == 'add':
    source = add.read()
    train, held = split.hold_out(name, source.train, validation, seed)
    return Dataset(name, source.num_classes, train, held, source.test, None, None, add.VALUES)
  source = _read(name, data_dir, tfds_source.read)
  train, held = split.hold_out(name, source.train, validation, seed)
  return Dataset(name, source.num_classes, train, held, source.test, *_statistics(train.images))


def outline(name: str, data_dir: str | None = None) -> Dataset:
  """What `load` gives, of one example, which may be a black image: for shapes and classes.

  It needs no prepared files: of images that are not there it says what TFDS knows of them.

  Args:
    name: as of `load`.
    data_dir: as of `load`.

  Raises:
    DataError: no dataset has this name, or it is not an image classification.
  """
  if name in ('characters', 'add') or not isinstance(name, str):
    whole = load(name, validation=0)
    one = split.Split(*(leaf[:1] for leaf in whole.train))
    return dataclasses.replace(whole, train=one, validation=one, test=one)
  source = _read(name, data_dir, tfds_source.outline)
  one = split.Split(*(leaf[:1] for leaf in source.train))
  return Dataset(name, source.num_classes, one, one, one, *_statistics(one.images))


def choose(dataset: Dataset, examples: int, seed: int) -> Dataset:
  """Returns the dataset with fewer training examples, chosen by `seed`, and their statistics.

  Args:
    dataset: as from `load`.
    examples: how many training examples to keep, at least 1 and at most all.
    seed: of the choice, 0 <= seed < 2**32; with the same seed fewer are contained in more.

  Raises:
    DataError: `examples` or `seed` is out of range.
  """
  train = split.choose(dataset.name, dataset.train, examples, seed)
  mean, std = (None, None) if dataset.mean is None else _statistics(train.images)
  return dataclasses.replace(dataset, train=train, mean=mean, std=std)


def _read(name: str, data_dir: str | None,
          images: Callable[[str, str | None], split.Source]) -> split.Source:
  """All that there is but the text and `add`; `images` reads those of TFDS."""
  if name.startswith(neurogym_source.PREFIX):
    return neurogym_source.read(name.removeprefix(neurogym_source.PREFIX))
  if name in TASKS:
    return TASKS[name]()
  if name.endswith(_ROWS):
    of = name.removesuffix(_ROWS)
    whole = None if of in ('characters', 'add') else _read(of, data_dir, images)
    if whole is None or whole.train.images.ndim != 4:
      raise errors.DataError(f'{name!r} cannot be made: rows are those of images, and {of!r} has '
                             "none. Type for instance data.load('digits_rows').")
    return split.Source(whole.num_classes, _by_rows(whole.train), _by_rows(whole.test))
  return digits.read() if name == 'digits' else images(name, data_dir)


def _by_rows(images: split.Split) -> split.Split:
  """Images [n, height, width, channels] as sequences [n, height, width * channels]."""
  rows = images.images.reshape(*images.images.shape[:2], -1)
  labels = np.full(rows.shape[:2], -1, np.int32)
  labels[:, -1] = images.labels
  return split.Split(rows, labels)


def _statistics(inputs: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Mean and standard deviation of pixels, of each channel, or [1] of rows; None of numbers."""
  if inputs.dtype != np.uint8:
    return None, None
  # Of all pixels of rows together: a column at the border is nearly constant.
  return _pixel_statistics(inputs if inputs.ndim == 4 else inputs[..., None])


def _pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, float32 [channels]."""
  channels = images.shape[-1]
  # Exact, from the counts of the 256 values: a float copy of CIFAR-10 would take 1.2 GB. Batches of
  # 256 images, because bincount widens what it is given to 8 bytes a pixel.
  counts = np.zeros((channels, 256))
  for start in range(0, len(images), 256):
    for channel in range(channels):
      pixels = images[start:start + 256, ..., channel].ravel()
      counts[channel] += np.bincount(pixels, minlength=256)
  shares, values = counts / counts.sum(1, keepdims=True), np.arange(256.)
  mean = shares @ values
  std = np.sqrt(np.sum(shares * (values - mean[:, None])**2, axis=1))
  # A channel that is the same everywhere must not become 0/0 in (x - mean) / std.
  return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
