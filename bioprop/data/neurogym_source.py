"""Tasks of NeuroGym (Molano-Mazon et al. 2022) by name, with the package `neurogym`."""
import importlib.util
import warnings

import numpy as np

from bioprop import errors
from bioprop.data.split import Source, Split

PREFIX = 'neurogym:'
_TRAIN, _TEST = 2000, 500
_RESPONSE = 'decision'  # The period of a trial in which most tasks ask for an answer.


def read(name: str, seed: int = 0) -> Source:
  """Makes trials of a task; no download.

  A sequence is one trial with the task's own defaults, its end filled with zeros up to the longest
  of all. The label of a step is the task's ground truth: an action, where there are so many of
  them, or the numbers of a continuous one. In tasks with a period 'decision' only its steps count,
  in others all steps of the trial; those that do not count have label -1, or NaN.

  Args:
    name: of the environment, for instance 'PerceptualDecisionMaking-v0'.
    seed: of the trials.

  Returns:
    2000 trials to train on and 500 to test on: x float32 [n, T, channels], labels int32 [n, T] or
    float32 [n, T, outputs].

  Raises:
    DataError: neurogym is not installed or has no such task, or the task has no ground truth or
      needs options.
  """
  if importlib.util.find_spec('neurogym') is None:
    raise errors.DataError(
        f'{PREFIX + name!r} is a task of the package neurogym, which is not installed. Type: '
        "pip install 'bioprop[neurogym]'")
  # It and gymnasium warn of what they do to themselves.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    env = _environment(name)
    env.seed(seed)
    trials = [_trial(name, env) for _ in range(_TRAIN + _TEST)]
  steps = max(len(x) for x, _ in trials)
  x = np.stack([_filled(x, steps, 0) for x, _ in trials])
  discrete = hasattr(env.action_space, 'n')
  labels = np.stack([_filled(y, steps, -1 if discrete else np.nan) for _, y in trials])
  if not (labels >= 0).any() and discrete or not discrete and np.isnan(labels).all():
    raise _untrainable(name)
  outputs = int(env.action_space.n) if discrete else labels.shape[-1]
  return Source(outputs, Split(x[:_TRAIN], labels[:_TRAIN]), Split(x[_TRAIN:], labels[_TRAIN:]))


def _environment(name):
  """The task itself, without gymnasium's checks of steps."""
  import neurogym
  from neurogym.envs import registration

  known = registration.all_envs()
  if name not in known:
    raise errors.DataError(
        f'neurogym has no task {name!r}. It has: {", ".join(known)}. Type for instance '
        f"data.load('{PREFIX}PerceptualDecisionMaking-v0').")
  try:
    return neurogym.make(name).unwrapped
  except Exception as err:  # Each task's own code raises what it likes.
    raise errors.DataError(
        f'{PREFIX + name!r} cannot be made with its own defaults: {type(err).__name__}: {err} '
        f"Choose another task, for instance '{PREFIX}PerceptualDecisionMaking-v0'.") from err


def _trial(name, env):
  """Observations [T, channels] and ground truth of one trial, -1 or NaN where it does not count."""
  env.new_trial()
  try:
    x, truth = np.asarray(env.ob, np.float32), np.asarray(env.gt)
  except AttributeError:
    raise _untrainable(name) from None
  if not len(x) == len(truth):
    raise _untrainable(name)
  discrete = hasattr(env.action_space, 'n')
  y = truth.astype(np.int32 if discrete else np.float32)
  if not discrete:
    y = y.reshape(len(y), -1)
  if _RESPONSE in env.start_ind:
    step = np.arange(len(y))
    asked = (env.start_ind[_RESPONSE] <= step) & (step < env.end_ind[_RESPONSE])
    y[~asked] = -1 if discrete else np.nan
  return x.reshape(len(x), -1), y


def _filled(array, steps, value):
  """An array [T, ...] as [steps, ...], the value behind its end."""
  behind = [(0, steps - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, behind, constant_values=value)


def _untrainable(name):
  return errors.DataError(
      f'{PREFIX + name!r} gives no ground truth at the steps of a trial: it is a task for '
      f'reinforcement learning, from rewards. Choose another, for instance '
      f"'{PREFIX}PerceptualDecisionMaking-v0'.")
