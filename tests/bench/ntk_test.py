"""bioprop ntk: kernels are those of naive Jacobians, and numbers of them are counted by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bioprop
from bioprop import data
from bioprop.bench import ntk, statistics
from bioprop.errors import ConfigError, RuleOptionError
from bioprop.models import MLP
from bioprop.training import base, probing
from bioprop.training.trainer import Trainer

SEEDS = [3, 8]


def make_config(**values):
  """Digits, an MLP of two hidden layers."""
  config = base()
  config.model_options.hidden = (12, 11)
  config.update(validation=100, batch_size=200, seed=4, **values)
  return config


@pytest.fixture(scope='module')
def kernels():
  return ntk.kernels(make_config(), ['fa', 'dfa(scale=0.7)', 'hebb'], SEEDS, 20, infinite=False)


def _images(config):
  """The examples, normalised, from the data themselves: all statistics are of the training set."""
  whole = data.load('digits', validation=100)
  train = data.choose(whole, config.examples, 4).train if config.examples else whole.train
  chosen = probing.balanced(train.labels, 20, 4, '')
  images = train.images.astype(np.float64)
  x = (images[chosen] - images.mean()) / images.std()
  return jnp.asarray(x, jnp.float32), train.labels[chosen]


def _kernel(config, rule, seed, x):
  """Naive: the whole Jacobians, of the plain network and of the plugged one."""
  name, *options = rule.split('(')
  config.rule, config.seed, config.rule_options.scale = name, seed, 0.7 if options else None
  state = Trainer(config).init()
  model = MLP(classes=10, hidden=(12, 11))
  made = bioprop.make(name, **({'scale': 0.7} if options else {}))
  variables = {'params': state.params, **state.model_state}

  def rows(plain):
    net = model if plain else bioprop.plug(model, made)
    held = {} if plain else {name: tree for name, tree in variables.items() if name != 'params'}
    outputs = lambda params, one: net.apply({'params': params, **held}, one[None])[0]
    jacobian = jax.vmap(jax.jacrev(outputs), (None, 0))(variables['params'], x)
    return np.concatenate([np.asarray(leaf).reshape(len(x), 10, -1)
                           for leaf in jax.tree.leaves(jacobian)], 2)

  return np.einsum('ncp,mcp->nm', rows(True), rows(False)) / 10


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['bp', 'fa', 'dfa(scale=0.7)'])
def test_kernels_are_those_of_the_configured_network(kernels, rule):
  """On the same examples for all seeds and rules; backprop's although it was not asked for."""
  x, labels = _images(make_config())
  np.testing.assert_array_equal(kernels.labels, labels)
  np.testing.assert_array_equal(kernels.labels, np.repeat(np.arange(10), 2))
  for seed, kernel in zip(SEEDS, kernels.found[rule], strict=True):
    want = _kernel(make_config(), rule, seed, x)
    np.testing.assert_allclose(kernel, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_fewer_examples_are_those_of_the_run():
  """config.examples, by the configuration's seed, with their own statistics; in blocks."""
  config = make_config(examples=60)
  found = ntk.kernels(config, ['bp'], [3], 20, infinite=False, block=7)
  x, _ = _images(config)
  want = _kernel(make_config(), 'bp', 3, x)
  np.testing.assert_allclose(found.found['bp'][0], want, rtol=1e-3, atol=1e-4 * want.max())


def test_numbers_of_known_kernels():
  """Counted by hand."""
  exact, ruled = np.array([[2., 0.], [0., 2.]]), np.array([[1., 2.], [0., 1.]])
  made = ntk.Kernels(np.array([0, 1]), np.array([0]), {'bp': exact[None], 'fa': ruled[None]},
                     {'fa': exact / 2}, {'bp': 'no limit'})
  of_bp, of_fa = ntk.measures(made, 'bp'), ntk.measures(made, 'fa')
  assert of_bp['trace'] == [2] and of_fa['trace'] == [1]
  assert of_bp['asymmetry'] == [0] and of_fa['asymmetry'] == pytest.approx([(8 / 6)**.5])
  assert of_bp['rank'] == pytest.approx([2])
  assert of_bp['alignment'] == pytest.approx([1])  # K = 2 y y^T, up to a constant.
  assert of_bp['to bp'] == [0] and of_fa['to bp'] == pytest.approx([(6 / 8)**.5])
  assert 'to infinite' not in of_bp and of_fa['to infinite'] == pytest.approx([(4 / 2)**.5])


def test_the_table():
  """Mean and deviation over seeds; a reason once, however many rules have it."""
  one, two = np.eye(2), 3 * np.eye(2)
  made = ntk.Kernels(np.zeros((2, 1)), np.array([0, 1]),
                     {name: np.stack([one, two]) for name in ('bp', 'fa', 'dfa')}, {'bp': one},
                     {'fa': 'there is\nnone', 'dfa': 'there is\nnone'})
  lines = ntk.table(made, ['bp', 'fa', 'dfa', 'fa']).splitlines()
  rows = [[cell.strip() for cell in line.strip('| ').split('|')] for line in lines[:5]]
  assert rows[0] == ['rule', *ntk.COLUMNS] and [row[0] for row in rows[2:]] == ['bp', 'fa', 'dfa']
  assert rows[2][1] == '2.0 ± 1.4' and rows[2][2] == '-' and rows[2][6] == '1.0 ± 1.4'
  assert rows[3][6] == rows[4][6] == '[1]' and lines[5:] == ['', '[1] there is none']


@pytest.mark.slow
def test_infinite_width():
  """That of `bioprop.theory.infinite` on the same examples; a rule without one is told."""
  config = make_config()
  config.model_options.parametrization = 'ntk'
  found = ntk.kernels(config, ['bp', 'fa', 'drtp'], [3], 20)
  x, _ = _images(config)
  plain = MLP(classes=10, hidden=(12, 11), parametrization='ntk')
  for rule in ('bp', 'fa'):
    want = bioprop.theory.infinite(plain, x, rule=rule)
    np.testing.assert_allclose(found.infinite[rule], want.entk, rtol=0.02)
  assert set(found.infinite) == {'bp', 'fa'} and list(found.without) == ['drtp']
  lines = ntk.table(found, ['fa', 'drtp']).splitlines()
  assert '[1]' not in lines[2] and '[1]' in lines[3] and 'drtp' in lines[5].lower()


@pytest.mark.parametrize('rules, seeds, batch, error, words', [
    (['bp'], [0], 2000, ConfigError, '--batch is 2000, .*--batch=64'),
    (['bp'], [-1], 10, ConfigError, 'seed'),
    (['fa(roh=1)'], [0], 10, ConfigError, "'roh'"),
    (['fa(rho=2)'], [0], 10, RuleOptionError, 'rho')])
def test_what_cannot_be(rules, seeds, batch, error, words):
  with pytest.raises(error, match=words):
    ntk.kernels(make_config(), rules, seeds, batch)


@pytest.mark.slow
def test_from_the_command_line(python, tmp_path):
  """The table, the arrays and the picture; what is there is not replaced unless it is said."""
  argv = ('ntk', '--config.model_options.hidden=8', '--batch=20', '--seeds=1,2', '--rules=fa,hebb',
          '--noinfinite', '--out=deep/k.npz')
  done = python(*argv, module='bioprop', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.split()[1] for line in lines[2:4]] == ['fa', 'hebb']
  assert lines[4:] == ['in deep/k.npz and deep/k.png']
  assert (tmp_path / 'deep' / 'k.png').read_bytes().startswith(b'\x89PNG')
  with np.load(tmp_path / 'deep' / 'k.npz') as arrays:
    assert set(arrays) == {'labels', 'seeds', 'kernel/bp', 'kernel/fa', 'kernel/hebb'}
    assert arrays['kernel/hebb'].shape == (2, 20, 20) and arrays['seeds'].tolist() == [1, 2]
    traces = [np.trace(one) / 20 for one in arrays['kernel/fa']]
    want = statistics.Summary(np.mean(traces), np.std(traces, ddof=1), 2)
    assert lines[2].split('|')[2].strip() == str(want)
  again = python(*argv, module='bioprop', cwd=tmp_path)
  assert again.returncode == 1 and 'deep/k.npz exists. Say --overwrite' in again.stderr
  wrong = python('ntk', '--out=k.png', module='bioprop', cwd=tmp_path)
  assert 'Type for instance --out=k.npz' in wrong.stderr and len(wrong.stderr.splitlines()) == 1
