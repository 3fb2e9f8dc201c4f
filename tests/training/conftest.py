"""A run of a second."""
import pytest

from bioprop.training import base


@pytest.fixture
def config():
  """Digits, a small MLP, feedback alignment, three epochs of six steps."""
  config = base()
  config.model_options.hidden = (16,)
  config.validation = 100
  config.epochs = 3
  config.batch_size = 200
  config.eval_batch_size = 64
  config.learning_rate = 0.1
  return config
