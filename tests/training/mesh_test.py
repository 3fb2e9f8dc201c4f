"""Over many devices: the same numbers, in parts that are smaller; and meshes that cannot be."""
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from bioprop.errors import ConfigError
from bioprop.training import base, mesh, metrics, step
from bioprop.training.checkpoint import Checkpoints

PROGRAM = pathlib.Path(__file__).parent / 'many_devices.py'
RULES = ('fa', 'dfa', 'kp')
MESHES = ('data=8', 'data=2,fsdp=4')


def _train(path, devices):
  """A directory of runs, and notes on them."""
  flags = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, str(PROGRAM), str(path)], env=os.environ | flags,
                        capture_output=True, text=True, timeout=1500, check=False)
  assert done.returncode == 0, done.stderr
  return path, {'stderr': done.stderr, **json.loads((path / 'notes.json').read_text())}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Of three rules, over two meshes of eight devices."""
  return _train(tmp_path_factory.mktemp('runs'), 8)


def _leaves(run):
  """Every leaf of the last state, by path."""
  flat = {}

  def walk(node, path):
    for name, value in node.items():
      if isinstance(value, dict):
        walk(value, f'{path}/{name}')
      else:
        flat[f'{path}/{name}'] = value
  walk(Checkpoints(run / 'checkpoints', 2)._read(2), '')
  return flat


def _assert_close(run, other):
  """The same state and the same numbers but for the order of sums."""
  leaves, others = _leaves(run), _leaves(other)
  assert leaves.keys() == others.keys()
  for path, leaf in leaves.items():
    np.testing.assert_allclose(leaf, others[path], rtol=1e-4, atol=1e-5, err_msg=path)
  for record, expected in zip(metrics.read(run), metrics.read(other), strict=True):
    for name in record.keys() - {'seconds', 'steps_per_second'}:
      assert record[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.slow
def test_two_devices_train_to_the_numbers_of_one(tmp_path):
  """Each holds a half of what can be halved, and of the feedback what it holds of the kernel."""
  path, notes = _train(tmp_path, 2)
  _assert_close(path / 'fa-fsdp=2', path / 'fa-None')
  lies = notes['lies']['fa-fsdp=2']
  assert lies[".params['Dense_0']['kernel']"] == [[32, 24]] * 2
  assert lies[".model_state['feedback']['Dense_0']['kernel']"] == [[32, 24]] * 2
  assert notes['compiled'] == [1] * 2


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('rule', RULES)
def test_many_devices_train_to_the_numbers_of_one(runs, rule, mesh):
  # BatchNorm, dropout, augmentation, clipping, and batches of evaluation that do not divide.
  path, notes = runs
  assert notes['devices'] == 8
  _assert_close(path / f'{rule}-{mesh}', path / f'{rule}-None')


@pytest.mark.slow
def test_the_runs_compared_are_not_all_alike(runs):
  path, _ = runs
  with pytest.raises(AssertionError):
    _assert_close(path / 'fa-None', path / 'dfa-None')
  kernels = [_leaves(path / f'{rule}-None')['/params/Dense_0/kernel'] for rule in RULES]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3 < np.abs(kernels[0] - kernels[2]).max()


@pytest.mark.slow
@pytest.mark.parametrize('rule,feedback', [
    ('fa', ".model_state['feedback']['Dense_0']['kernel']"),
    ('kp', ".params['Dense_0']['feedback_kernel']"),
    ('dfa', ".model_state['feedback']['Dense_1']['error']")])
def test_each_device_holds_a_part_and_feedback_lies_as_its_kernel_does(runs, rule, feedback):
  _, notes = runs
  lies = notes['lies'][f'{rule}-data=2,fsdp=4']
  kernel = lies[".params['Dense_0']['kernel']"]
  assert kernel == [[16, 24]] * 8  # Of [64, 24].
  assert lies[".opt_state[1].trace['Dense_0']['kernel']"] == kernel
  assert lies[".params['Dense_0']['bias']"] == [[6]] * 8
  assert lies[".params['Dense_1']['bias']"] == [[10]] * 8  # Four devices cannot share 10.
  assert lies[feedback] == ([[10, 6]] * 8 if rule == 'dfa' else kernel)  # dfa: of [10, 24].
  assert notes['lies'][f'{rule}-data=8'][".params['Dense_0']['kernel']"] == [[64, 24]] * 8
  assert notes['lies'][f'{rule}-None'][".params['Dense_0']['kernel']"] == [[64, 24]]


@pytest.mark.slow
def test_each_device_computes_an_eighth_of_the_batch(runs):
  products = re.findall(r'= f32\[(\d+),\d+\]\S* dot\(', runs[1]['made_of'])
  assert '25' in products and '200' not in products


@pytest.mark.slow
def test_nothing_is_moved_between_devices_because_of_how_it_was_divided(runs):
  assert 'Involuntary full rematerialization' not in runs[1]['stderr']


@pytest.mark.slow
def test_epochs_are_compiled_once(runs):
  assert runs[1]['compiled'] == [1] * 11  # Nine runs, and two that go on with a tenth.


@pytest.mark.slow
def test_no_device_gathers_anything_for_longer_than_a_step(runs):
  loop, around = runs[1]['made_of'].split('\nENTRY')
  assert ' all-gather(' in loop and ' all-gather(' not in around


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits_and_on_one_device_to_the_same_numbers(runs):
  path, _ = runs
  whole, cut = _leaves(path / 'fa-data=2,fsdp=4'), _leaves(path / 'cut')
  for name, leaf in whole.items():
    np.testing.assert_array_equal(leaf, cut[name], err_msg=name)
  _assert_close(path / 'moved', path / 'fa-None')


@pytest.mark.parametrize('shape,spec', [
    ((), ()), ((3,), ()), ((8,), ('fsdp',)), ((3, 8), (None, 'fsdp')), ((8, 4), ('fsdp',)),
    ((4, 8), (None, 'fsdp')), ((5, 5, 3, 64), (None, None, None, 'fsdp')), ((9, 8), (None, 'fsdp')),
    ((8, 8), ('fsdp',)), ((0, 3), ())])
def test_the_largest_dimension_that_divides_is_divided(shape, spec):
  devices = jax.sharding.AbstractMesh((2, 4), ('data', 'fsdp'))
  assert mesh.Placement(devices).sharding(shape).spec == jax.sharding.PartitionSpec(*spec)
  data = jax.sharding.AbstractMesh((8,), ('data',))
  assert mesh.Placement(data).sharding(shape).spec == jax.sharding.PartitionSpec()


def test_batches_of_evaluation_grow_to_what_the_devices_can_share(monkeypatch):
  place = mesh.Placement(jax.sharding.AbstractMesh((2, 4), ('data', 'fsdp')))
  monkeypatch.setattr(mesh.Placement, 'put_batches', lambda self, tree: tree)
  images, labels = np.ones((13, 2, 2, 1), np.uint8), np.arange(13, dtype=np.int32)
  for wanted, size in ((5, 8), (8, 8), (9, 16), (100, 16)):
    batches = step.in_batches(images, labels, wanted, place)
    assert batches.labels.shape[1:] == (size,) and batches.images.shape[1:] == (size, 2, 2, 1)
    real = batches.labels >= 0
    np.testing.assert_array_equal(batches.labels[real], labels)
    assert batches.images[real].all() and not batches.images[~real].any()


@pytest.mark.parametrize('value,words', [
    ('data', "'data' is not an axis and its size"), ('', 'is not an axis'),
    ('data=0', 'positive'), ('data=two', 'positive'), ('data=8;fsdp=2', 'positive'),
    ('model=8', "an axis 'model', which is none.*--config.mesh=data=8"),
    ('data=2,data=4', "the axis 'data' twice"),
    ('data=4', 'makes 4 devices, and there are 8.*--config.mesh=data=8.*device_count=4'),
    ('data=16,fsdp=2', 'makes 32 devices'),
    ('data=8', 'batch_size is 100.*--config.batch_size=96')])
def test_meshes_that_cannot_be_say_what_to_type(monkeypatch, value, words):
  monkeypatch.setattr(jax, 'device_count', lambda: 8)
  config = base()
  config.update(mesh=value, batch_size=100)
  with pytest.raises(ConfigError, match=words):
    mesh.make_placement(config)


def test_without_a_mesh_nothing_is_placed():
  place = mesh.make_placement(base())
  assert place is mesh.ONE_DEVICE and place.devices == 1
  tree = {'a': np.ones(3)}
  assert place.spread(tree) is tree and place.shard(tree) is tree and place.everywhere(tree) is tree
