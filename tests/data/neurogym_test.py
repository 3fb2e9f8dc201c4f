"""Tasks of neurogym: trials are cut out of a package that stands in for it, and of itself."""
import importlib.machinery
import sys
import types

import numpy as np
import pytest

from bioprop import data
from bioprop.data import neurogym_source
from bioprop.errors import DataError


class _Space:
  """An action space; discrete ones have a number of actions."""

  def __init__(self, n=None):
    if n:
      self.n = n


class _Env:
  """Trials of 3 to 5 steps: what is seen is the step's number; the truth is asked for in the last.

  Of `periods` without a decision, every step counts.
  """
  periods, actions = ('stimulus', 'decision'), 4

  def __init__(self):
    self.action_space, self.start_ind, self.end_ind = _Space(self.actions), {}, {}

  @property
  def unwrapped(self):
    return self

  def seed(self, seed):
    self.random = np.random.RandomState(seed)

  def new_trial(self):
    steps = self.random.randint(3, 6)
    self.ob = np.stack([np.arange(steps), np.full(steps, 7)], 1).astype(np.float64)
    self.gt = self.truth(steps)
    for period, start, end in (('stimulus', 0, steps - 1), ('decision', steps - 1, steps)):
      if period in self.periods:
        self.start_ind[period], self.end_ind[period] = start, end

  def truth(self, steps):
    return self.random.randint(1, 4, size=steps)


class _Always(_Env):
  periods = ('stimulus',)


class _Reach(_Env):
  actions = None

  def truth(self, steps):
    return self.random.rand(steps, 2)


class _Rewarded(_Env):
  """Has no truth."""

  def new_trial(self):
    self.ob = np.zeros((3, 2))


class _Single(_Env):
  """A truth of one step for a trial of three."""

  def new_trial(self):
    self.ob, self.gt = np.zeros((3, 2)), np.zeros(1, int)


class _Needy(_Env):

  def __init__(self, session):
    raise AssertionError(session)


ENVIRONMENTS = {'Decide-v0': _Env, 'Always-v0': _Always, 'Reach-v0': _Reach,
                'Rewarded-v0': _Rewarded, 'Single-v0': _Single, 'Needy-v0': _Needy}


@pytest.fixture
def stand_in(monkeypatch):
  """A package with the functions that are called, in place of what is installed."""
  package = types.ModuleType('neurogym')
  package.__spec__ = importlib.machinery.ModuleSpec('neurogym', None)
  package.make = lambda name: ENVIRONMENTS[name]()
  package.envs = types.ModuleType('neurogym.envs')
  package.envs.registration = types.ModuleType('neurogym.envs.registration')
  package.envs.registration.all_envs = lambda: list(ENVIRONMENTS)
  for module in (package, package.envs, package.envs.registration):
    monkeypatch.setitem(sys.modules, module.__name__, module)


def _trials(name, seed=0):
  """Observations and truths, one trial after the other."""
  env = ENVIRONMENTS[name]()
  env.seed(seed)
  for _ in range(2500):
    env.new_trial()
    yield env.ob, env.gt


@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('name', ['Decide-v0', 'Always-v0', 'Reach-v0'])
def test_a_sequence_is_a_trial_and_what_is_not_asked_does_not_count(name):
  """Filled with zeros up to the longest; of a decision only its steps have labels."""
  source = neurogym_source.read(name)
  x, labels = (np.concatenate(arrays) for arrays in zip(source.train, source.test))
  assert len(source.train.labels) == 2000 and x.shape == (2500, 5, 2) and x.dtype == np.float32
  reach = name == 'Reach-v0'
  assert source.num_classes == (2 if reach else 4)
  assert labels.dtype == (np.float32 if reach else np.int32)
  nothing = [np.nan, np.nan] if reach else -1
  for got, label, (ob, gt) in zip(x, labels, _trials(name)):
    steps = len(ob)
    assert got.tolist() == [*ob.tolist(), *[[0, 0]] * (5 - steps)]
    first = 0 if name == 'Always-v0' else steps - 1
    want = [gt[t] if first <= t < steps else nothing for t in range(5)]
    np.testing.assert_array_equal(label, np.array(want, labels.dtype))


@pytest.mark.usefixtures('stand_in')
def test_it_is_loaded_by_name_and_always_the_same():
  """With another seed of the held-out examples too."""
  one, other = (data.load('neurogym:Decide-v0', validation=100, seed=seed) for seed in (0, 1))
  assert len(one.validation.labels) == 100 and one.is_sequence and not one.has_targets
  assert one.mean is None and data.load('neurogym:Reach-v0', validation=0).has_targets
  np.testing.assert_array_equal(one.test.images, other.test.images)
  np.testing.assert_array_equal(one.test.labels, other.test.labels)


@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('name, words', [
    ('Decide', "no task 'Decide'. It has: Decide-v0, Always-v0"),
    ('Rewarded-v0', "'neurogym:Rewarded-v0' gives no ground truth.*rewards.*Choose"),
    ('Single-v0', 'gives no ground truth'),
    ('Needy-v0', 'cannot be made with its own defaults: TypeError.*session')])
def test_what_cannot_be_learned_is_refused(name, words):
  with pytest.raises(DataError, match=words):
    data.load(f'neurogym:{name}')


def test_without_the_package_there_is_a_line_to_type(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(DataError, match=r"not installed. Type: pip install 'bioprop\[neurogym\]'"):
    data.load('neurogym:PerceptualDecisionMaking-v0')


def test_a_perceptual_decision():
  """Of the package itself: the label is on which side there was more, at the last step alone."""
  pytest.importorskip('neurogym')
  source = neurogym_source.read('PerceptualDecisionMaking-v0')
  x, labels = source.train
  assert source.num_classes == 3 and x.shape == (2000, 22, 3)
  assert (labels[:, :-1] == -1).all() and set(np.unique(labels[:, -1])) == {1, 2}
  right = x[:, 1:21, 2].sum(1) > x[:, 1:21, 1].sum(1)
  # A fifth of the trials has no coherence: there the side is drawn.
  assert 0.85 < np.mean((labels[:, -1] == 2) == right) < 0.95
  again = neurogym_source.read('PerceptualDecisionMaking-v0')
  np.testing.assert_array_equal(x, again.train.images)
