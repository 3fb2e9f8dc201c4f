"""The official Flax examples, their own train steps, and what each rule must make of them."""
import dataclasses
import functools
import importlib.util
import pathlib
import types
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import bioprop


def _beside(name):
  """A file of this folder, which is not a package."""
  path = pathlib.Path(__file__).with_name(f'{name}.py')
  spec = importlib.util.spec_from_file_location(f'examples_{name}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


archive, program_lib, definition = map(_beside, ('archive', 'program', 'definition'))


@pytest.fixture(scope='module', autouse=True)
def _their_habits():
  """The examples rely on promotions that our own code forbids."""
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture(scope='session')
def examples_folder():
  """`examples/` of the installed flax release; skips where it cannot be had."""
  try:
    return archive.examples()
  except archive.Unavailable as error:
    pytest.skip(str(error))


@pytest.fixture(scope='module')
def program(examples_folder, tmp_path_factory):
  """program(example, module) imports one as it is; program(..., patched=True) with our diffs."""
  folder = tmp_path_factory.mktemp('examples')
  with program_lib.own_flags() as values, warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Of their imports.

    @functools.cache
    def load(example, module, patched=False):
      at = program_lib.copy(examples_folder / example, folder, patched)
      loaded = program_lib.load(at, module)
      given = {'workdir': '.', 'config': f'{at}/configs/default.py'}
      values(['program', *(f'--{name}={value}' for name, value in given.items()
                           if name in values)])
      return loaded

    yield load


def _record(_, gradient, params=None):
  del params
  return jax.tree.map(lambda g: -0.1 * g, gradient), gradient


# An optimiser whose state is the gradient that it got.
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params),
    lambda gradient, state, params=None: _record(state, gradient, params))


def recording(state):
  """A TrainState of theirs, whose `opt_state` will be the last step's gradient."""
  return state.replace(tx=RECORDER, opt_state=RECORDER.init(state.params))


def counted(function):
  """`function`, with the number of times that JAX traced it in `counted.traces`."""

  @functools.wraps(function)
  def call(*args, **kwargs):
    call.traces += 1
    return function(*args, **kwargs)

  call.traces = 0
  return call


def finite(tree):
  """All numbers of the tree are, and not all of them are zero."""
  leaves = jax.tree.leaves(jax.device_get(tree))
  return all(np.all(np.isfinite(leaf)) for leaf in leaves) and any(np.any(x) for x in leaves)


def close(got, want, tolerance=3e-4):
  """Two gradients in float32, each leaf relative to its own largest entry.

  Biases below a norm have a gradient of zero, and rounding errors of those above them.
  """
  got, want = jax.device_get((got, want))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  largest = max(np.abs(w).max() for w in jax.tree.leaves(want))
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want)):
    scale = max(np.abs(b).max(), 1e-3 * largest)
    np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, rtol=0,
                               err_msg=jax.tree_util.keystr(path))


def as_feedback(tree, params):
  """B := W, wherever the collection 'feedback' has a B."""
  return {name: as_feedback(value, params[name]) if isinstance(value, dict) else params[name]
          for name, value in tree.items()}


def filled(shapes):
  """Numbers for a tree of shapes; drawn by numpy, because JAX's draws take long to compile."""
  draw = np.random.RandomState(0).randn

  def fill(path, leaf):
    name = next(entry.key for entry in reversed(path) if hasattr(entry, 'key'))
    if len(leaf.shape) > 1:
      value = draw(*leaf.shape) / (leaf.size / leaf.shape[-1])**0.5
    else:  # No scale of zero, as some examples start with: nothing would pass it.
      value = 0.1 * draw(*leaf.shape) + (name in ('scale', 'var'))
    return np.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(shapes))


@dataclasses.dataclass
class Case:
  """One example: its model, its own train step, and the same program with our diff.

  Attributes:
    model: the plain model.
    sample: inputs for its init.
    error: shape of the network's output in the train step.
    gradient: maps (apply, params) to the gradient that the unmodified train step takes, whatever
      `apply` computes.
    plugged: maps a rule to what the program with our diff does under --rule=<rule>: the model that
      it trains, the gradient of its first step, the parameters before it, and how often JAX traced
      the step in two steps.
    options: keyword arguments for init.
    output: which of the model's outputs is the network's.
    readouts: paths of the layers that hebb leaves to the cotangent.
    phi: nonlinearities by path, for hebb.
  """
  model: Any
  sample: tuple
  error: tuple[int, ...]
  gradient: Callable
  plugged: Callable
  options: dict = dataclasses.field(default_factory=dict)
  output: int | None = None
  readouts: tuple[str, ...] = ()
  phi: dict = dataclasses.field(default_factory=dict)

  def describe(self, rule):
    """The rule of each parameter, by path; there is a row for each."""
    report = bioprop.describe(self.model, rule, *self.sample, output=self.output, **self.options)
    params = self._shapes(self.model)['params']
    paths = ['/'.join(entry.key for entry in path if hasattr(entry, 'key'))
             for path, _ in jax.tree.leaves_with_path(params)]
    rows = {row.path: row.rule for row in report if row.note != 'learned feedback'}
    assert list(rows) == paths
    return rows

  def check_symmetric(self):
    """By their train step, fa with B = W is backprop."""
    plugged = bioprop.plug(self.model, 'fa', output=self.output)
    params = filled(self._shapes(self.model)['params'])
    symmetric = as_feedback(self._shapes(plugged)['feedback'], params)
    apply = lambda v, *args, **kwargs: plugged.apply({**v, 'feedback': symmetric}, *args, **kwargs)
    want = self.gradient(self.model.apply, params)
    close(self.gradient(apply, params), want)
    assert finite(want)

  def check_rule(self, rule):
    """With our diff: finite, what the definition says of every layer, and traced once."""
    model, got, params, traces = self.plugged(rule)
    assert traces == 1 and finite(got)
    error = self._error(params) if rule in ('dfa', 'hebb') else None
    by_definition = definition.applying(
        self.model, rule, model.bioprop_bound and model.bioprop_bound.feedback, error,
        self.readouts, self.phi)
    close(got, self.gradient(by_definition, params))

  def _shapes(self, model):
    keys = {name: jax.random.key(0) for name in ('params', 'feedback', 'dropout')}
    return jax.eval_shape(lambda: model.init(keys, *self.sample, **self.options))

  def _error(self, params):
    """The error at the network's output: the gradient of something that is added there."""

    def apply(variables, *args, **kwargs):
      both = variables['params']
      out = self.model.apply({**variables, 'params': both['model']}, *args, **kwargs)
      return (out[0] + both['probe'], *out[1:]) if isinstance(out, tuple) else out + both['probe']

    probe = np.zeros(self.error, np.float32)
    return self.gradient(apply, {'model': params, 'probe': probe})['probe']


def placed(state):
  """A state where jax.pmap leaves it; from elsewhere it traces any function twice."""
  mesh = jax.sharding.Mesh(jax.devices()[:1], 'batch')
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def two_steps(step, state, compiled=jax.jit):
  """The gradient of the first of two steps, and how often JAX traced them."""
  step = counted(step)
  run = compiled(step)
  after = run(state)
  jax.block_until_ready(run(after))
  return after.opt_state, step.traces


@pytest.fixture(scope='session')
def tools():
  """What the tests of this folder share."""
  return types.SimpleNamespace(
      Case=Case, recorder=RECORDER, recording=recording, counted=counted, close=close,
      finite=finite, as_feedback=as_feedback, filled=filled, placed=placed, two_steps=two_steps,
      archive=archive, definition=definition)
