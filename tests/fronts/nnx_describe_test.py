"""describe on NNX models: one row a parameter, and nothing left on backprop in silence."""
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bioprop
from bioprop import errors
from bioprop.rules import OF_TIME, NetworkRule


@jax.custom_vjp
def opaque(w, x):
  """A product with a derivative of its own, into which no rule can follow."""
  return x @ w


opaque.defvjp(lambda w, x: (opaque(w, x), (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))


class Everything(nnx.Module):
  """Embedding, norm, attention, LoRA, a matrix and a gain of its own, parameters in a list."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(9, 6, rngs=rngs)
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
    self.mine = nnx.Param(jnp.ones((6, 6)))
    self.gain = nnx.Param(jnp.ones((6,)))
    self.idle = nnx.Param(jnp.ones((6,)))
    self.lora = nnx.LoRA(6, 2, 6, base_module=nnx.Linear(6, 6, rngs=rngs), rngs=rngs)
    self.tail = nnx.List([nnx.Linear(6, 3, rngs=rngs), nnx.Param(jnp.ones((3,)))])

  def __call__(self, tokens, train):
    x = self.norm(self.embed(tokens), use_running_average=not train)
    x = self.attention(x) @ self.mine[...]
    x = jax.nn.relu(self.lora(x)) * self.gain[...][None, None]
    return self.tail[0](x) + self.tail[1][...][None, None]


class Odd(nnx.Module):
  """A matrix that multiplies elementwise, one in a custom derivative, and a layer."""

  def __init__(self):
    self.table, self.hidden = (nnx.Param(jnp.ones((4, 6))), nnx.Param(jnp.ones((6, 6))))
    self.readout = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.readout(opaque(self.hidden[...], x * self.table[...]))


TOKENS = jax.ShapeDtypeStruct((2, 4), jnp.int32)


@pytest.fixture(scope='module')
def model():
  """The plain one; no test may change it."""
  return nnx.eval_shape(lambda: Everything(nnx.Rngs(0)))


# gln, whose gates are projections of numbers, refuses tokens.
@pytest.mark.parametrize('rule', [
    rule for rule in bioprop.RULES if rule not in ('gln', *OF_TIME)])
@pytest.mark.some(3)
def test_one_row_for_each_parameter(model, rule):
  """Paths and shapes are those of the plugged model; it stays as it is; flags may be positional."""
  definition, types = nnx.graphdef(model), [type(m) for _, m in nnx.iter_modules(model)]
  report = bioprop.describe(model, rule, TOKENS, True)
  assert nnx.graphdef(model) == definition
  assert [type(m) for _, m in nnx.iter_modules(model)] == types
  plugged = nnx.eval_shape(lambda: bioprop.plug(
      Everything(nnx.Rngs(0)), rule, nnx.Rngs(1), TOKENS, train=True))
  leaves = {'/'.join(map(str, path)): leaf.shape
            for path, leaf in nnx.to_flat_state(nnx.state(plugged, nnx.Param))}
  assert {row.path: row.shape for row in report} == leaves and len(report) == len(leaves)
  definition = nnx.graphdef(plugged)
  assert bioprop.describe(plugged, None, TOKENS, True).rows == report.rows
  assert nnx.graphdef(plugged) == definition
  rows = {row.path: row for row in report}
  if issubclass(bioprop.RULES[rule], NetworkRule):
    assert {row.rule for row in report} == {rule} and not report.left_out
    return
  assert rows['gain'].rule == rows['norm/scale'].rule == rows['tail/1'].rule == 'local'
  assert rows['idle'].rule == 'unused'
  for name in ('embed/embedding', 'attention/query/kernel', 'attention/out/bias', 'lora/lora_b',
               'lora/base_module/kernel', 'tail/0/bias', 'mine'):
    assert rows[name].rule == rule, name
  assert rows['mine'].layer == 'Everything' and rows['tail/1'].layer == 'List'
  assert not report.left_out and not report.elementwise and 'WARNING' not in str(report)


@pytest.mark.parametrize('rule, readout, lora, mine', [
    ('bp', None, None, None), ('fa', (6, 3), (2, 6), (6, 6)), ('dfa', (3, 6), (3, 2), (3, 6)),
    ('usf', None, None, None), ('frsf', (6, 3), (2, 6), (6, 6)), ('kp', (6, 3), (2, 6), (6, 6))])
def test_feedback_shapes(model, rule, readout, lora, mine):
  """Of the readout, of LoRA's second product and of a matrix, with errors per position."""
  rows = {row.path: row for row in bioprop.describe(model, rule, TOKENS, train=False)}
  assert rows['tail/0/kernel'].feedback == readout
  assert rows['lora/lora_b'].feedback == lora
  assert rows['mine'].feedback == mine
  assert rows['tail/0/bias'].feedback is None
  assert rows['embed/embedding'].feedback is None  # Tokens take no cotangent.
  if rule == 'kp':
    assert rows['tail/0/feedback_kernel'].note == 'learned feedback'
    assert rows['lora/feedback_lora_b'].note == 'learned feedback'


def test_choices(model):
  """Each layer by its own rule; a plain model, or one that is not run, is on backprop."""
  choice = {'attention': 'fa', 'lora_*': 'usf', 'lora': 'usf', '*': 'bp'}
  rules = {row.path: row.rule for row in bioprop.describe(model, choice, TOKENS, True)}
  assert rules['attention/query/kernel'] == 'fa' and rules['tail/0/kernel'] == 'bp'
  assert rules['lora/lora_a'] == rules['lora/base_module/kernel'] == 'usf'
  for report in (bioprop.describe(model, 'bp'), bioprop.describe(model, None),
                 bioprop.describe(model, None, TOKENS, True)):
    assert {row.rule for row in report} <= {'bp', 'local', 'unused'}


def test_what_no_rule_can_follow():
  """A product in a derivative of its own, and a matrix that multiplies elementwise, are loud."""
  report = bioprop.describe(Odd(), 'fa', jax.ShapeDtypeStruct((4, 6), jnp.float32))
  rows = {row.path: row for row in report}
  assert rows['hidden'].rule == 'BACKPROP' and 'custom_vjp_call' in rows['hidden'].note
  assert rows['table'].rule == 'local' and rows['table'].note == 'elementwise, in mul'
  assert [row.path for row in report.left_out] == ['hidden']
  assert [row.path for row in report.elementwise] == ['table']
  assert 'WARNING: 1 weight(s) stay on backprop: hidden' in str(report)


def test_the_activity_of_hebbian_layers(model):
  """The note names the nonlinearity that was found."""
  notes = {row.path: row.note for row in bioprop.describe(model, 'hebb', TOKENS, True)}
  assert notes['tail/0/kernel'] == 'identity' and notes['tail/0/bias'] == ''
  small = nnx.eval_shape(lambda: nnx.Sequential(
      nnx.Linear(6, 5, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(5, 3, rngs=nnx.Rngs(0))))
  rows = bioprop.describe(small, 'hebb', jax.ShapeDtypeStruct((4, 6), jnp.float32))
  assert [row.note for row in rows] == ['', 'tanh', '', 'identity']


@pytest.mark.parametrize('sample', [(), (jax.ShapeDtypeStruct((4, 6), jnp.float32),)])
def test_printed(sample):
  """As in the README, with NNX's names; shared layers have one row."""

  def make():
    layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    return nnx.Sequential(layer, jnp.tanh, layer, nnx.Linear(6, 3, rngs=nnx.Rngs(0)))

  shown = str(bioprop.describe(nnx.eval_shape(make), 'fa', *sample))
  assert shown.splitlines() == [
      'parameter        shape  layer   rule  feedback',
      'layers/0/bias    6      Linear  fa    -',
      'layers/0/kernel  6x6    Linear  fa    6x6',
      'layers/3/bias    3      Linear  fa    -',
      'layers/3/kernel  6x3    Linear  fa    6x3']


def test_mistakes(model):
  """As plug says."""
  with pytest.raises(errors.FeedbackMissingError, match=r'bioprop\.plug\(model, .*, x\)'):
    bioprop.describe(model, 'dfa')
  with pytest.raises(errors.NothingMatchedError, match='Empty holds no weight'):
    bioprop.describe(type('Empty', (nnx.Module,), {})(), 'fa')
  with pytest.raises(errors.PatternError, match="'lore' decides for no layer"):
    bioprop.describe(model, {'lore': 'fa', '*': 'bp'}, TOKENS, True)
  layer = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
  for sample, words in ((jnp.ones((4, 5)), r'float32\[4, 5\]: TypeError'), (None, 'nothing')):
    with pytest.raises(errors.SampleError, match=f'Linear cannot be called on {words}'):
      bioprop.describe(layer, 'fa', sample)
