"""bioprop describe: the counts of known networks, and no more than what a run would hold."""
import jax
import pytest

from bioprop.bench import describe
from bioprop.training import configs
from bioprop.training.trainer import Trainer

# What each layer of LeNet-5 sees of an image of 28 by 28, and the numbers of its kernel.
SEEN = {'Conv_0': 784, 'Conv_1': 6 * 14**2, 'Conv_2': 400, 'Dense_0': 120, 'Dense_1': 84}
KERNELS = {'Conv_0': 150, 'Conv_1': 2400, 'Conv_2': 48000, 'Dense_0': 10080, 'Dense_1': 840}
PARAMETERS = 61706  # LeNet-5 with padding, as it is counted everywhere.


@pytest.mark.parametrize('rule, learned, frozen', [
    ('bp', 0, 0), ('fa', 0, sum(KERNELS.values())), ('dfa', 0, 10 * sum(SEEN.values())),
    ('kp', sum(KERNELS.values()), 0), ('align_ada', 0, PARAMETERS)])
def test_lenet_without_its_files(tmp_path, rule, learned, frozen):
  """MNIST is not there."""
  config = configs.load('mnist_lenet')
  config.rule = rule
  report, state, shape = describe.described(config, str(tmp_path))
  assert shape == [28, 28, 1] and {row.rule for row in report} == {rule}
  assert describe.sizes(report, state) == [
      ('parameters', PARAMETERS, 4 * PARAMETERS), ('feedback that learns', learned, 4 * learned),
      ('frozen feedback', frozen, 4 * frozen)]
  if rule == 'dfa':
    assert {row.path: row.feedback for row in report if row.feedback} == {
        f'{layer}/kernel': (10, seen) for layer, seen in SEEN.items()}


@pytest.mark.parametrize('name, rule', [('digits_mlp', 'mirror'), ('add_rnn:8', 'rflo')])
def test_it_is_what_a_run_holds(name, rule):
  """All of the parameters and feedback of the run's first state."""
  config = configs.load(name)
  config.rule = rule
  trainer = Trainer(config)
  state = trainer.init()
  held = jax.tree.leaves((state.params, state.model_state))
  report, shapes, _ = describe.described(config)
  sizes = describe.sizes(report, shapes)
  assert sum(numbers for _, numbers, _ in sizes) == sum(leaf.size for leaf in held)
  assert sum(taken for _, _, taken in sizes) == sum(leaf.nbytes for leaf in held)


@pytest.mark.parametrize('number, words', [
    (0, '0 B'), (1023, '1023 B'), (1024, '1.0 KiB'), (3 * 2**29, '1.5 GiB'),
    (2**55, '32768.0 TiB')])
def test_bytes(number, words):
  assert describe._bytes(number) == words


@pytest.mark.parametrize('argv, words', [
    (['--config.dataset=mnits'], "Did you mean 'mnist'"),
    (['--config.rule=rflo'], 'RFLO is a rule of recurrent networks'),
    (['--config.model=lenet', '--config.model_options.hidden=3'], "has no option 'activation'"),
    (['--config.rule=dfa', '--config.rule_options.max_gib=1e-9'], 'max_gib allows 1e-09 GiB')])
def test_mistakes_are_one_paragraph(python, tmp_path, argv, words):
  done = python('describe', *argv, module='bioprop', cwd=tmp_path)
  assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
  assert done.stdout == ''
