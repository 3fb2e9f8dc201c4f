"""Runs that are trained together: each is the run that it would be alone."""
import contextlib
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from bioprop.errors import CheckpointError, DivergedError
from bioprop.training import loop, metrics, probing, run, together, workdir
from bioprop.training.replicas import Alone, Replicas
from bioprop.training.trainer import NotFinite, Trainer

PROGRAM = pathlib.Path(__file__).parent / 'many_replicas.py'
TIMES = ('seconds', 'steps_per_second')


def _variant(config, **changes):
  one = config.copy_and_resolve_references()
  for name, value in changes.items():
    node = one
    *path, last = name.split('__')
    for part in path:
      node = node[part]
    node[last] = value
  return one


def _held(configs, folder, names=None, limit_gib=None):
  """Trains in folder/0, folder/1, ...; returns what `run_held` does."""
  paths = [folder / str(name) for name in names or range(len(configs))]
  trainers = []
  for config in configs:
    trainers.append(Trainer(config, like=trainers[0] if trainers else None))
  with contextlib.ExitStack() as stack:
    for config, path in zip(configs, paths):
      stack.enter_context(workdir.opened(path, config))
    return loop.run_held(trainers, paths, loop.Progress(), limit_gib)


def _numbers(path):
  return [{name: value for name, value in record.items() if name not in TIMES}
          for record in metrics.read(path)]


def _same(one, other, tolerance):
  for a, b in zip(_numbers(one), _numbers(other), strict=True):
    assert a.keys() == b.keys()
    np.testing.assert_allclose(list(a.values()), list(b.values()), **tolerance)


def test_the_start_of_runs_that_are_alike_is_compiled_once(config, monkeypatch):
  """Each starts as it would alone; another width of the model is another program."""
  traces = []
  plain = nn.Dense.__call__
  def counted(self, x):
    if self.is_initializing():
      traces.append(self.name)
    return plain(self, x)
  monkeypatch.setattr(nn.Dense, '__call__', counted)
  config.rule = 'bp'  # Draws no feedback, by another init.
  first = Trainer(config)
  first.init()
  assert traces
  del traces[:]
  for changes in ({'seed': 1}, {'learning_rate': 0.3}):
    own = _variant(config, **changes)
    state = Trainer(own, like=first).init()
    assert not traces
    alone = Trainer(own).init()
    assert traces
    del traces[:]
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)
  Trainer(_variant(config, model_options__hidden=(17,)), like=first).init()
  assert traces


@pytest.fixture
def each(monkeypatch):
  """'vmap': as on an accelerator; 'map': as on the CPU. Float tolerances of each."""
  def use(how):
    if how == 'vmap':
      monkeypatch.setattr('bioprop.training.replicas._takes_turns', lambda: False)
    return {'rtol': 2e-4, 'atol': 1e-5} if how == 'vmap' else {'rtol': 1e-6}
  return use


@pytest.mark.slow
@pytest.mark.parametrize('how', ['map', 'vmap'])
@pytest.mark.parametrize('rule, changes', [
    ('fa', [{'seed': 1}, {'seed': 2, 'learning_rate': .05}, {'rule_options__scale': .7}]),
    ('mirror', [{'rule_options__rate': .5}, {'rule_options__rate': 2.}, {'seed': 5}])])
def test_each_is_as_it_would_be_alone(config, tmp_path, each, how, rule, changes):
  """Seeds, rates, numbers of the rule: losses, accuracies, the last state, the checkpoint."""
  tolerance = each(how)
  config.rule = rule
  configs = [_variant(config, **change) for change in changes]
  outcomes = _held(configs, tmp_path / 'both')
  for at, one in enumerate(configs):
    alone = run(one, tmp_path / 'alone' / str(at), progress=False)
    _same(tmp_path / 'both' / str(at), tmp_path / 'alone' / str(at), tolerance)
    assert outcomes[at].test_accuracy == pytest.approx(alone.test_accuracy, abs=.01)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
                 outcomes[at].state.params, alone.state.params)
    assert workdir.read_config(tmp_path / 'both' / str(at))['seed'] == one.seed
  # Seeds and rates matter: these are different runs.
  losses = [outcome.train_loss for outcome in outcomes]
  assert len(set(losses)) == len(losses)


def test_they_are_one_program_and_others_are_not(config):
  """Numbers are no difference, shapes and rules are."""
  configs = [_variant(config, seed=seed) for seed in range(3)]
  configs += [_variant(config, learning_rate=.2), _variant(config, momentum=0.)]
  engines = together.together([Trainer(one) for one in configs])
  assert [type(engine) for engine in engines] == [Replicas, Alone]  # Without momentum, less state.
  assert len(engines[0].trainers) == 4
  key = together.likeness
  assert key(config) == key(_variant(config, seed=7, learning_rate=.3))
  for change in ({'rule': 'dfa'}, {'batch_size': 100}, {'epochs': 4}, {'loss': 'mse'},
                 {'model_options__hidden': (17,)}):
    assert key(config) != key(_variant(config, **change))
  assert key(_variant(config, mesh='data=1')) is None


