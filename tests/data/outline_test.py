"""What is known of data without their files: shapes and classes, as `load` gives them."""
import numpy as np
import pytest

from bioprop import data, errors
from bioprop.data import cache, tfds_source


def _kinds(part):
  return [(leaf.shape[1:], leaf.dtype) for leaf in part]


@pytest.mark.parametrize('name', ['digits', 'digits_rows', 'characters', 'add', 'sine', 'copy'])
def test_embedded(name):
  """As what `load` gives, of one example."""
  outline, whole = data.outline(name), data.load(name, validation=10)
  assert len(outline.train.labels) == 1 and _kinds(outline.train) == _kinds(whole.train)
  for field in ('name', 'num_classes', 'is_sequence', 'is_text', 'has_targets'):
    assert getattr(outline, field) == getattr(whole, field)
  assert (outline.values is None) == (whole.values is None)
  assert (outline.mean is None) == (whole.mean is None)


def test_prepared_files_are_not_read(toy, monkeypatch):
  """Nor kept."""
  data_dir = toy()
  monkeypatch.setattr(tfds_source, '_decode', None)
  monkeypatch.setattr(cache, 'write', None)
  for name, shape in (('toy', (2, 3, 1)), ('toy_rows', (2, 3))):
    outline = data.outline(name, data_dir)
    assert outline.train.images.shape == (1, *shape) and outline.num_classes == 3
    assert outline.train.images.dtype == np.uint8


@pytest.mark.parametrize('name, shape, classes', [
    ('mnist', (28, 28, 1), 10), ('cifar100', (32, 32, 3), 100),
    ('emnist/letters', (28, 28, 1), 37)])
def test_what_is_not_there(tmp_path, name, shape, classes):
  """The shapes that these are published in; nothing is written."""
  outline = data.outline(name, str(tmp_path / 'data'))
  assert outline.train.images.shape == (1, *shape) and outline.num_classes == classes
  assert outline.mean.shape == (shape[-1],) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, words', [
    ('mnits', "Did you mean 'mnist'"), ('ag_news_subset', 'not an image classification'),
    ('imagenet2012', 'one size'), ('add_rows', 'rows are those of images'), (3, 'is a string')])
def test_what_cannot_be_known(tmp_path, name, words):
  with pytest.raises(errors.DataError, match=words):
    data.outline(name, str(tmp_path))
