"""Whole matrices of linear recurrent networks: against modes, explicit networks and samples."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.theory import recurrent
from bioprop.theory.recurrent import Mode, Network

pytestmark = pytest.mark.usefixtures('x64')

RULES = [('bptt', {}), ('tbptt', {'steps': 1}), ('tbptt', {'steps': 3}),
         ('rflo', {'leak': 0.5}), ('rflo', {'feedback': 'symmetric', 'leak': -0.3}),
         ('eprop', {}), ('eprop', {'feedback': 'symmetric'})]
SIZE, OUTPUTS, INPUTS, HORIZON = 6, 3, 4, 7


def network(rng, size=SIZE, outputs=OUTPUTS, inputs=INPUTS):
  """At random, with a spectral radius below 1."""
  w = rng.randn(size, size)
  return Network(rng.randn(outputs, size) / 2, rng.randn(size, inputs) / 2,
                 0.7 * w / np.abs(np.linalg.eigvals(w)).max())


def options_of(rule, options, feedback):
  """With feedback in numbers where the rule needs some."""
  needs = rule in ('rflo', 'eprop') and 'feedback' not in options
  return {**options, **({'feedback': feedback} if needs else {})}


def impulses(horizon, inputs):
  """One input of one time each [horizon * inputs, horizon, inputs]: sums over them are averages."""
  return np.eye(horizon * inputs).reshape(-1, horizon, inputs)


def run(net, x):
  """h_0, ..., h_T [T + 1, N, n]."""
  states = [np.zeros((len(x), net.w.shape[0]))]
  for t in range(x.shape[1]):
    states.append(states[-1] @ net.w.T + x[:, t] @ net.b.T)
  return states


def explicit(rule, options, student, teacher, x):
  """DA, DB and DW of each sequence [N, ..], by a loop back through time."""
  states, horizon = run(student, x), x.shape[1]
  error = states[-1] @ student.a.T - run(teacher, x)[-1] @ teacher.a.T
  outer = lambda left, right: left[:, :, None] * right[:, None, :]
  feedback = options.get('feedback', 'symmetric')
  signal = error @ (student.a if isinstance(feedback, str) else feedback)
  back = {'rflo': options.get('leak', 0.0) * np.eye(len(student.w)),
          'eprop': np.diag(np.diag(student.w))}.get(rule, student.w)
  db, dw = 0.0, 0.0
  for t in range(horizon, max(0, horizon - options.get('steps', horizon)), -1):
    db, dw = db + outer(signal, x[:, t - 1]), dw + outer(signal, states[t - 1])
    signal = signal @ back
  return Network(outer(error, states[-1]), db, dw)


@pytest.mark.parametrize('rule, options', RULES, ids=str)
@pytest.mark.some(3)
def test_modes_learn_as_matrices(rule, options):
  """One update is the flow of modes, in bases of any kind; e-prop's modes are units."""
  rng = np.random.RandomState(0)
  basis = lambda rows: np.linalg.qr(rng.randn(rows, 4))[0]
  draw = lambda: Mode(rng.randn(4), rng.randn(4), rng.uniform(-0.7, 0.7, 4))
  bases = basis(5), np.eye(4)[[2, 0, 3, 1]] if rule == 'eprop' else basis(4), basis(6)
  student, teacher, feedback = draw(), draw(), rng.randn(4)
  made = [recurrent.from_modes(one, *bases)
          for one in (student, teacher, Mode(feedback, 0 * feedback, 0 * feedback))]
  flow = recurrent.mode_flow(rule, student, teacher, **options_of(rule, options, feedback))
  for horizon in (None, 120):
    update = recurrent.network_update(rule, *made[:2], horizon=horizon,
                                      **options_of(rule, options, made[2].a))
    for got, want in zip(update, recurrent.from_modes(Mode(*flow[:2], 0 * flow[0]), *bases)[:2]):
      np.testing.assert_allclose(-got, want, atol=1e-10)
    np.testing.assert_allclose(-update.w, bases[1] * flow.w[None] @ bases[1].T, atol=1e-10)
    np.testing.assert_allclose(recurrent.network_loss(*made[:2], horizon),
                               recurrent.mode_loss(student, teacher).sum(), rtol=1e-10)
  for got, want in zip(recurrent.to_modes(made[0], *bases), student):
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.slow
def test_eprop_of_modes_over_many_units():
  """It is rflo with the mean of w for a leak, but for what a random basis leaves."""
  rng = np.random.RandomState(0)
  size = 60
  bases = [np.linalg.qr(rng.randn(size, size))[0] for _ in range(3)]
  w = rng.uniform(0.1, 0.8, size)
  student, teacher, feedback = (recurrent.from_modes(
      Mode(rng.randn(size), rng.randn(size), of), *bases) for of in (w, w, 0 * w))
  update = lambda rule, **more: recurrent.network_update(
      rule, student, teacher, feedback=feedback.a, **more).b
  apart = lambda leak: np.linalg.norm(update('eprop') - update('rflo', leak=leak)) / np.linalg.norm(
      update('eprop'))
  assert apart(float(w.mean())) < 0.05 < min(apart(float(w.mean()) + off) for off in (-0.1, 0.1))