def test_states_of_all_seeds_are_made_by_one_program(config):
  """Compiled once, and each is as it would be alone; another scale of feedback is another model."""
  first = Trainer(config)
  jax.block_until_ready(first.init())
  compiled = []
  listen = lambda event, *args, **kwargs: event.endswith('backend_compile_duration') and (
      compiled.append(event))
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    own = _variant(config, seed=7)
    state = Trainer(own, like=first).init()
    assert not compiled
    scaled = _variant(config, rule_options__scale=.5)
    half = Trainer(scaled, like=first).init()
    assert compiled  # It does listen.
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  for found, alone in ((state, own), (half, scaled)):
    jax.tree.map(np.testing.assert_array_equal, found, Trainer(alone).init())


@pytest.mark.slow
def test_one_diverges_and_the_others_go_on(config, tmp_path):
  """It says where, as alone; the others are as they were without it."""
  config.loss = 'mse'
  configs = [_variant(config, learning_rate=.1), _variant(config, learning_rate=1e30),
             _variant(config, seed=3)]
  first, bad, third = _held(configs, tmp_path / 'all')
  assert isinstance(bad, DivergedError) and 'epoch 1, step' in str(bad)
  with pytest.raises(DivergedError) as alone:
    run(configs[1], tmp_path / 'alone', progress=False)
  assert str(alone.value) == str(bad)
  assert not list((tmp_path / 'all' / '1').glob('metrics.jsonl'))
  others = _held([configs[0], configs[2]], tmp_path / 'two')
  assert [first.test_loss, third.test_loss] == [one.test_loss for one in others]
  assert np.isfinite(first.test_loss)


@pytest.mark.slow
def test_probes_measure_none_that_has_diverged(config, tmp_path):
  """It has the measurements that it has alone."""
  config.loss = 'mse'
  config.probes.entk = dict(type='entk', every=2, batch=8)
  configs = [config, _variant(config, learning_rate=1e30)]
  _, bad = _held(configs, tmp_path / 'both')
  with pytest.raises(DivergedError):
    run(configs[1], tmp_path / 'alone', progress=False)
  names = [sorted(path.name for path in (tmp_path / where / 'probes' / 'entk').iterdir())
           for where in ('both/1', 'alone')]
  assert isinstance(bad, DivergedError) and names[0] == names[1]


@pytest.mark.slow
def test_a_divergence_that_comes_earlier_when_it_is_made_again(config, tmp_path):
  """As rounding may differ: the earlier one is told, and no exception of ours leaks."""
  config.update(loss='mse', learning_rate=1e30)
  with contextlib.ExitStack() as stack:
    stack.enter_context(workdir.opened(tmp_path / 'run', config))
    one = loop._Run(Trainer(config), tmp_path / 'run', stack)
    told = one.explain(NotFinite(float('nan'), 3, 2))
  assert isinstance(told, DivergedError) and 'diverged in epoch 1, step' in str(told)


@pytest.mark.slow
def test_killed_between_the_last_checkpoint_and_the_test(config, tmp_path):
  """The test is made, and the state is there."""
  configs = [_variant(config, seed=seed) for seed in range(2)]
  before = _held(configs, tmp_path)
  for at in range(2):
    file = tmp_path / str(at) / 'metrics.jsonl'
    file.write_bytes(b''.join(file.read_bytes().splitlines(keepends=True)[:-1]))
  for one, other in zip(_held(configs, tmp_path), before, strict=True):
    assert one.test_loss == other.test_loss
    np.testing.assert_equal(*(jax.tree.leaves(jax.device_get(each.state)) for each in (one, other)))


@pytest.mark.slow
def test_all_diverge(config, tmp_path):
  """Each is told."""
  config.loss = 'mse'
  configs = [_variant(config, learning_rate=1e30, seed=seed) for seed in (0, 1)]
  outcomes = _held(configs, tmp_path)
  assert all(isinstance(outcome, DivergedError) for outcome in outcomes)


