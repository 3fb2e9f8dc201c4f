"""Probes of a run: their examples, their steps, and options that cannot be."""
import numpy as np
import pytest

from bioprop.errors import ConfigError
from bioprop.training import base, probing, run
from bioprop.training.trainer import Trainer

GOOD = {'type': 'entk', 'every': 3, 'batch': 20}


def make_config(probes, **values):
  """Digits, a small MLP, and these probes."""
  config = base()
  config.model_options.hidden = (16,)
  config.update(validation=0, **values)
  for name, options in probes.items():
    config.probes[name] = options
  return config


LABELS = np.repeat(np.arange(4), [30, 5, 12, 1])[np.random.RandomState(0).permutation(48)]


@pytest.mark.parametrize('count', [1, 3, 4, 17, 40, 48])
def test_balanced(count):
  """As many of each class, give or take one, unless a class has fewer; ordered; none twice."""
  chosen = probing.balanced(LABELS, count, 0, 'kernel')
  assert len(set(chosen.tolist())) == count == len(chosen)
  labels = LABELS[chosen]
  assert (np.diff(labels) >= 0).all()
  have, found = (np.bincount(one, minlength=4) for one in (LABELS, labels))
  for one in range(4):
    assert found[one] == have[one] or found[one] >= found.max() - 1


def test_balanced_is_drawn_by_the_seed():
  """The same from the same, others from another: within classes, and of classes if few."""
  draw = lambda count, seed: probing.balanced(LABELS, count, seed, 'kernel').tolist()
  assert draw(12, 3) == draw(12, 3) and draw(12, 3) != draw(12, 4)
  assert len({LABELS[draw(1, seed)[0]] for seed in range(20)}) > 1
  assert set(draw(8, 3)) <= set(draw(12, 3))


@pytest.mark.parametrize('labels', [
    np.tile(LABELS[:, None], (1, 3)), np.linspace(1, 0, 48)], ids=['texts', 'quantities'])
def test_labels_that_are_no_classes_are_drawn_without_regard_to_them(labels):
  """As if they were others."""
  chosen = probing.balanced(labels, 9, 0, 'kernel')
  assert len(set(chosen.tolist())) == 9
  np.testing.assert_array_equal(chosen, probing.balanced(labels[::-1], 9, 0, 'kernel'))
  assert chosen.tolist() != probing.balanced(labels, 9, 1, 'kernel').tolist()
  with pytest.raises(ConfigError, match='config.probes.kernel.batch is 49, and only 48 .*=48'):
    probing.balanced(labels, 49, 0, 'kernel')


@pytest.mark.parametrize('every, steps', [
    ((), 7), ((3,), 7), ((4, 6), 100), ((500,), 7), ((7,), 7), ((3, 50), 7), ((6, 9), 9)])
def test_until_the_next(every, steps):
  """Calls of these lengths begin wherever a probe is due, and nowhere else."""
  probes = tuple(probing.Scheduled('', one, None, None) for one in every)
  starts = [0]
  while (at := starts[-1] + probing.until_next(probes, starts[-1], steps - starts[-1])) < steps:
    starts.append(at)
  assert set(starts) == {0} | {at for one in every for at in range(0, steps, one)}


@pytest.mark.parametrize('options, words', [
    ('entk', "config.probes.own is 'entk', and must say what"),
    ({**GOOD, 'evry': 3}, "config.probes.own has 'evry'; a probe has type, every, batch, block"),
    ({'type': 'entk', 'batch': 3}, "config.probes.own lacks 'every'.*every=500"),
    ({**GOOD, 'type': 'spectrum'}, "own.type is 'spectrum'; valid: entk, features, angles, align"),
    ({**GOOD, 'type': ['entk']}, 'own.type is .*valid: entk'),
    ({**GOOD, 'every': 0}, 'own.every is 0, and must be a whole number of at least 1'),
    ({**GOOD, 'batch': True}, 'own.batch is True'), ({**GOOD, 'batch': 2.5}, 'own.batch is 2.5'),
    ({**GOOD, 'block': -1}, 'own.block is -1'), ({**GOOD, 'block': 'all'}, "own.block is 'all'"),
    ({**GOOD, 'batch': 1438}, 'own.batch is 1438, and only 1437 training examples.*own.batch=64'),
])
def test_probes_that_cannot_be_are_named_before_anything_is_written(tmp_path, options, words):
  """With what to type."""
  with pytest.raises(ConfigError, match=words):
    run(make_config({'own': options}), tmp_path / 'run', progress=False)
  assert not (tmp_path / 'run').exists()


def test_what_else_probes_do_not_go_with():
  """Several processes; a name that is a path; a model that does not fit, as without probes."""
  config = make_config({'own': GOOD}, distributed='auto')
  with pytest.raises(ConfigError, match='config.distributed'):
    probing.check(config)
  with pytest.raises(ConfigError, match='config.probes.a/b has a slash'):
    probing.check(make_config({'a/b': GOOD}))
  config = make_config({'own': GOOD}, model='lenet')
  config.model_options.hidden = None
  with pytest.raises(ConfigError, match=r'cannot be built on inputs \[8, 8, 1\]'):
    Trainer(config)