@pytest.mark.parametrize('rule, options', RULES, ids=str)
def test_updates_are_those_of_an_explicit_network(rule, options):
  """Summed over impulses, at the horizon; and of a long one where it does not end."""
  rng = np.random.RandomState(1)
  student, teacher = network(rng), network(rng, size=5)
  options = options_of(rule, options, rng.randn(OUTPUTS, SIZE))
  for horizon, steps in ((HORIZON, HORIZON), (None, 150)):
    want = explicit(rule, options, student, teacher, impulses(steps, INPUTS))
    got = recurrent.network_update(rule, student, teacher, horizon=horizon, **options)
    for one, other in zip(got, want):
      np.testing.assert_allclose(one, other.sum(0), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('rule, options', [
    ('bptt', {}), ('tbptt', {'steps': HORIZON}), ('tbptt', {'steps': HORIZON + 5})])
def test_gradients_of_an_unrolled_network(rule, options):
  """By JAX; fewer terms are another thing."""
  rng = np.random.RandomState(2)
  student, teacher, x = network(rng), network(rng), jnp.asarray(impulses(HORIZON, INPUTS))

  def loss(net):
    output = lambda net, h: h @ net.a.T
    ours = theirs = jnp.zeros((len(x), SIZE))
    for t in range(HORIZON):
      ours = ours @ net.w.T + x[:, t] @ net.b.T
      theirs = theirs @ teacher.w.T + x[:, t] @ teacher.b.T
    return jnp.sum((output(net, ours) - output(teacher, theirs))**2) / 2

  value, want = jax.value_and_grad(loss)(Network(*map(jnp.asarray, student)))
  np.testing.assert_allclose(recurrent.network_loss(student, teacher, HORIZON), value, rtol=1e-12)
  update = lambda rule, **more: recurrent.network_update(rule, student, teacher, horizon=HORIZON,
                                                         **more)
  less = update('tbptt', steps=HORIZON - 2)  # The first step has no state, nor W a term there.
  for name, one in update(rule, **options)._asdict().items():
    other = getattr(want, name)
    np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)
    assert (np.abs(getattr(less, name) - other).max() > 1e-3) == (name != 'a')


def test_symmetric_rflo_without_leak_is_one_step():
  """And eprop of a diagonal W is bptt."""
  rng = np.random.RandomState(3)
  student, teacher = network(rng), network(rng)
  update = lambda rule, **more: recurrent.network_update(rule, student, teacher, horizon=HORIZON,
                                                         **more)
  for one, other in zip(update('rflo', feedback='symmetric'), update('tbptt', steps=1)):
    np.testing.assert_allclose(one, other, atol=1e-13)
  student = student._replace(w=np.diag(rng.uniform(-0.8, 0.8, SIZE)))
  for one, other in zip(update('eprop', feedback='symmetric'), update('bptt')):
    np.testing.assert_allclose(one, other, atol=1e-13)