@pytest.mark.slow
def test_an_interrupted_group_goes_on(config, tmp_path, monkeypatch):
  """Also where one run was saved an epoch further than the other, or alone."""
  configs = [_variant(config, seed=seed) for seed in range(3)]
  _held(configs, tmp_path / 'whole')
  saves = []
  plain = loop.Checkpoints.save

  def save(self, epoch, state):
    saves.append(epoch)
    if len(saves) == 5:  # The second of epoch 2.
      raise KeyboardInterrupt
    plain(self, epoch, state)

  monkeypatch.setattr(loop.Checkpoints, 'save', save)
  with pytest.raises(KeyboardInterrupt):
    _held(configs, tmp_path / 'cut')
  monkeypatch.undo()
  assert saves == [1, 1, 1, 2, 2]
  run(configs[0], tmp_path / 'cut' / '0', progress=False)  # By `bioprop train`, say.
  _held(configs, tmp_path / 'cut')
  for at in range(3):
    _same(tmp_path / 'cut' / str(at), tmp_path / 'whole' / str(at), {'rtol': 1e-6})


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(config, tmp_path, monkeypatch):
  """Its results are read."""
  configs = [_variant(config, seed=seed) for seed in range(2)]
  before = _held(configs, tmp_path)

  def never(*args):
    raise AssertionError('trained again')

  monkeypatch.setattr(loop, '_train', never)
  after = _held(configs, tmp_path)
  assert [one.test_loss for one in after] == [one.test_loss for one in before]


@pytest.mark.slow
def test_a_damaged_checkpoint_stops_one(config, tmp_path):
  """The other is there."""
  configs = [_variant(config, seed=seed) for seed in range(2)]
  _held(configs, tmp_path)
  for file in (tmp_path / '0' / 'checkpoints').rglob('*'):
    if file.is_file():
      file.write_bytes(b'nothing')
  damaged, whole = _held(configs, tmp_path)
  assert isinstance(damaged, CheckpointError) and whole.test_accuracy > .3


@pytest.mark.slow
def test_probes_measure_each(config, tmp_path):
  """The same as alone, at the same steps."""
  config.probes.entk = dict(type='entk', every=4, batch=8)
  configs = [_variant(config, seed=seed) for seed in range(2)]
  _held(configs, tmp_path / 'both')
  for at, one in enumerate(configs):
    run(one, tmp_path / 'alone' / str(at), progress=False)
    found, want = (probing.read(tmp_path / where / str(at), 'entk') for where in ('both', 'alone'))
    assert [int(a['step']) for a in found] == [int(a['step']) for a in want]
    for a, b in zip(found, want):
      np.testing.assert_allclose(a['kernel'], b['kernel'], rtol=1e-5, atol=1e-5)
    _same(tmp_path / 'both' / str(at), tmp_path / 'alone' / str(at), {'rtol': 1e-5})


@pytest.mark.slow
def test_seeds_choose_their_own_examples(config, tmp_path):
  """Of few examples, each run has those of its seed."""
  config.examples, config.batch_size = 250, 50
  configs = [_variant(config, seed=seed) for seed in range(2)]
  _held(configs, tmp_path / 'both')
  for at, one in enumerate(configs):
    run(one, tmp_path / 'alone' / str(at), progress=False)
    _same(tmp_path / 'both' / str(at), tmp_path / 'alone' / str(at), {'rtol': 1e-6})


@pytest.mark.slow
def test_memory_divides_them(config, tmp_path, caplog):
  """Told, and the results are the same."""
  configs = [_variant(config, seed=seed) for seed in range(5)]
  trainers = [Trainer(one) for one in configs]
  whole, = together.together(trainers)
  needed = whole.bytes_needed() / 2**30
  of_three = together.together(trainers[:3])[0].bytes_needed() / 2**30
  with caplog.at_level('WARNING'):
    engines = list(together.within_memory(trainers, of_three))
  assert [len(engine.trainers) for engine in engines] == [3, 2]
  assert '5 runs together would take' in caplog.text and '3 at a time' in caplog.text
  # Examples are there however few runs are: half of the memory holds less than half of them.
  assert of_three > needed / 2
  engines = list(together.within_memory(trainers, needed / 2))
  assert [trainer for engine in engines for trainer in engine.trainers] == trainers
  assert all(engine.bytes_needed() <= needed / 2 * 2**30 for engine in engines
             if len(engine.trainers) > 1)
  assert max(len(engine.trainers) for engine in engines) < 3
  assert len(list(together.within_memory(trainers, needed * 2))) == 1
  few = _held(configs, tmp_path / 'few', limit_gib=of_three)
  all_ = _held(configs, tmp_path / 'all')
  assert [one.test_loss for one in few] == pytest.approx([one.test_loss for one in all_], rel=1e-6)


@pytest.mark.slow
def test_over_several_devices(tmp_path):
  """Three runs on two devices: the odd one out is with another; numbers are those of one device."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu',
                      'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  done = subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], env=env,
                        capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  notes = json.loads(done.stdout)
  assert notes['devices'] == 2 and notes['lies'] == [2, 2]
  for at in range(3):
    _same(tmp_path / 'both' / str(at), tmp_path / 'alone' / str(at), {'rtol': 1e-6})
