"""Theory beside networks: claims that hold, claims that do not, and the command."""
import pathlib
import runpy

import numpy as np
import pytest

from bioprop import theory
from bioprop.bench import wide
from bioprop.bench.theory import config as config_lib
from bioprop.bench.theory import dynamics
from bioprop.bench.theory.claim import Claim, Series, draw, table
from bioprop.bench.theory.claims import CLAIMS
from bioprop.bench.theory.dynamics import Course, Outcome
from bioprop.bench.theory.experiments import run
from bioprop.errors import ConfigError, TheoryError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def courses(end, size=3, steps=5):
  """Outputs that go to `end` of the targets +-1, kernels that go to theirs, with `end`."""
  y = np.resize([1.0, -1.0], size)
  shares = np.linspace(0, end, steps)
  kernels = np.stack([np.eye(size) * (1 - one) + one * np.outer(y, y) for one in shares])
  return y, Course(np.outer(shares, y), kernels, kernels[None], kernels[None] * shares[-1], shares)


def outcome(theoretical, measured):
  """One case, of one network."""
  y, predicted = courses(theoretical)
  return y, Outcome(np.arange(5.0), predicted, {8: [courses(measured)[1]]})


def judged(name, pairs, **changed):
  """A claim about cases that end so in theory and in a network."""
  config = config_lib.base('dynamics')
  config.update(changed)
  found = [outcome(*pair) for pair in pairs]
  cases = {f'fa gamma0={number}': one for number, (_, one) in enumerate(found)}
  return CLAIMS[name](cases, found[0][0], config)


@pytest.mark.parametrize('name, rises', [
    ('richer_is_faster', True), ('richer_is_aligned', True), ('richer_is_correlated', True),
    ('correlated_is_faster', True), ('correlated_signals', True),
    ('correlated_is_less_aligned', False)])
def test_monotone_claims(name, rises):
  """They hold in one order alone, of theory and of networks, and only if both are close."""
  up = [(0.7, 0.7), (0.8, 0.8), (0.95, 0.95)]
  good, bad = (up, up[::-1]) if rises else (up[::-1], up)
  assert judged(name, good, level=0.2).agrees
  assert not judged(name, bad, level=0.2).agrees
  crossed = [(one[0], other[1]) for one, other in zip(good, good[::-1])]
  assert not judged(name, crossed, level=0.2).agrees
  far = [(one, one - 0.65) for one, _ in good]
  assert not judged(name, far, level=0.2, close=0.05).agrees


def test_outputs_and_kernels():
  """NaN is no agreement."""
  assert judged('outputs_agree', [(0.9, 0.9), (0.8, 0.81)]).agrees
  assert not judged('outputs_agree', [(0.9, 0.8)]).agrees
  assert not judged('outputs_agree', [(0.9, np.nan)]).agrees


@pytest.mark.parametrize('power, agrees', [(-0.5, True), (-0.2, False), (-1.0, False)])
def test_slopes_in_width(power, agrees):
  """Of errors that fall as a power of width."""
  y, exact = courses(0.9)
  off = lambda width: exact._replace(entk=exact.entk * (1 + width**power))
  one = Outcome(np.arange(5.0), exact, {width: [off(width)] for width in (10, 100, 1000)})
  claim = CLAIMS['kernels_converge']({'fa': one}, y, config_lib.base('dynamics'))
  assert claim.agrees == agrees and f'{power:.2f}' in claim.measured


def test_a_table_and_a_figure(tmp_path):
  """Each claim a row; a figure has lines and points."""
  claims = [Claim('a', 'Claim A.', '1', '1', True, [Series('one', np.arange(3.0), np.ones(3),
                                                           np.ones(3))], ('x', 'y')),
            Claim('b', 'Claim B.', '1', '2', False, [], ('x', 'y'))]
  rows = table(claims).splitlines()
  assert rows[2:] == ['| Claim A. | 1 | 1 | yes |', '| Claim B. | 1 | 2 | **no** |']
  draw(claims[0], tmp_path / 'a.png')
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_refused():
  """Unknown experiments, claims and entries; networks that diverge."""
  config = config_lib.base('dynamics')
  config.claims = ('richer_is_fast',)
  with pytest.raises(ConfigError, match="Did you mean 'richer_is_faster'"):
    run(config)
  with pytest.raises(ConfigError, match='there is no experiment'):
    run(config_lib.base('dynamic'))
  del config.widths
  with pytest.raises(ConfigError, match='widths'):
    config_lib.check(config)