@pytest.mark.parametrize('rule, options', RULES, ids=str)
def test_samples_scatter_about_the_expectation(rule, options):
  """White noise, 20000 sequences: within five standard errors, in all entries."""
  rng = np.random.RandomState(4)
  student, teacher = network(rng), network(rng)
  options = options_of(rule, options, rng.randn(OUTPUTS, SIZE))
  found = explicit(rule, options, student, teacher, rng.randn(20000, HORIZON, INPUTS))
  want = recurrent.network_update(rule, student, teacher, horizon=HORIZON, **options)
  for one, other in zip(found, want):
    assert (np.abs(one.mean(0) - other) < 5 * one.std(0) / np.sqrt(len(one))).all()


def learned(rule, outputs, **options):
  """What a small random student of a larger teacher does in 500 updates."""
  rng = np.random.RandomState(outputs)
  start = Network(*(0.3 * one for one in network(rng, 8, outputs, 5)))
  teacher, feedback = network(rng, 10, outputs, 5), rng.randn(outputs, 8)
  found = recurrent.learn(rule, start, teacher, learning_rate=0.005, updates=500, horizon=9,
                          **options_of(rule, options, feedback))
  return start, feedback, found


@pytest.mark.parametrize('outputs', [1, 2, 3])
@pytest.mark.some(3)
def test_rank_of_what_is_learned(outputs):
  """rflo changes B and W by as many directions as there are outputs, those of R; bptt by all."""
  values = lambda change: np.linalg.svd(change, compute_uv=False)
  start, feedback, found = learned('rflo', outputs, leak=0.5)
  within = np.linalg.pinv(feedback) @ feedback
  for name in ('w', 'b'):
    change = np.asarray(getattr(found.network, name) - getattr(start, name))
    size = values(change)
    bound = recurrent.rank_bound('rflo', change.shape, outputs)
    assert bound == outputs and size[outputs:].max() < 1e-13 < 1e-3 < size[outputs - 1]
    np.testing.assert_allclose(change, within @ change, atol=1e-13)
    for rule in ('bptt', 'eprop'):
      other_start, _, other = learned(rule, outputs)
      full = values(np.asarray(getattr(other.network, name) - getattr(other_start, name)))
      assert recurrent.rank_bound(rule, change.shape, outputs) == len(full) == min(change.shape)
      assert full[-1] > 1e-9
  assert recurrent.rank_bound('rflo', (8, 5), outputs, fixed=False) == 5
  assert found.loss[-1] < found.loss[0]


@pytest.mark.slow
@pytest.mark.parametrize('rule, options', RULES, ids=str)
def test_learning_without_end(rule, options):
  """One update of sequences without end, and in float32."""
  rng = np.random.RandomState(6)
  start, teacher, feedback = network(rng), network(rng), rng.randn(OUTPUTS, SIZE)
  options = options_of(rule, options, feedback)
  found = recurrent.learn(rule, start, teacher, learning_rate=0.01, updates=1, **options)
  update = recurrent.network_update(rule, start, teacher, **options)
  for before, after, change in zip(start, found.network, update):
    np.testing.assert_allclose(after, before - 0.01 * change, rtol=1e-12, atol=1e-13)
  with jax.enable_x64(False):
    single = recurrent.learn(rule, start, teacher, learning_rate=0.01, updates=1, **options)
  assert single.loss.dtype == single.network.w.dtype == np.float32
  for one, other in zip(single.network, found.network):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_learning_is_a_loop_of_updates():
  """Losses before each update and at the end; the course at every fifth."""
  rng = np.random.RandomState(5)
  start, teacher, feedback = network(rng), network(rng), rng.randn(OUTPUTS, SIZE)
  options = {'feedback': feedback, 'leak': 0.4, 'horizon': HORIZON}
  found = recurrent.learn('rflo', start, teacher, learning_rate=0.002, updates=10, every=5,
                          **options)
  now = start
  for update in range(11):
    np.testing.assert_allclose(found.loss[update], recurrent.network_loss(now, teacher, HORIZON),
                               rtol=1e-12)
    if not update % 5:
      for one, other in zip(found.course, now):
        np.testing.assert_allclose(one[update // 5], other, rtol=1e-12, atol=1e-13)
    end, change = now, recurrent.network_update('rflo', now, teacher, **options)
    now = Network(*(one - 0.002 * d for one, d in zip(now, change)))
  for one, other in zip(found.network, end):
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)
  assert found.loss.shape == (11,) and found.course.w.shape == (3, SIZE, SIZE)
