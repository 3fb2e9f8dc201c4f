"""Probes of a run: when and on what they measure, what they leave, and that they change nothing."""
import json
import os
import pathlib
import struct
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import bioprop
from bioprop import data
from bioprop.errors import WorkdirError
from bioprop.models import MLP, MODELS
from bioprop.probes import TYPES
from bioprop.training import base, metrics, probing, run
from bioprop.training.checkpoint import Checkpoints
from bioprop.training.trainer import Trainer

TIMES = ('seconds', 'steps_per_second')
GOOD = {'type': 'entk', 'every': 3, 'batch': 20}
# Of two epochs of seven steps.
PROBES = {'kernel': {**GOOD, 'block': 10}, 'weights': {**GOOD, 'type': 'alignment', 'every': 6}}
STEPS = {'kernel': [0, 3, 6, 7, 10, 13, 14], 'weights': [0, 6, 7, 13, 14]}


def make_config(probes=PROBES, **values):
  """Digits, a small MLP, feedback alignment, two epochs of seven steps."""
  config = base()
  config.model_options.hidden = (16,)
  config.update(validation=0, epochs=2, batch_size=200, learning_rate=0.1, **values)
  for name, options in probes.items():
    config.probes[name] = options
  return config


@pytest.fixture(scope='module', autouse=True)
def _quick():
  """What runs share is compiled once."""
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  yield
  jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


