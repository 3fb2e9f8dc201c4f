"""What a dataset is made of, and how a validation split is held out of train."""
from typing import NamedTuple

import numpy as np

from bioprop import errors


class Split(NamedTuple):
  """Some labelled examples.

  Attributes:
    images: uint8 [n, height, width, channels], raw pixel values; or uint8 [n, T], sequences:
      windows of character ids, or bits; or uint8 or float32 [n, T, channels], sequences of numbers.
    labels: int32 [n], class numbers from 0; or int32 [n, T], one at each position: the next
      character, which quantity is to be predicted, or a class, -1 where nothing is asked; or
      float32 [n, T, outputs], targets, NaN where nothing is asked.
  """
  images: np.ndarray
  labels: np.ndarray


class Source(NamedTuple):
  """A dataset as it was published, before anything is held out.

  Attributes:
    num_classes: labels are smaller than this; of targets, the number of outputs.
    train: the published training examples, in published order.
    test: the published test examples; nothing may be selected on them.
  """
  num_classes: int
  train: Split
  test: Split


def hold_out(name: str, train: Split, validation: int, seed: int) -> tuple[Split, Split]:
  """Moves randomly chosen examples from train to validation.

  The choice depends on `seed`, `validation` and the number of examples, and on nothing else; with
  the same seed a smaller validation split is contained in a larger one. Both parts keep the order
  of `train`.

  Args:
    name: the dataset's name, for the error.
    train: the published training examples.
    validation: how many examples to move, 0 <= validation < len(train.labels).
    seed: of the choice, 0 <= seed < 2**32.

  Returns:
    The remaining train split and the validation split, both copies.

  Raises:
    DataError: validation or seed is out of range.
  """
  total = len(train.labels)
  _check_number(name, validation, total)
  _check_seed(name, seed)
  # RandomState, not default_rng: numpy promises that its stream never changes, so a run of years
  # ago and a run of today hold out the same examples.
  order = np.random.RandomState(seed).permutation(total)
  held, kept = np.sort(order[:validation]), np.sort(order[validation:])
  return (Split(train.images[kept], train.labels[kept]),
          Split(train.images[held], train.labels[held]))


def choose(name: str, train: Split, examples: int, seed: int) -> Split:
  """Keeps randomly chosen training examples, in the order of `train`.

  With the same seed fewer examples are contained in more.

  Args:
    name: the dataset's name, for the error.
    train: the training examples.
    examples: how many to keep, 1 <= examples <= len(train.labels).
    seed: of the choice, 0 <= seed < 2**32.

  Raises:
    DataError: examples or seed is out of range.
  """
  total = len(train.labels)
  if not 1 <= examples <= total:
    raise errors.DataError(
        f'{examples} examples of {name!r} cannot be trained on: there are {total}, beside those '
        f'held out for validation. Give a number from 1 to {total}.')
  _check_seed(name, seed)
  kept = np.sort(np.random.RandomState(seed).permutation(total)[:examples])
  return Split(train.images[kept], train.labels[kept])


def hold_out_last(name: str, train: Split, validation: int) -> tuple[Split, Split]:
  """Moves the last examples from train to validation.

  For windows of one text, whose neighbours are too alike for a random choice: it would validate on
  half a sentence and train on the other half.

  Args:
    name: the dataset's name, for the error.
    train: the training examples, in the order of the text.
    validation: how many examples to move, 0 <= validation < len(train.labels).

  Returns:
    The remaining train split and the validation split.

  Raises:
    DataError: validation is out of range.
  """
  total = len(train.labels)
  _check_number(name, validation, total)
  kept = total - validation
  return Split(*(a[:kept] for a in train)), Split(*(a[kept:] for a in train))


def _check_seed(name: str, seed: int) -> None:
  """Raises DataError unless numpy takes the seed."""
  if not 0 <= seed < 2**32:
    raise errors.DataError(
        f'Examples of {name!r} cannot be chosen with seed {seed}: numpy takes seeds from 0 to '
        f'{2**32 - 1}. Give one of these, for example seed=0.')


def _check_number(name: str, validation: int, total: int) -> None:
  """Raises DataError unless so many examples can be held out of `total`."""
  if not 0 <= validation < total:
    raise errors.DataError(
        f'{validation} validation examples cannot be held out of the {total} train examples of '
        f'{name!r}: the number must be at least 0, and at least one example must stay in train. '
        f'Give a number from 0 to {total - 1}, for example validation={total // 10}.')
