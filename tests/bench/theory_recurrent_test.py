"""Linear recurrent networks: plugged rules, short runs, and evidence that is wrong."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory import recurrent, recurrent_modes
from bioprop.bench.theory import recurrent_networks as networks
from bioprop.bench.theory.claim import Claim, Field, Series, draw
from bioprop.bench.theory.experiments import run
from bioprop.errors import ConfigError, TheoryError
from bioprop.theory.recurrent import Linearised, Mode, Network

CASES = ({'rule': 'bptt'}, {'rule': 'tbptt', 'steps': 1}, {'rule': 'rflo', 'leak': 0.5},
         {'rule': 'eprop'})
MORE = (*CASES, {'rule': 'tbptt', 'steps': 3}, {'rule': 'rflo'})


def small():
  """Two modes, few starts."""
  config = config_lib.base('recurrent')
  config.modes = ((1.0, 1.0, 0.6), (1.0, 1.0, 0.3))
  config.cases, config.widths, config.seeds, config.points = CASES, (2, 4), 4, 300
  config.learning_rate, config.steps, config.rates = 0.02, 1500, (0.06, 0.02)
  config.horizons, config.close = (8, 24), 0.06
  return config


def network(rng, size=5, outputs=3, inputs=4):
  """At random."""
  return Network(*(jnp.asarray(0.3 * rng.randn(*shape))
                   for shape in ((outputs, size), (size, inputs), (size, size))))


@pytest.mark.slow
@pytest.mark.parametrize('case', MORE, ids=networks.label)
def test_plugged_rules_are_those_of_theory(case, x64):
  """On impulses, of a network that nothing is aligned in; and of samples their own."""
  del x64
  rng = np.random.RandomState(0)
  student, teacher, feedback = network(rng), network(rng, size=6), jnp.asarray(rng.randn(3, 5))
  rule = jax.jit(networks.plugged(case, student))
  loss, found = rule(student, feedback, teacher, jnp.asarray(networks.impulses(7, 4)))
  want_loss, want = networks.predicted(case, 7)(student, feedback, teacher, None)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-12)
  for one, other in zip(found, want):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
  x = rng.randn(1, 7, 4)
  states = [[np.zeros(len(net.w))] for net in (student, teacher)]
  for of, net in zip(states, (student, teacher)):
    for t in range(7):
      of.append(np.asarray(net.w) @ of[-1] + np.asarray(net.b) @ x[0, t])
  ours, theirs = (np.asarray(net.a) @ of[-1] for net, of in zip((student, teacher), states))
  loss, found = rule(student, feedback, teacher, jnp.asarray(x))
  np.testing.assert_allclose(loss, np.sum((ours - theirs)**2) / 2, rtol=1e-12)
  np.testing.assert_allclose(found.a, np.outer(ours - theirs, states[0][-1]), rtol=1e-10)


@pytest.mark.slow
def test_training(x64):
  """By expectation the loop written out; by samples near it, another for each network."""
  del x64
  rng = np.random.RandomState(1)
  start, teacher = network(rng), network(rng)
  starts = Network(*(jnp.stack([one] * 3) for one in start))
  case, feedback = {'rule': 'rflo', 'leak': 0.5}, jnp.asarray(rng.randn(3, 3, 5))
  go = lambda **more: networks.train(networks.plugged(case, starts), starts, feedback, teacher,
                                     horizon=6, learning_rate=0.02, updates=20, every=10, **more)
  found, rule = go(), jax.jit(networks.predicted(case, 6))
  for seed in range(3):
    now = start
    for update in range(20):
      loss, change = rule(now, feedback[seed], teacher, None)
      np.testing.assert_allclose(found.loss[seed, update], loss, rtol=1e-10)
      now = Network(*(one - 0.02 * d for one, d in zip(now, change)))
      if update == 9:
        np.testing.assert_allclose(found.course.w[seed, 1], now.w, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.network.w[seed], now.w, rtol=1e-9, atol=1e-12)
  assert found.loss.shape == (3, 21) and found.course.w.shape == (3, 3, 5, 5)
  drawn = go(sampled=200)
  np.testing.assert_allclose(drawn.loss[:, -1], found.loss[:, -1], rtol=0.2)
  assert np.ptp(drawn.loss[:, 0]) > 1e-6 > np.ptp(found.loss[:, 0])


@pytest.mark.slow
def test_single_modes(x64):
  """The flow and its Jacobian, of numbers that are known."""
  del x64
  config, teacher = small(), Mode(1.0, 1.0, 0.6)
  at = Mode(np.array([0.0, 0.5]), np.array([0.0, 0.5]), np.array([0.5, 0.0]))
  flow = recurrent_modes._flow(config, CASES[2], at, np.array([2.0, 2.0]), teacher)
  # b' = a^ c* / (1 - leak w*); at w = 0 a' = b (c* - c) and b' = a^ (c* / (1 - leak w*) - c).
  np.testing.assert_allclose(flow[:, 0], [0, 2 / 0.7, 0], atol=1e-9)
  np.testing.assert_allclose(flow[:2, 1], [0.375, 2 * (1 / 0.7 - 0.25)], atol=1e-9)
  jacobian = recurrent_modes._jacobian(config, CASES[0], Mode(*(one[:1] for one in at)), 2.0,
                                       teacher)[0]
  want = np.zeros((3, 3))
  want[0, 1] = want[1, 0] = 1 / 0.7
  np.testing.assert_allclose(jacobian, want, atol=1e-8)


def test_numbers_of_a_matrix():
  """Trace and principal minors, and what a loss decays by."""
  one = np.diag([0.0, -2.0, -3.0]) + np.triu(np.ones((3, 3)), 1)
  trace, determinant = recurrent_modes._trace_determinant(one[None])
  np.testing.assert_allclose([trace[0], determinant[0]], [-5, 6])
  steps = np.arange(4000)
  loss = (1e-3 * (1 - 0.01 * 1.5)**steps + 1e-3 * (1 - 0.01 * 9)**steps)**2
  np.testing.assert_allclose(recurrent_modes._decay(loss, 0.01), 1.5, rtol=1e-3)
  assert np.isnan(recurrent_modes._decay(np.append(loss, np.nan), 0.01))


def course(loss, w=0.0):
  """Networks whose losses end so, [S]."""
  loss = np.asarray(loss, float)
  matrices = np.broadcast_to(w, (len(loss), 3, 3))
  made = Network(np.zeros((len(loss), 1, 3)), np.zeros((len(loss), 3, 1)), matrices)
  return networks.Course(np.stack([np.ones(len(loss)), loss], 1), made, made)


def solved(bptt, rflo):
  """One learning rate of four starts."""
  ends = lambda count: (course([1e-5] * count + [np.nan] * (4 - count)),) * 2
  return {'bptt': ends(bptt), 'tbptt': ends(4), 'rflo': ends(rflo), 'eprop': ends(rflo)}


def test_shares():
  """Failures at all rates, or at large ones alone; at none; of bptt."""
  judged = lambda large, small: [
      one(small_config, {0.1: {0.02: solved(*small[0]), 0.06: solved(*small[1])},
                         0.3: {0.02: solved(*large[0]), 0.06: solved(*large[1])}})
      for one in (recurrent._share, recurrent._small_starts)]
  small_config = small()
  agree = lambda *both: tuple(claim.agrees for claim in judged(*both))
  some, none = [(4, 2), (4, 1)], [(4, 4), (4, 2)]
  assert agree(some, none) == (True, True)
  assert agree(none, some) == (False, False)
  assert agree([(3, 2), (4, 1)], [(4, 4), (4, 4)]) == (False, False)
  assert agree(some, [(3, 4), (4, 2)]) == (True, False)
  claim = judged(some, none)[0]
  assert claim.measured == claim.predicted == (
      'rate 0.02: bptt 4, tbptt 4, rflo 2, eprop 2; rate 0.06: bptt 4, tbptt 4, rflo 1, eprop 1')


def test_exact():
  """What diverges is left out, what differs is found."""
  good = (course([0.1, np.nan]), course([0.1, 0.2]))
  assert recurrent._exact(small(), {'bptt': good}).agrees
  assert not recurrent._exact(small(), {'bptt': (course([0.1, 0.1]), good[1])}).agrees
  lost = {'bptt': good, 'rflo': (course([np.nan]), course([0.1]))}
  assert not recurrent._exact(small(), lost).agrees
  lost['rflo'] = (course([0.1], np.nan), course([0.1]))
  with pytest.raises(TheoryError, match='1 of 1 networks of 4 units diverge under rflo.*0.01'):
    recurrent._refuse_lost(small(), lost)


def test_ranks():
  """Another rank than the bound's, and one outside of the feedback's rows."""
  first = np.eye(3)[:1]
  students = recurrent.Students(course([0, 0]).network, np.stack([first] * 2), None, None, None)
  full = np.diag([1.0, 0.1, 0.01])
  within, apart = first.T @ np.ones((1, 3)), np.eye(3)[1:2].T @ np.ones((1, 3))
  judged = lambda rflo, bptt=full: recurrent._ranks(students, {
      rule: (course([0, 0], w),) * 2 for rule, w in (('bptt', bptt), ('rflo', rflo))}).agrees
  assert judged(within)
  assert not judged(apart) and not judged(full) and not judged(within, bptt=within)
  spectra = lambda *tails: recurrent._spectra(students, {
      rule: (course([0, 0], np.diag([1.0, tail, 0.0])),) * 2
      for rule, tail in zip(('bptt', 'tbptt', 'rflo', 'eprop'), tails)}).agrees
  assert spectra(0.3, 0.1, 0.0, 0.2) and not spectra(0.2, 0.1, 0.0, 0.3)


@pytest.mark.slow
def test_wrong_theories_are_found(monkeypatch):
  """Rates that are off, and a point that is said to be stable."""
  right = recurrent_modes.recurrent.linearised
  config, cases = small(), {case['rule']: case for case in CASES}

  def wrong(*args, **kwargs):
    found = right(*args, **kwargs)
    return Linearised(found.trace, found.determinant, found.eigenvalues, 1.2 * found.rate,
                      ~found.stable)

  with jax.enable_x64(True):
    assert recurrent_modes._stability(config, cases).agrees
    monkeypatch.setattr(recurrent_modes.recurrent, 'linearised', wrong)
    assert not recurrent_modes._stability(config, cases).agrees


@pytest.mark.parametrize('name, value, told', [
    ('cases', CASES[:3], "one case of each rule.*has \\['bptt', 'tbptt', 'rflo'\\]"),
    ('cases', ({}, *CASES[1:]), 'one case of each rule'),
    ('widths', (4,), 'are to be two'), ('widths', (1, 4), 'no width less than the modes, 2'),
    ('modes', ((1.0, 1.0, 0.6),), 'two or more'), ('starts', (0.1,), 'two or more')])
def test_what_cannot_be_compared_is_refused(name, value, told):
  """Before anything is trained."""
  config = small()
  config[name] = value
  with pytest.raises(ConfigError, match=told):
    run(config)


@pytest.mark.slow
def test_a_figure_of_panels(tmp_path):
  """One for each field, of flows, lines and points."""
  axis = np.linspace(-1, 1, 5)
  flow = np.stack(np.meshgrid(axis, axis))
  panel = Field('one', axis, axis, flow, [Series('line', axis, axis, axis[:3],
                                                 measured_x=axis[:3])])
  claim = Claim('a', 'Claim A.', '1', '1', True, (), ('x', 'y'), fields=[panel] * 2)
  # What is drawn shows: without points, in another flow, and in one panel more.
  others = (panel._replace(series=[panel.series[0]._replace(measured=None)]),
            panel._replace(flow=flow[::-1]))
  seen = []
  for number, fields in enumerate(([panel] * 2, *([panel, other] for other in others),
                                   [panel] * 3)):
    draw(claim._replace(fields=fields), tmp_path / f'{number}.png')
    seen.append((tmp_path / f'{number}.png').read_bytes())
  assert len(set(seen)) == 4 and all(one.startswith(b'\x89PNG') for one in seen)


@pytest.mark.slow
def test_experiment():
  """All claims in their order; what is exact is, and an unaligned student is none of modes."""
  claims = {one.name: one for one in run(small())}
  assert list(claims) == ['modes', 'manifolds', 'stability', 'rates', 'detour', 'exact',
                          'unaligned', 'rank', 'spectrum', 'share', 'small_starts']
  for name in ('modes', 'manifolds', 'stability', 'rates', 'detour', 'exact', 'rank'):
    assert claims[name].agrees, claims[name]
  assert not claims['unaligned'].agrees
  assert len(claims['manifolds'].fields) == 4