@pytest.fixture(scope='module', autouse=True)
def _broken():
  """Alignment finds one thing more for the network: something without a value."""
  plain = TYPES['alignment']
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(TYPES, 'alignment',
                  lambda point: {**plain(point), 'broken': jnp.asarray(jnp.nan)})
    yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The directory of a run with all probes, and its results."""
  path = tmp_path_factory.mktemp('run') / 'whole'
  return path, run(make_config(), path, progress=False)


def _files(path):
  """What the probes wrote, byte for byte."""
  return {str(file.relative_to(path)): file.read_bytes()
          for file in (path / 'probes').rglob('*') if file.is_file()}


def _records(path):
  return [{name: value for name, value in record.items() if name not in TIMES}
          for record in metrics.read(path)]


def _trained(records):
  """Without what probes found."""
  return [{name: value for name, value in record.items() if '/' not in name}
          for record in records]


def _same_bits(a, b):
  leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
  assert len(leaves) == len(others)
  for leaf, other in zip(leaves, others):
    np.testing.assert_array_equal(leaf, other)


@pytest.mark.slow
def test_at_the_first_step_of_each_epoch_at_every_nth_after_it_and_at_the_end(whole):
  """And at no other; a file for each."""
  assert set(_files(whole[0])) == {
      f'probes/{name}/{step:08d}.npz' for name, steps in STEPS.items() for step in steps}
  for name, steps in STEPS.items():
    assert [found['step'] for found in probing.read(whole[0], name)] == steps


def test_files_hold_the_step_the_labels_and_what_the_type_gives(whole):
  """As many of each class, in their order; the same examples at all times."""
  names = [f'Dense_{layer}/{name}' for layer in range(2) for name in ('kernel', 'bias')]
  entk = {'kernel', 'target_alignment', 'effective_rank', *(f'share/{name}' for name in names)}
  for found in probing.read(whole[0], 'kernel'):
    assert set(found) == {'step', 'labels', *entk}
    np.testing.assert_array_equal(found['labels'], np.repeat(np.arange(10), 2))
    assert found['kernel'].shape == (20, 20) and found['step'].shape == ()
    assert all(found[name].shape == () for name in entk - {'kernel'})
  for found in probing.read(whole[0], 'weights'):
    assert set(found) == {'step', 'labels', 'cosine/Dense_1/kernel', 'broken'}


def test_what_is_measured_is_the_state_on_these_examples(whole):
  """Kernels before training, after an epoch and at the end: naive Jacobians of the run's states."""
  path, results = whole
  config = make_config()
  trainer = Trainer(config)
  assert trainer.probes[0].probe._loss is trainer.task.loss
  assert [one.probe._block for one in trainer.probes] == [10, None]
  first = trainer.init()
  after = Checkpoints(path / 'checkpoints', config.keep).restore(1, first)
  train = data.load('digits', validation=0).train
  chosen = probing.balanced(train.labels, 20, config.seed, 'kernel')
  x = train.images[chosen].astype(np.float64).reshape(20, -1)
  mean, std = (float(value[0]) for value in (trainer.task.mean, trainer.task.std))
  x = jnp.asarray((x - mean) / std, jnp.float32)
  model = MLP(classes=10, hidden=(16,))

  @jax.jit
  def rows(state):

    def one(x):
      outputs = lambda model, rest: lambda p: model.apply({'params': p, **rest}, x[None])[0]
      return [jax.jacrev(f)(state.params) for f in (
          outputs(model, {}), outputs(bioprop.plug(model, 'fa'), state.model_state))]

    return jax.vmap(one)(x)

  kernels = {found['step'].item(): found for found in probing.read(path, 'kernel')}
  weights = {found['step'].item(): found for found in probing.read(path, 'weights')}
  for step, state in ((0, first), (7, after), (14, results.state)):
    true, ruled = (np.concatenate([np.asarray(leaf).reshape(20, 10, -1)
                                   for leaf in jax.tree.leaves(tree)], 2) for tree in rows(state))
    want = np.einsum('ncp,mcp->nm', true, ruled) / 10
    np.testing.assert_allclose(kernels[step]['kernel'], want, rtol=1e-3,
                               atol=1e-4 * np.abs(want).max())
    w, b = (np.asarray(tree['Dense_1']['kernel']).ravel()
            for tree in (state.params, state.model_state['feedback']))
    np.testing.assert_allclose(weights[step]['cosine/Dense_1/kernel'],
                               w @ b / np.sqrt((w @ w) * (b @ b)), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(kernels[0]['labels'], train.labels[chosen])


def test_lines_of_epochs_hold_the_last_scalars_of_the_network(whole):
  """Of each epoch, at the end those after the last step; those of layers, and NaN, are left out."""
  one, two, final = _records(whole[0])
  found = {step: found for step, found in zip(
      STEPS['kernel'], probing.read(whole[0], 'kernel'), strict=True)}
  for record, step in ((one, 6), (two, 14)):
    assert {name: value for name, value in record.items() if '/' in name} == {
        'kernel/target_alignment': float(found[step]['target_alignment']),
        'kernel/effective_rank': float(found[step]['effective_rank'])}
  assert not [name for name in final if '/' in name]
  assert np.isnan(probing.read(whole[0], 'weights')[0]['broken'])
  assert 'NaN' not in (whole[0] / 'metrics.jsonl').read_text()


def _events(path):
  """All scalars of the events, by tag, as {step: value}."""
  scalars = {}
  for file in path.glob('events.out.tfevents.*'):
    content, at = file.read_bytes(), 0
    while at < len(content):  # Length, its checksum, an event, its checksum.
      (length,) = struct.unpack_from('<Q', content, at)
      event = event_pb2.Event.FromString(content[at + 12:at + 12 + length])
      at += length + 16
      for value in event.summary.value:
        scalars.setdefault(value.tag, {})[event.step] = value.simple_value
  return scalars


def test_tensorboard_has_all_scalars_at_their_steps(whole):
  """Those of layers too."""
  scalars = _events(whole[0])
  for name in STEPS:
    found = {one['step'].item(): one for one in probing.read(whole[0], name)}
    keys = [key for key, value in found[0].items() if value.ndim == 0 and key != 'step']
    assert keys
    for key in keys:
      # The line of an epoch is drawn too, after its last step. What is not finite is not drawn.
      want = {step: float(one[key]) for step, one in found.items() if np.isfinite(one[key])}
      drawn = scalars.get(f'{name}/{key}', {})
      assert {step: drawn[step] for step in want} == pytest.approx(want)
      assert not set(found) - set(want) & set(drawn)
  assert 'kernel/share/Dense_0/kernel' in scalars and 'train_loss' in scalars


def test_training_is_the_same_without(whole, tmp_path):
  """To the bit, although it is divided into other calls."""
  bare = run(make_config({}), tmp_path / 'run', progress=False)
  _same_bits(whole[1].state, bare.state)
  assert _trained(_records(whole[0])) == _records(tmp_path / 'run')
  assert not (tmp_path / 'run' / 'probes').exists()


@pytest.mark.slow
def test_steps_per_call_changes_nothing(whole, tmp_path, monkeypatch):
  """Two steps a call, and a probe at every third: calls end where it is due."""
  lengths, plain = [], Trainer.epoch

  def seen(self, state, number, tick, see):
    return plain(self, state, number, lambda steps: lengths.append(steps) or tick(steps), see)

  monkeypatch.setattr(Trainer, 'epoch', seen)
  results = run(make_config(steps_per_call=2), tmp_path / 'run', progress=False)
  assert [length for length in lengths if length] == [2, 1, 2, 1, 1] * 2
  _same_bits(whole[1].state, results.state)
  assert _files(tmp_path / 'run') == _files(whole[0])
  assert _records(tmp_path / 'run') == _records(whole[0])


@pytest.mark.slow
def test_a_run_that_is_interrupted_and_resumed_has_the_same_files(whole, tmp_path, monkeypatch):
  """Bit for bit; what was measured after the checkpoint is measured again."""
  path, plain = tmp_path / 'run', Trainer.epoch

  def interrupted(self, state, number, *args):
    out = plain(self, state, number, *args)
    if number == 2:
      raise KeyboardInterrupt
    return out

  monkeypatch.setattr(Trainer, 'epoch', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(make_config(), path, progress=False)
  monkeypatch.setattr(Trainer, 'epoch', plain)
  before = _files(path)
  expected = _files(whole[0])
  assert before == {name: content for name, content in expected.items() if '14.npz' not in name}
  for name in before:
    if int(pathlib.Path(name).stem) >= 7:  # As a kill might leave them, or another machine.
      (path / name).write_bytes(b'half')
      (path / f'{name}.new').write_bytes(b'half')
  results = run(make_config(), path, progress=False)
  _same_bits(whole[1].state, results.state)
  assert _files(path) == expected
  assert _records(path) == _records(whole[0])


def test_a_kill_while_a_file_is_written_leaves_none(tmp_path, monkeypatch):
  """Or the one that was there."""
  one = probing.Measured('kernel', 3, np.arange(2), {'kernel': np.eye(2), 'share/a': np.ones(())})
  probing.write(tmp_path, one)
  before = _files(tmp_path)

  def killed(file, **arrays):
    file.write(b'half')
    raise KeyboardInterrupt

  monkeypatch.setattr(np, 'savez', killed)
  for measured in (one._replace(step=5), one):
    with pytest.raises(KeyboardInterrupt):
      probing.write(tmp_path, measured)
  assert {name: content for name, content in _files(tmp_path).items()
          if name.endswith('.npz')} == before
  (found,) = probing.read(tmp_path, 'kernel')
  assert found.keys() == {'step', 'labels', 'kernel', 'share/a'} and found['step'] == 3
  np.testing.assert_array_equal(found['kernel'], np.eye(2))
  assert one.scalars == {'kernel/share/a': 1}


def test_reading_what_is_not_there_says_what_is(tmp_path):
  """No probes at all; another's name."""
  with pytest.raises(WorkdirError, match="of a probe 'kernel'; it has none"):
    probing.read(tmp_path, 'kernel')
  probing.write(tmp_path, probing.Measured('weights', 0, np.arange(2), {}))
  with pytest.raises(WorkdirError, match="of a probe 'kernel'; it has weights"):
    probing.read(tmp_path, 'kernel')


class Noisy(nn.Module):
  """BatchNorm and dropout, unless one says otherwise."""
  classes: int = 10

  @nn.compact
  def __call__(self, x, train=True):
    x = nn.Dense(4)(x.reshape((x.shape[0], -1)))
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.classes)(x)


def test_models_with_other_state_and_rules_that_draw(monkeypatch):
  """In evaluation mode; what is drawn at each call is drawn for the probe. When they are due."""
  monkeypatch.setitem(MODELS, 'noisy', Noisy)
  alone = {**GOOD, 'type': 'alignment'}
  config = make_config({'a': alone, 'b': {**alone, 'every': 4}}, model='noisy', rule='brsf')
  config.model_options.hidden = None
  trainer = Trainer(config)
  state = trainer.init().replace(step=jnp.asarray(29, jnp.int32))
  found = {at: list(probing.measure(trainer.probes, state, at)) for at in (0, 1, 4, 9, None)}
  assert {at: [one.name for one in measured] for at, measured in found.items()} == {
      0: ['a', 'b'], 1: [], 4: ['b'], 9: ['a'], None: ['a', 'b']}
  # Signs of W and magnitudes of normal numbers: a cosine of E|w|^2 / E w^2 = 2 / pi, about.
  for one in found[0]:
    assert one.step == 29 and 0.4 < one.found['cosine/Dense_1/kernel'] < 0.9


MESH = '''
import pathlib, sys
import jax
from bioprop.training import base, run

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
for mesh in (None, 'data=2,fsdp=2'):
  config = base()
  config.model_options.hidden = ()
  config.update(mesh=mesh, rule='bp', validation=0, epochs=1, batch_size=200, learning_rate=0.1)
  config.probes.layers = dict(type='features', every=5, batch=10)
  run(config, pathlib.Path(sys.argv[1]) / str(mesh), progress=False)
'''


@pytest.mark.slow
def test_over_several_devices_they_find_the_same(tmp_path):
  """Two by two: batches are divided, and parameters."""
  flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', MESH, str(tmp_path)], env=os.environ | flags,
                        capture_output=True, text=True, timeout=600, check=False)
  assert done.returncode == 0, done.stderr
  want = probing.read(tmp_path / 'None', 'layers')
  assert [found['step'] for found in want] == [0, 5, 7]
  mesh = 'data=2,fsdp=2'
  assert json.loads((tmp_path / mesh / 'config.json').read_text())['mesh'] == mesh
  for found, one in zip(probing.read(tmp_path / mesh, 'layers'), want, strict=True):
    assert found.keys() == one.keys() >= {'g/Dense_0/kernel', 'phi/Dense_0/kernel'}
    for key, value in one.items():
      np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
