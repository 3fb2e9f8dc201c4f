"""What environment.json says: costs by closed forms, versions as the libraries have them."""
import json
import subprocess

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bioprop.errors import WorkdirError
from bioprop.training import base, cost, provenance, workdir
from bioprop.training.trainer import Trainer

BATCH, WIDTHS = 50, (64, 300, 200, 10)  # Of the digits, through two hidden layers.
# All but products (biases, nonlinearities, the loss) is of order width: far less than this share.
TOLERANCE = 0.03


def make_trainer(rule):
  config = base()
  config.update(rule=rule, validation=0, batch_size=BATCH)
  config.model_options.hidden = WIDTHS[1:-1]
  return Trainer(config)


def product(rows, inner, columns):
  """A multiplication and an addition for each of the terms."""
  return 2 * rows * inner * columns


FORWARD = sum(product(BATCH, *pair) for pair in zip(WIDTHS, WIDTHS[1:]))
# The kernels' gradients cost what the forward pass does; and the error goes back through all
# layers but the first, or by direct feedback from the output to each of them.
BACK = {'bp': FORWARD - product(BATCH, *WIDTHS[:2]), 'fa': FORWARD - product(BATCH, *WIDTHS[:2]),
        'dfa': sum(product(BATCH, WIDTHS[-1], width) for width in WIDTHS[1:-1])}


@pytest.mark.slow
@pytest.mark.parametrize('rule', BACK)
def test_flops_of_a_step(rule):
  trainer = make_trainer(rule)
  forward, backward = provenance.step_flops(trainer, trainer.init())
  np.testing.assert_allclose(forward, FORWARD, rtol=TOLERANCE)
  np.testing.assert_allclose(backward, FORWARD + BACK[rule], rtol=TOLERANCE)
  assert forward > FORWARD and backward > FORWARD + BACK[rule]  # As there is more.


def test_every_round_of_a_loop_counts():
  """Loops in loops and in jit too, where XLA alone would count each body once."""
  w, x = jnp.zeros((20, 20)), jnp.zeros((10, 20))

  def rounds(body, x, length):
    return jax.lax.scan(lambda carry, _: (body(carry), None), x, length=length)[0]

  one = lambda x: x @ w
  for function, count in ((one, 1), (lambda x: rounds(one, x, 7), 7),
                          (lambda x: rounds(lambda x: rounds(one, x, 3) @ w, x, 5), 20),
                          (jax.jit(lambda x: rounds(one, one(x), 4)), 5)):
    found = cost.flops(function, x)
    np.testing.assert_allclose(found, count * product(10, 20, 20), rtol=0.01)


def test_a_loop_of_unknown_length_is_not_counted():
  found = cost.flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 5, lambda x: x @ x + 1, x),
                     jnp.zeros((4, 4)))
  assert found is None


def test_the_record(tmp_path):
  """Of what runs here; and a run's directory that holds it is still this run's."""
  trainer = make_trainer('fa')
  config = base()
  with workdir.opened(tmp_path, config):
    provenance.record(tmp_path, trainer, trainer.init())
  with workdir.opened(tmp_path, config):
    found = provenance.read(tmp_path)
  assert not list(tmp_path.glob('*.new'))
  assert found == json.loads((tmp_path / 'environment.json').read_text())
  assert {name: found['versions'][name] for name in ('jax', 'flax', 'optax', 'numpy')} == {
      'jax': jax.__version__, 'flax': flax.__version__, 'optax': optax.__version__,
      'numpy': np.__version__}
  device = jax.devices()[0]
  assert found['device'] == {'platform': device.platform, 'kind': device.device_kind,
                             'count': len(jax.devices())}
  assert found['parameters'] == sum((a + 1) * b for a, b in zip(WIDTHS, WIDTHS[1:]))
  assert found['batch_size'] == BATCH and found['steps_per_epoch'] == trainer.steps
  assert found['host']['cpu'] and found['host']['cores'] >= 1
  assert found['started'].endswith('+00:00')


def test_the_revision_of_a_clone(tmp_path):
  """Clean, changed, and where there is no clone or one without a commit."""
  git = lambda *words: subprocess.run(
      ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', *words], check=True,
      capture_output=True, text=True).stdout.strip()
  assert provenance._revision(tmp_path) is None
  git('init')
  assert provenance._revision(tmp_path) is None
  (tmp_path / 'file').write_text('one')
  git('add', 'file')
  git('commit', '-m', 'one')
  head = git('rev-parse', 'HEAD')
  (tmp_path / 'untracked').write_text('more')
  assert provenance._revision(tmp_path) == {'revision': head, 'dirty': False}
  (tmp_path / 'file').write_text('two')
  assert provenance._revision(tmp_path) == {'revision': head, 'dirty': True}


def test_what_cannot_be_read_or_written(tmp_path):
  assert provenance.read(tmp_path) is None
  trainer = make_trainer('bp')
  with pytest.raises(WorkdirError, match='cannot write .*no/environment.json.*No such file'):
    provenance.record(tmp_path / 'no', trainer, trainer.init())
  for text in ('{"vers', '[1]', '[' * 100_000):
    (tmp_path / 'environment.json').write_text(text)
    with pytest.raises(WorkdirError, match='environment.json is damaged'):
      provenance.read(tmp_path)


def test_a_directory_of_that_name_is_refused_before_training(tmp_path):
  (tmp_path / 'environment.json').mkdir()
  (tmp_path / 'config.json').write_text(json.dumps(workdir.as_json(base())))
  with pytest.raises(WorkdirError, match='environment.json is a directory'):
    with workdir.opened(tmp_path, base()):
      pass
