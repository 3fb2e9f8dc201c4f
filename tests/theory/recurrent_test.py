"""Linear recurrent networks: sums written out, explicit networks, and numbers of other sources."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.errors import TheoryError
from bioprop.theory import recurrent
from bioprop.theory.recurrent import Mode, Network

pytestmark = pytest.mark.usefixtures('x64')

# Options of each rule, with 'mode' where the feedback is to be numbers.
RULES = [('bptt', {}), ('tbptt', {'steps': 1}), ('tbptt', {'steps': 3}),
         ('rflo', {'feedback': 'mode', 'leak': 0.5}), ('rflo', {'feedback': 'mode'}),
         ('rflo', {'feedback': 'symmetric', 'leak': -0.3}), ('eprop', {'feedback': 'mode'}),
         ('eprop', {'feedback': 'symmetric'})]
TEACHER = Mode(1.0, 1.0, 0.6)


def orthonormal(rng, rows, columns):
  """Random columns."""
  return np.linalg.qr(rng.randn(rows, columns))[0]


def modes(rng, count, size=1.0):
  """At random, stable."""
  return Mode(size * rng.randn(count), size * rng.randn(count), rng.uniform(-0.7, 0.7, count))


def given(options, feedback):
  """The options with this feedback where they want numbers."""
  return {**options, **({'feedback': feedback} if options.get('feedback') == 'mode' else {})}


def series(rule, options, student, teacher, feedback, terms=400):
  """Loss and derivatives of one mode as sums over E_k = c w^k - c* w*^k."""
  (a, b, w), (a_, b_, w_) = student, teacher
  k = np.arange(terms)
  error = a * b * w**k - a_ * b_ * w_**k
  f = feedback if options.get('feedback') == 'mode' else a
  v = options.get('leak', 0.0) if rule == 'rflo' else w
  credit = f * v**k * (k < options.get('steps', terms))
  later = [np.sum(error[s + 1:] * b * w**k[:terms - s - 1]) for s in k]
  return np.sum(error**2) / 2, -np.array([np.sum(error * b * w**k), np.sum(credit * error),
                                         np.sum(credit * later)])


@pytest.mark.parametrize('rule, options', RULES, ids=str)
def test_modes_are_sums_over_the_past(rule, options):
  """Loss and flow of several modes at once."""
  rng = np.random.RandomState(0)
  student, teacher, feedback = modes(rng, 5), modes(rng, 5), rng.randn(5)
  flow = recurrent.mode_flow(rule, student, teacher, **given(options, feedback))
  loss = recurrent.mode_loss(student, teacher)
  for at in range(5):
    want = series(rule, options, *(Mode(*(x[at] for x in m)) for m in (student, teacher)),
                  feedback[at])
    np.testing.assert_allclose(loss[at], want[0], rtol=1e-12)
    np.testing.assert_allclose([one[at] for one in flow], want[1], rtol=1e-10, atol=1e-13)
  close = Mode(TEACHER.a + 1e-9, TEACHER.b, TEACHER.w - 1e-9)
  np.testing.assert_allclose(recurrent.mode_loss(close, TEACHER),
                             series('bptt', {}, close, TEACHER, 0)[0], rtol=1e-5)


def test_bptt_is_the_gradient_and_others_are_not():
  """Of the loss, by JAX; rflo with its own weights in place of the credit is bptt."""
  student, teacher = Mode(0.7, -0.4, 0.3), Mode(-1.1, 0.8, -0.5)
  gradient = jax.grad(lambda m: recurrent.mode_loss(Mode(*m), teacher))(
      tuple(map(jnp.float64, student)))
  flow = lambda rule, **more: np.array(recurrent.mode_flow(rule, student, teacher, **more))
  bptt = flow('bptt')
  np.testing.assert_allclose(bptt, -np.array(gradient), rtol=1e-12)
  np.testing.assert_allclose(flow('rflo', feedback=0.7, leak=0.3), bptt, rtol=1e-12)
  np.testing.assert_allclose(flow('eprop', feedback='symmetric'), bptt, rtol=1e-12)
  np.testing.assert_allclose(flow('tbptt', steps=80), bptt, rtol=1e-12)
  np.testing.assert_allclose(flow('tbptt', steps=1), flow('rflo', feedback='symmetric'), rtol=1e-12)
  assert abs(flow('tbptt', steps=1)[2] - bptt[2]) > 0.01


def numeric(rule, at, teacher, options):
  """The Jacobian of the flow."""
  flow = lambda m: jnp.stack(recurrent.mode_flow(rule, Mode(*m), teacher, **options))
  return np.asarray(jax.jacfwd(flow)(jnp.array([*map(float, at)])))


@pytest.mark.parametrize('rule, options', RULES, ids=str)
def test_closed_forms_are_those_of_the_jacobian(rule, options):
  """Trace, determinant and eigenvalues on the manifold, where all rules are at rest."""
  rng = np.random.RandomState(1)
  for _ in range(6):
    teacher = Mode(*(float(one[0]) for one in modes(rng, 1)))
    s, chosen = rng.randn() + 0.1, given(options, rng.randn())
    at = recurrent.manifold(teacher, s)
    np.testing.assert_allclose(np.array(recurrent.mode_flow(rule, at, teacher, **chosen)), 0,
                               atol=1e-13)
    found, jacobian = recurrent.linearised(rule, teacher, s, **chosen), numeric(
        rule, at, teacher, chosen)
    minors = sum(np.linalg.det(jacobian[np.ix_(pair, pair)]) for pair in ([0, 1], [0, 2], [1, 2]))
    scale = np.abs(jacobian).max()
    np.testing.assert_allclose(found.trace, np.trace(jacobian), rtol=1e-8, atol=1e-8 * scale)
    np.testing.assert_allclose(found.determinant, minors, rtol=1e-8, atol=1e-8 * scale**2)
    values = np.linalg.eigvals(jacobian)
    values = np.delete(values, np.abs(values).argmin())
    np.testing.assert_allclose(np.sort_complex(found.eigenvalues), np.sort_complex(values),
                               rtol=1e-6, atol=1e-8 * scale)
    assert found.stable == (values.real < 0).all()
    np.testing.assert_allclose(found.rate, -values.real.max(), rtol=1e-6, atol=1e-8 * scale)


def test_stable_where_feedback_and_readout_agree():
  """Always if a^ s > 0; if not, only where b^2 < |a^ s|, and rarely."""
  rng = np.random.RandomState(2)
  teacher, s, feedback = modes(rng, 4000), rng.randn(4000), rng.randn(4000)
  found = recurrent.linearised('rflo', teacher, s, feedback=feedback, leak=0.5)
  same = feedback * s > 0
  assert found.stable[same].all()
  odd = found.stable & ~same
  b = teacher.a * teacher.b / s
  assert 0 < odd.sum() < 0.02 * (~same).sum()
  assert (b**2 < np.abs(feedback * s))[odd].all()


def test_rates_over_the_manifold():
  """bptt is slowest in the middle and the same at both ends; rflo is faster at one end."""
  teacher, p, q = Mode(2.0, -0.9, 0.6), 0.36, 0.3
  c, far = 1.8, 1e4
  rate = lambda s, rule='bptt', **more: recurrent.linearised(
      rule, teacher, np.asarray(s, float), **more).rate
  s = np.geomspace(0.05, 40, 2001)
  np.testing.assert_allclose(s[rate(s).argmin()], np.sqrt(c), rtol=0.01)
  np.testing.assert_allclose(rate([far, 1 / far, -far]), c**2 / (1 - p)**3, rtol=1e-3)
  rflo = lambda s: rate(s, 'rflo', feedback=0.7, leak=0.5)
  np.testing.assert_allclose(rflo(1 / far), far * 0.7 * c**2 / ((1 - q)**2 * (1 - p)), rtol=1e-3)
  np.testing.assert_allclose(rflo(far), 0.7 * c**2 / (far * (1 - q) * (1 - p)**2), rtol=1e-3)


@pytest.mark.parametrize('rule, options, want', [
    ('bptt', {}, lambda c, both: c / (1 - both)),
    ('tbptt', {'steps': 1}, lambda c, both: c / np.sqrt(1 - both)),
    ('tbptt', {'steps': 3}, lambda c, both: c * np.sqrt(1 + both + both**2) / np.sqrt(1 - both)),
    ('rflo', {'feedback': 'symmetric', 'leak': 0.5},
     lambda c, both: c / np.sqrt((1 - 0.3) * (1 - both)))], ids=range(4))
def test_the_saddle(rule, options, want):
  """The eigenvalues of equations.md, and those of the Jacobian; fixed feedback has none."""
  for w in (-0.5, 0.0, 0.4):
    found = recurrent.saddle(rule, Mode(2.0, 0.5, 0.6), w, **options)
    np.testing.assert_allclose(found, want(1.0, 0.6 * w) * np.array([-1, 0, 1]), rtol=1e-12)
    jacobian = numeric(rule, (0, 0, w), Mode(2.0, 0.5, 0.6), options)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(jacobian).real), found, atol=1e-12)
    moved = recurrent.mode_flow('rflo', Mode(0.0, 0.0, w), TEACHER, feedback=-2.0, leak=0.5)
    np.testing.assert_allclose(np.array(moved), [0, -2.0 / (1 - 0.3), 0], rtol=1e-12)


TIMES = np.linspace(0, 60, 301)


def runge_kutta(rule, start, teacher, times, **options):
  """In small steps of the same length."""
  flow = lambda m: np.array(recurrent.mode_flow(rule, Mode(*m), teacher, **options))
  state, step = np.array(start, float), (times[1] - times[0]) / 10
  for _ in range(10 * (len(times) - 1)):
    one = flow(state)
    two = flow(state + step / 2 * one)
    three = flow(state + step / 2 * two)
    state = state + step / 6 * (one + 2 * two + 2 * three + flow(state + step * three))
  return state


@pytest.mark.parametrize('rule, options', RULES, ids=str)
def test_trajectories(rule, options):
  """As by Runge and Kutta, and each mode as by itself."""
  options, times = given(options, np.array([0.8, 1.5])), TIMES[:21]
  start, teacher = Mode([0.5, 0.2], [0.5, 0.4], [0.2, -0.1]), Mode(*np.array([TEACHER] * 2).T)
  found = recurrent.trajectory(rule, start, teacher, times, **options)
  want = runge_kutta(rule, start, teacher, times, **options)
  np.testing.assert_allclose([one[-1] for one in found.modes], want, atol=1e-6)
  np.testing.assert_allclose([one[0] for one in found.modes], start, rtol=1e-12)
  np.testing.assert_allclose(found.loss, recurrent.mode_loss(found.modes, teacher), rtol=1e-12)
  assert found.loss.shape == (21, 2) and np.isinf(found.escaped).all()


@pytest.mark.parametrize('start, feedback, end', [
    ((0.5, 0.5, 0.2), -1.0, (-0.62, -1.61, 0.60)), ((0.5, 0.5, 0.2), 1.0, (0.92, 1.08, 0.60)),
    ((1.0, 1.0, 0.599), -1.0, (-0.50, -2.00, 0.60)), ((1.000001, 1.0, 0.6), -1.0, None)])
def test_where_rflo_goes(start, feedback, end):
  """The ends that equations.md has, of another program; the last one diverges."""
  found = recurrent.trajectory('rflo', Mode(*start), TEACHER, 5 * TIMES, feedback=feedback,
                               leak=0.5)
  if end:
    np.testing.assert_allclose([one[-1] for one in found.modes], end, atol=0.005)
    assert np.isinf(found.escaped)
  else:
    assert found.escaped < 5 * TIMES[-1]
    after = found.times > found.escaped
    assert np.isnan(found.modes.w[after]).all() and np.isnan(found.loss[after]).all()
    assert np.isfinite(found.loss[~after]).all()


def test_what_is_conserved():
  """a^2 - b^2 under bptt, a^ a - b^2 / 2 under eprop; neither under rflo."""
  course = lambda rule, **more: recurrent.trajectory(rule, Mode(0.5, 0.3, 0.1), TEACHER, TIMES,
                                                     **more).modes
  drift = lambda value: np.abs(value - value[0]).max()
  a, b, _ = course('bptt')
  assert drift(a**2 - b**2) < 1e-7 < 0.1 < drift(a**2)
  a, b, _ = course('eprop', feedback=0.7)
  assert drift(0.7 * a - b**2 / 2) < 1e-7 < 0.1 < drift(a)
  a, b, _ = course('rflo', feedback=0.7, leak=0.2)
  assert min(drift(a**2 - b**2), drift(0.7 * a - b**2 / 2)) > 0.01


MODE, ONES = Mode(1.0, 1.0, 0.5), Network(np.ones((1, 2)), np.ones((2, 1)), np.eye(2) / 2)
BASES = (np.eye(2), np.eye(2), np.eye(2))
BAD, PAIR = Mode(np.ones(2), np.ones(3), 0.5), Mode(*np.full((3, 2), 0.5))


@pytest.mark.parametrize('call, match', [
    (lambda: recurrent.mode_flow('bppt', MODE, MODE), 'none of bptt, tbptt, rflo, eprop'),
    (lambda: recurrent.mode_flow('tbptt', MODE, MODE), 'steps=None must be a whole number'),
    (lambda: recurrent.mode_flow('tbptt', MODE, MODE, steps=0), 'steps=0'),
    (lambda: recurrent.mode_flow('bptt', MODE, MODE, steps=2), 'only tbptt can have it'),
    (lambda: recurrent.mode_flow('eprop', MODE, MODE, leak=0.5), 'only rflo can have it'),
    (lambda: recurrent.mode_flow('tbptt', MODE, MODE, steps=1, feedback=1.0), 'rflo and eprop'),
    (lambda: recurrent.mode_flow('rflo', MODE, MODE, feedback=1.0, leak=1.0), 'leak=1.0 stands'),
    (lambda: recurrent.mode_flow('rflo', MODE, MODE), "feedback='symmetric'"),
    (lambda: recurrent.mode_flow('rflo', MODE, MODE, feedback='random'), "feedback='random'"),
    (lambda: recurrent.mode_flow('rflo', MODE, MODE, feedback=np.nan), 'infinite or NaN'),
    (lambda: recurrent.mode_flow('rflo', MODE, MODE, feedback={}), 'cannot be read as numbers'),
    (lambda: recurrent.mode_loss((1.0, 2.0), MODE), r'student is \(1.0, 2.0\)'),
    (lambda: recurrent.mode_loss(MODE, Mode(1.0, 1.0, -1.0)), 'w of the teacher is -1'),
    (lambda: recurrent.mode_loss(BAD, MODE), r'student \(2,\) \(3,\) \(\), teacher \(\)'),
    (lambda: recurrent.mode_flow('rflo', PAIR, MODE, feedback=np.ones(3)), r'feedback \(3,\)\.'),
    (lambda: recurrent.trajectory('rflo', PAIR, MODE, [0, 1], feedback=np.ones(3)), 'not match'),
    (lambda: recurrent.network_loss(1.0, ONES), r'student has matrices of shapes \[\]'),
    (lambda: recurrent.to_modes(ONES, *BASES), r'A, B and W have shapes \[\(1, 2\)'),
    (lambda: recurrent.to_modes(ONES, np.ones(2), *BASES[1:]), 'bases'),
    (lambda: recurrent.manifold(PAIR, np.ones(3)), r's \(3,\)\.'),
    (lambda: recurrent.linearised('rflo', MODE, np.ones(2), feedback=np.ones(3)), 'not match'),
    (lambda: recurrent.saddle('bptt', PAIR, np.zeros(3)), 'not match'),
    (lambda: recurrent.trajectory('bptt', MODE, MODE, [0.0, 0.0]), 'times are to increase'),
    (lambda: recurrent.manifold(MODE, 0.0), 's=0 is not on the manifold'),
    (lambda: recurrent.manifold(Mode(0.0, 1.0, 0.5), 1.0), 'never seen'),
    (lambda: recurrent.saddle('rflo', MODE, 0.0, feedback=1.0), 'at rest nowhere'),
    (lambda: recurrent.network_loss(ONES, ONES._replace(a=np.ones((2, 1)))), 'teacher has matri'),
    (lambda: recurrent.network_loss(ONES._replace(w=np.eye(3)), ONES), 'student has matrices'),
    (lambda: recurrent.network_loss(ONES, ONES._replace(b=np.ones((2, 3)))), 'same outputs'),
    (lambda: recurrent.network_loss(ONES._replace(w=np.eye(2)), ONES), 'spectral radius 1, and'),
    (lambda: recurrent.network_loss(ONES, ONES, horizon=0), 'horizon=0'),
    (lambda: recurrent.network_update('rflo', ONES, ONES, feedback=np.ones((2, 1))), 'shaped like'),
    (lambda: recurrent.learn('bptt', ONES, ONES, learning_rate=0.0, updates=1), 'learning_rate=0'),
    (lambda: recurrent.learn('bptt', ONES, ONES, learning_rate=0.1, updates=7, every=3),
     'updates=6'),
    (lambda: recurrent.learn('bptt', ONES._replace(a=2 * ONES.a), ONES, learning_rate=1e3,
                             updates=30, horizon=9), 'learning_rate=250'),
    (lambda: recurrent.from_modes(MODE, *BASES), 'and one column for each'),
    (lambda: recurrent.from_modes(Mode(*np.ones((2, 2)), np.zeros(2)), *BASES[:2], 2 * BASES[2]),
     'of inputs are not orthonormal'),
    (lambda: recurrent.rank_bound('rflo', (2, 0), 1), 'shape=0'),
    (lambda: recurrent.rank_bound('fa', (2, 2), 1), "rule='fa' is none"),
], ids=range(39))
def test_errors(call, match):
  """What there is no theory of, in one paragraph with the line to type."""
  with pytest.raises(TheoryError, match=match) as caught:
    call()
  assert '\n' not in str(caught.value) and str(caught.value).endswith(('.', '?'))
