"""The benchmark compares what it says it compares; times themselves are not tested."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bioprop
from bioprop.bench import epochs, nnx_steps, speed, steps, streamed
from bioprop.models import MLP, MODELS


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(steps.CASES, 'mlp', steps.Case(MLP(hidden=(8, 8)), (4, 5, 5, 1)))


@pytest.mark.slow
def test_rows_hold_what_the_json_promises(tiny):
  rows = speed.measure('mlp', ['bp', 'kp'], rounds=2, seconds=0.0)
  assert [row['rule'] for row in rows] == ['plain', 'bp', 'kp']
  assert all(set(row) == {'model', 'rule', 'step_ms', 'ratio', 'peak_mb', 'trace_s', 'compile_s',
                          'build_ratio'} for row in rows)
  assert rows[0]['ratio'] == 1.0
  json.dumps(rows)


def test_plugged_backprop_is_the_plain_program(tiny):
  """Nothing added: the programs handed to the compiler are the same, character by character."""
  def program(model):
    x = jnp.ones((4, 5, 5, 1))
    variables = model.init(jax.random.key(0), x)
    loss = lambda params: jnp.sum(model.apply({'params': params}, x)**2)
    return jax.jit(jax.grad(loss)).lower(variables['params']).as_text()

  model = steps.CASES['mlp'].model
  assert program(bioprop.plug(model, 'bp')) == program(model)
  assert program(bioprop.plug(model, 'usf')) != program(model)


@pytest.mark.slow
def test_memory_counts_the_feedback(tiny):
  """Peak of kp is at least a second set of kernels, and their momentum, above the plain step's."""
  plain, kp = (steps.make_step(steps.CASES['mlp'], rule).peak_mb for rule in (None, 'kp'))
  kernels = 4 * (25 * 8 + 8 * 8 + 8 * 10) / 1e6
  assert kp - plain >= 2 * kernels


@pytest.mark.slow
def test_nnx_steps_train_in_place_and_hold_the_feedback(monkeypatch):
  monkeypatch.setitem(nnx_steps.CASES, 'nnx_mlp', nnx_steps.Case(
      lambda rngs: nnx.Sequential(nnx.Linear(6, 10, rngs=rngs)), (4, 6)))
  rows = speed.measure('nnx_mlp', ['fa'], rounds=2, seconds=0.0)
  assert [row['rule'] for row in rows] == ['plain', 'fa']
  assert rows[1]['peak_mb'] >= rows[0]['peak_mb']
  step = nnx_steps.make_step(nnx_steps.CASES['nnx_mlp'], 'fa')
  losses = [float(step.run(step.state, step.batch)[1]) for _ in range(3)]
  assert losses[0] > losses[1] > losses[2]


@pytest.mark.slow
def test_both_epoch_loops_take_the_same_number_of_steps(monkeypatch):
  monkeypatch.setitem(epochs.CASES, 'mlp', (160, (4, 4, 1)))
  monkeypatch.setitem(MODELS, 'mlp', functools.partial(MLP, hidden=(8,)))
  rows = epochs.measure('mlp', rounds=1)
  assert [row['loop'] for row in rows] == ['bare', 'bioprop']
  assert rows[0]['ratio'] == 1.0 and rows[1]['epoch_s'] > 0


def test_unknown_model_is_one_line_with_the_choices(python):
  ran = python('--models=vgg', module='bioprop.bench.speed')
  assert ran.returncode == 1
  assert 'choose from mlp, lenet, resnet20, resnet18' in ran.stderr + ran.stdout
  assert 'Traceback' not in ran.stderr


@pytest.mark.slow
def test_streams_need_the_same_memory_however_long():
  """And give the same gradient; offline it grows with the length."""
  rows = streamed.measure(['rflo'], [50, 500], 1)
  peak = {(row['form'], row['steps']): row['peak_mb'] for row in rows}
  assert peak['online', 50] == peak['online', 500]
  assert peak['offline', 500] > 5 * peak['offline', 50]
  (one, given), (other, known) = streamed.offline('rflo', 20), streamed.online('rflo', 20)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
               one(*given), other(*known))
