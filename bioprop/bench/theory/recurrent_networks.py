"""Linear recurrent networks of Flax under the library's rules, to set `theory.recurrent` beside."""
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bioprop.fronts.plug import plug
from bioprop.rules import make
from bioprop.theory import recurrent
from bioprop.theory.recurrent import Network
from bioprop.typing import Array

# Of theory's rules, names that the library has others for.
_NAMES = {'bptt': 'bp'}


class LinearRNN(nn.Module):
  """h_{t+1} = W h_t + B x_t from h_0 = 0, and y = A h_T: x [N, T, i] to [N, o]."""
  outputs: int
  units: int

  @nn.compact
  def __call__(self, x):
    first = jnp.zeros((len(x), self.units), x.dtype)
    states = nn.RNN(_Cell(self.units, name='cell'))(x, initial_carry=first)
    return nn.Dense(self.outputs, use_bias=False, name='readout')(states[:, -1])


class _Cell(nn.RNNCellBase):
  units: int

  @nn.compact
  def __call__(self, state, x):
    dense = functools.partial(nn.Dense, self.units, use_bias=False)
    state = dense(name='recurrent')(state) + dense(name='input')(x)
    return state, state

  @property
  def num_feature_axes(self):
    return 1


class Course(NamedTuple):
  """What networks did, [S] of them; see `train`.

  Attributes:
    loss: [S, updates + 1].
    network: the matrices at the end, and
    course: before the first update and after every so many, [S, .., rows, columns].
  """
  loss: np.ndarray
  network: Network
  course: Network


def label(case: Mapping) -> str:
  """'tbptt steps=1'."""
  return ' '.join([case['rule'], *(f'{name}={value:g}' for name, value in case.items()
                                   if name != 'rule')])


def options(case: Mapping, feedback: Array) -> dict:
  """What theory is to be told of a case: its options, and the feedback if the rule has any."""
  told = {name: value for name, value in case.items() if name != 'rule'}
  return told | ({'feedback': feedback} if case['rule'] in ('rflo', 'eprop') else {})


def impulses(horizon: int, inputs: int) -> np.ndarray:
  """One input at one time each, [T i, T, i]: sums over them are averages over white noise.

  The loss and all updates are of second order in the inputs, and nothing else of them counts than
  their covariance.
  """
  return np.eye(horizon * inputs).reshape(-1, horizon, inputs)


def predicted(case: Mapping, horizon: int) -> Callable:
  """As `plugged`, by theory: of sequences of T steps, whatever x is."""
  def rule(network: Network, feedback: Array, teacher: Network, x: Array):
    del x
    told = options(case, feedback)
    return (recurrent.network_loss(network, teacher, horizon),
            recurrent.network_update(case['rule'], network, teacher, horizon=horizon, **told))

  return rule


def plugged(case: Mapping, like: Network) -> Callable:
  """Maps (network, feedback R, teacher, x [N, T, i]) to the loss and the plugged rule's gradient.

  Both are summed over x. Matrices are those of theory.

  Args:
    case: a rule of theory by its name, and its options.
    like: a network whose shapes are those of all that it will be called with.
  """
  outputs, units = like.a.shape[-2:]
  name = _NAMES.get(case['rule'], case['rule'])
  told = {'feedback': 'random'} if name in ('rflo', 'eprop') else {}
  told |= {key: value for key, value in case.items() if key != 'rule'}
  model = plug(LinearRNN(outputs, units), make(name, **told))
  blank = jnp.zeros((1, 2, like.b.shape[-1]), jnp.float32)
  drawn = dict(model.init(jax.random.key(0), blank))
  del drawn['params']
  rest = jax.tree.map(lambda one: one.astype(like.a.dtype), drawn)

  def loss(params, others, x, target):
    return jnp.sum(jnp.square(model.apply({'params': params, **others}, x) - target)) / 2

  def rule(network: Network, feedback: Array, teacher: Network, x: Array):
    others = dict(rest)
    if told.get('feedback'):
      others['feedback'] = {**rest['feedback'], 'readout': {'kernel': feedback.T}}
    target = LinearRNN(outputs, teacher.w.shape[-1]).apply({'params': _params(teacher)}, x)
    value, found = jax.value_and_grad(loss)(_params(network), others, x, target)
    return value, Network(*(one['kernel'].T for one in (
        found['readout'], found['cell']['input'], found['cell']['recurrent'])))

  return rule


def train(rule: Callable, starts: Network, feedback: Array, teacher: Network, *, horizon: int,
          learning_rate: float, updates: int, every: int = 1, sampled: int = 0) -> Course:
  """Trains networks side by side, by the exact expectation over white noise or by samples of it.

  Args:
    rule: from `plugged` or `predicted`.
    starts, feedback: of each network, with a first axis [S].
    teacher: of all of them.
    horizon: T.
    learning_rate: of an update.
    updates: how many, a multiple of `every`.
    every: the course has the matrices after each so many of them.
    sampled: sequences that an update is the mean over, new ones each time; 0: the expectation.
  """
  inputs = starts.b.shape[-1]
  whole = jnp.asarray(impulses(horizon, inputs))

  def step(state, key):
    (network, feedback), x = state, whole
    if sampled:
      x = jax.random.normal(key, (sampled, horizon, inputs), whole.dtype) / np.sqrt(sampled)
    loss, found = rule(network, feedback, teacher, x)
    network = jax.tree.map(lambda one, d: one - learning_rate * d, network, found)
    return (network, feedback), loss

  def several(state, keys):
    after, losses = jax.lax.scan(step, state, keys)
    return after, (losses, state[0])

  @jax.jit
  @jax.vmap
  def run(start, feedback, key):
    keys = jax.random.split(key, (updates // every, every))
    (end, _), (losses, course) = jax.lax.scan(several, (start, feedback), keys)
    course = jax.tree.map(lambda before, last: jnp.concatenate([before, last[None]]), course, end)
    return Course(jnp.append(losses, rule(end, feedback, teacher, whole)[0]), end, course)

  keys = jax.random.split(jax.random.key(0), len(starts.a))
  return jax.tree.map(np.asarray, run(starts, feedback, keys))


def _params(network: Network) -> dict:
  kernel = lambda matrix: {'kernel': matrix.T}
  return {'readout': kernel(network.a),
          'cell': {'input': kernel(network.b), 'recurrent': kernel(network.w)}}
