"""configs/add_rnn.py: a recurrent network on the Add task, from the file to the final numbers."""
import json
import pathlib
import runpy

import flax.traverse_util
import jax
import numpy as np
import pytest

from bioprop import data
from bioprop.errors import ConfigError
from bioprop.training import run
from bioprop.training.trainer import Trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def config():
  """Of width 8, for two epochs."""
  config = runpy.run_path(str(ROOT / 'configs' / 'add_rnn.py'))['get_config']('8')
  config.epochs = 2
  return config


def _outputs(params, x):
  """The network in NTK parametrisation, in numpy; [n, T]."""
  flat = {path[-2:]: np.asarray(w, np.float64)
          for path, w in flax.traverse_util.flatten_dict(params).items()}
  into, recurrent, out = (flat[name, 'kernel'] / len(flat[name, 'kernel'])**0.5
                          for name in ('input', 'recurrent', 'Dense_0'))
  state, outputs = np.zeros((len(x), len(recurrent))), []
  for t in range(x.shape[1]):
    driven = x[:, t:t + 1].astype(np.float64) @ into + flat['input', 'bias']
    state = np.maximum(driven + state @ recurrent, 0)
    outputs.append((state @ out + flat['Dense_0', 'bias'])[:, 0])
  return np.stack(outputs, 1)


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['bp', 'align_ada'])
def test_it_trains(config, tmp_path, rule):
  """The numbers of the test are those of the state, by numpy: half squares, nearest sums."""
  config.rule = rule
  results = run(config, tmp_path / 'run', progress=False)
  assert np.isfinite(results.test_loss) and 0 <= results.test_accuracy <= 1
  shapes = {w.shape for w in jax.tree.leaves(results.state.params)}
  assert shapes == {(1, 8), (8,), (8, 8), (8, 1), (1,)}
  assert int(results.state.step) == 2 * 300 // 50
  losses = [json.loads(line).get('train_loss')
            for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert losses[1] < losses[0]
  test = data.load('add', validation=0).test
  outputs, wanted = _outputs(results.state.params, test.images), (0.25, 0.5, 0.75, 1.0)
  errors = outputs - np.take(wanted, test.labels)
  assert results.test_loss == pytest.approx((errors**2).mean() / 2, rel=1e-3)
  nearest = np.abs(outputs[..., None] - np.array(wanted)).argmin(-1)
  assert results.test_accuracy == pytest.approx((nearest == test.labels).mean(), abs=2e-3)


@pytest.mark.parametrize('values, words', [
    ({'loss': 'cross_entropy'}, "'cross_entropy'.*quantities.*--config.loss=mse"),
    ({'loss': 'mse_centred'}, "'mse_centred'.*quantities"),
    ({'augment': 'shift_flip'}, '--config.augment=none')])
def test_what_does_not_fit_sums_is_refused(config, values, words):
  """Before anything is trained."""
  config.update(values)
  with pytest.raises(ConfigError, match=words):
    Trainer(config)
