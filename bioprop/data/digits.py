"""The embedded dataset: 1797 handwritten digits of 8x8 pixels that come with scikit-learn."""
import numpy as np

from bioprop.data.split import Source, Split

_TEST_EXAMPLES = 360


def read() -> Source:
  """Reads `digits`; no download, no files.

  scikit-learn publishes no test split, so we fix one: 360 images, each class in its proportion.

  Returns:
    1437 train and 360 test images, uint8 [n, 8, 8, 1] with values from 0 to 16.
  """
  # Here and not above: scikit-learn takes a second to import, which other datasets need not pay.
  from sklearn import datasets, model_selection

  images, labels = datasets.load_digits(return_X_y=True)
  images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = labels.astype(np.int32)
  # The seed is not the caller's: the test split is the same in every run of everyone.
  train, test = model_selection.train_test_split(
      np.arange(len(labels)), test_size=_TEST_EXAMPLES, stratify=labels, random_state=0)
  train, test = np.sort(train), np.sort(test)
  return Source(10, Split(images[train], labels[train]), Split(images[test], labels[test]))