@pytest.mark.slow
def test_the_command(python, tmp_path):
  """Writes a figure for each claim and the table, and overwrites nothing unless told."""
  go = lambda *more: python('--config=configs/theory_fa.py', f'--out={tmp_path}', *more,
                            module='bioprop.bench.theory')
  first = go('--config.widths=(32, 64)', '--config.seeds=1', '--config.steps=4',
             '--config.copies=200', '--config.tolerance=0.5', "--config.cases=({'rule': 'fa'},)")
  assert first.returncode == 0, first.stderr
  names = sorted(one.name for one in tmp_path.iterdir())
  assert names == ['claims.md', 'theory_fa_convergence.png', 'theory_fa_outputs.png']
  assert first.stdout == (tmp_path / 'claims.md').read_text()
  again = go()
  assert again.returncode == 1 and '--overwrite' in again.stderr
  other = python('--config=configs/digits_mlp.py', module='bioprop.bench.theory')
  assert other.returncode == 1 and 'trains one network' in other.stderr


@pytest.mark.parametrize('flags, words', [
    ([], '--config=theory_fa.'),
    (['--config=configs/nope.py'], 'no configuration configs/nope.py'),
    (['--config=configs/theory_fa.py', '--config.gama0=2'], 'Did you mean --config.gamma0'),
    (['--config=configs/digits_mlp.py'], 'bioprop train --config='),
    (['--config=configs/theory_fa.py', '--ouput=x'], '--out and --overwrite')])
def test_mistakes_are_one_paragraph(python, flags, words):
  """And end the command at once."""
  done = python(*flags, module='bioprop.bench.theory')
  assert done.returncode == 1 and words in done.stderr, done.stderr
  assert 'Traceback' not in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.slow
def test_figure_1():
  """The rules' order before and after training (equations.md, A7), at a quarter of the width."""
  config = _config('theory_figure1')
  config.widths, config.seeds, config.replicas, config.close = (2000,), 3, 4, 0.07
  claims = {one.name: one for one in run(config)}
  for name in ('alignment_start', 'alignment_end', 'signals'):
    assert claims[name].agrees, claims[name]


@pytest.mark.slow
def test_figure_4():
  """Linear theory over six draws of data, beside the numbers of equations.md, A7 (one draw)."""
  found = []
  for seed in range(6):
    config = _config('theory_figure4')
    config.data_seed = seed
    x, y = (np.asarray(one, float) for one in dynamics.data(config))
    align = lambda kernel, y=y: y @ kernel @ y / np.linalg.norm(kernel) / (y @ y)
    for rho in (0.0, 1.0):
      one = theory.solve_linear(x, y, depth=3, gamma0=1.0, learning_rate=0.03, steps=200,
                                rule='fa', rho=rho)
      found.append([align(one.entk[-1]), align(one.at('phi', -1)[2]),
                    *one.at('g_pseudo', -1)[:, 0, 0]])
  low, high = np.mean(found[::2], 0), np.mean(found[1::2], 0)
  np.testing.assert_allclose(low, [0.659, 0.885, 1.19, 0.94, 0.70], rtol=0.2)
  np.testing.assert_allclose(high, [0.471, 0.819, 2.65, 2.08, 1.43], rtol=0.2)


@pytest.mark.slow
def test_networks_that_diverge_are_told_of(monkeypatch):
  """By what to change: their limit may be stable where they are not."""
  config = config_lib.base('dynamics')
  config.claims, config.widths, config.seeds = ('outputs_agree',), (50,), 1
  config.steps, config.samples, config.copies, config.tolerance = 3, 3, 100, 1.0
  lost = wide.Trained(*[np.full(3, np.nan)] * 5)
  monkeypatch.setattr(wide, 'train', lambda **_: lost)
  with pytest.raises(TheoryError, match='width 50 diverge under fa'):
    run(config)


def _config(name):
  """A configuration by its file's name."""
  return runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']()
